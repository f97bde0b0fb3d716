from collections import Counter

seen = Counter()


def process(lines):
    seen.update(line.split()[0] for line in lines)
    return dict(seen)


def collect():
    return dict(seen)
