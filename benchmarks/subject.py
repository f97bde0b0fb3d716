"""One measurement in a process of its own: nobody finds another's threads, caches or memory there.

``python -m benchmarks.subject ROW CONTENDER PARAMETERS`` prints one line of JSON.
"""

import json
import os
import sys

from benchmarks.model import Noted, Unavailable
from benchmarks.rows import ROWS


def main() -> None:
    row = next(row for row in ROWS if row.name == sys.argv[1])
    contender = next(contender for contender in row.contenders if contender.name == sys.argv[2])
    answer: dict[str, object]
    try:
        measured = contender.measure(json.loads(sys.argv[3]))
        if isinstance(measured, Noted):
            answer = {"values": dict(measured.values), "note": measured.note}
        else:
            answer = {"values": dict(measured)}
    except Unavailable as reason:
        answer = {"why": str(reason)}
    print(json.dumps(answer), flush=True)
    if row.name == "queue":
        # Its pools still hold tasks that nobody will run; an orderly exit would wait for them.
        os._exit(0)


if __name__ == "__main__":
    main()
