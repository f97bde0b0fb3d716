"""Which modules of the library a zygote imports for its workers, as their functions have been seen to need them.

A fresh worker for each call would import them anew each time, which can take ten times as long as all else that it
does. Only modules of the standard library are named, and of these only such as make definitions and nothing more, no
thread, descriptor, temporary name or secret: what a worker has from its zygote is then what it would have made itself.
"""

import sys
from collections.abc import Iterable
from typing import Final

__all__ = ["HARMLESS", "Beforehand", "importable"]

# Each is tested for what its import leaves behind. Not asyncio, multiprocessing and concurrent.futures (a secret key,
# functions to be called at exit and at a fork), nor ssl and secrets (random numbers that OpenSSL makes), nor what talks
# to terminals or starts programs.
_NAMES: Final = """
    argparse array ast base64 binascii bisect bz2 calendar cmath collections collections.abc colorsys configparser
    contextlib contextvars copy csv dataclasses datetime decimal difflib dis email.message email.parser email.policy
    enum fnmatch fractions functools gettext glob graphlib gzip hashlib heapq html html.entities html.parser inspect
    ipaddress itertools json keyword linecache locale lzma math mimetypes numbers opcode operator optparse pathlib
    pickle pickletools platform plistlib pprint queue quopri random re reprlib sched selectors shlex shutil socket stat
    statistics string stringprep struct tempfile textwrap timeit token tokenize tomllib traceback types typing
    unicodedata urllib.parse uuid weakref xml.dom.minidom xml.etree.ElementTree xml.sax xml.sax.saxutils zipfile zlib
    zoneinfo
"""
HARMLESS: Final = frozenset(_NAMES.split())

# What goes by value needs it, and it is not here before something does.
_DILL: Final = "dill"

# A function that comes once may never come again: its import would be in every worker's memory for nothing.
_OFTEN: Final = 2


def importable(names: Iterable[str]) -> tuple[str, ...]:
    """Return those that a zygote may import, as far as this program has done so itself."""
    return tuple(sorted(name for name in HARMLESS.intersection(names) if name in sys.modules))


class Beforehand:
    """What one pool's zygote is to import. The supervisor's lock guards it."""

    def __init__(self) -> None:
        # How many workers have needed each.
        self._needed: dict[str, int] = {}
        self._due: list[str] = []
        # Whether the zygote knows that something went by value.
        self._by_value = False

    def note(self, names: tuple[str, ...]) -> None:
        """A worker was given a function that imports these."""
        for name in names:
            count = self._needed[name] = self._needed.get(name, 0) + 1
            if count == _OFTEN:
                self._due.append(name)

    def take(self) -> list[str]:
        """Return what has become due since it was asked for."""
        due, self._due = self._due, []
        if not self._by_value and _DILL in sys.modules:
            self._by_value = True
            due.append(_DILL)
        return due

    def renew(self) -> None:
        """A zygote that is new has imported nothing."""
        self._due = [name for name, count in self._needed.items() if count >= _OFTEN]
        self._by_value = False
