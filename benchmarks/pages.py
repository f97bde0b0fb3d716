"""Writes what a run printed into pages, between a comment that names it and the next that ends it."""

import re
from collections.abc import Mapping
from pathlib import Path


def write(path: Path, parts: Mapping[str, str]) -> list[str]:
    """Put each of `parts` where the page has ``<!-- bench:NAME -->`` … ``<!-- /bench:NAME -->``; return which it had.

    Raises:
        ValueError: the page has none of them, or a begin without its end.
    """
    page = path.read_text("utf-8")
    written = []
    for name, text in parts.items():
        begin, end = f"<!-- bench:{name} -->\n", f"<!-- /bench:{name} -->"
        if begin not in page:
            continue
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"{path}: {name} has to begin and end once")
        page = re.sub(re.escape(begin) + ".*?" + re.escape(end), lambda _: begin + text + end, page, flags=re.DOTALL)  # noqa: B023
        written.append(name)
    if not written:
        raise ValueError(f"{path} has no place for {', '.join(parts)}")
    path.write_text(page, "utf-8")
    return written
