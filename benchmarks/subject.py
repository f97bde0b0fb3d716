"""One measurement in a process of its own: nobody finds another's threads, caches or memory there.

``python -m benchmarks.subject ROW CONTENDER PARAMETERS`` prints one line of JSON; ``*`` stands for all contenders
of a row that measures them together.
"""

import json
import os
import sys

from benchmarks.model import Noted, Unavailable
from benchmarks.rows import ROWS


def main() -> None:
    row = next(row for row in ROWS if row.name == sys.argv[1])
    parameters = json.loads(sys.argv[3])
    answer: dict[str, object]
    try:
        if sys.argv[2] == "*":
            assert row.together is not None
            measured: object = row.together(parameters)
        else:
            [measure] = [contender.measure for contender in row.contenders if contender.name == sys.argv[2]]
            assert measure is not None
            measured = measure(parameters)
        if isinstance(measured, Noted):
            answer = {"values": dict(measured.values), "note": measured.note}
        else:
            answer = {"values": measured}
    except Unavailable as reason:
        answer = {"why": str(reason)}
    print(json.dumps(answer), flush=True)
    if row.name == "queue":
        # Its pools still hold tasks that nobody will run; an orderly exit would wait for them.
        os._exit(0)


if __name__ == "__main__":
    main()
