"""Count words in a folder's files, each read by a worker that may read that folder and nothing else.

python examples/word_count.py FOLDER
"""

import re
import sys
from collections import Counter
from pathlib import Path

from ringfence import Pool


def count(path):
    """Return how often each word is in a file, the commonest hundred."""
    words = re.findall(r"[a-z]{5,}", Path(path).read_text(errors="replace").lower())
    return dict(Counter(words).most_common(100))


def main():
    folder = Path(sys.argv[1]).resolve()
    files = [str(path) for path in sorted(folder.glob("*")) if path.is_file()]
    total = Counter()
    with Pool(capabilities=[f"fs:read={folder}"]) as pool:
        for words in pool.imap_unordered(count, files):
            total.update(words)
    for word, times in total.most_common(5):
        print(f"{times:6} {word}")


if __name__ == "__main__":
    main()
