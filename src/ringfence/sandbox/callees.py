"""Which C function an instruction called: for refusals that Python announces no operation for.

A function written in C fails at the line of Python that called it. The name by which that line called it is in the
code's own bytecode, next to the instruction that raised.
"""

from types import CodeType
from typing import Final

__all__ = ["called_by", "is_raised_in_python", "spelled"]

# They push what is about to be called, or the object it is a member of.
_FIRST: Final = frozenset({
    "LOAD_DEREF", "LOAD_FAST", "LOAD_FAST_BORROW", "LOAD_FAST_CHECK", "LOAD_GLOBAL", "LOAD_NAME",
})  # fmt: skip
_MEMBER: Final = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
# They stand between the two, and change nothing of what is called.
_IDLE: Final = frozenset({"EXTENDED_ARG", "NOP", "PRECALL", "PUSH_NULL"})
_RAISING: Final = frozenset({"RAISE_VARARGS", "RERAISE"})
# A function of more code than this is not searched: nobody waits a second for a better message.
_MOST_CODE: Final = 1 << 17


def is_raised_in_python(code: CodeType | None, instruction: int) -> bool:
    """Whether the instruction at this offset is a `raise`, so that the error is its author's own."""
    if code is None or not 0 <= instruction < len(code.co_code):
        return True  # nothing is known of it
    import opcode  # loaded with the first refusal only

    return opcode.opname[code.co_code[instruction]] in _RAISING


def called_by(code: CodeType | None, instruction: int) -> str | None:
    """Return the name by which the instruction at this offset calls something: `stat` for ``os.stat(path)``.

    `None` where it is no call by a name, or where the code was compiled without columns.
    """
    return next((name for name in reversed(spelled(code, instruction)) if name), None)


def spelled(code: CodeType | None, instruction: int) -> list[str]:
    """Return how the instruction at this offset spells what it calls: `["os", "stat"]` for ``os.stat(path)``.

    What has no name is an empty string: the result of a call, an item. Empty as `called_by` is None.
    """
    if code is None or len(code.co_code) > _MOST_CODE:
        return []
    import dis  # as above

    before: list[tuple[str, str, tuple[int | None, int | None]]] = []
    for each in dis.get_instructions(code):
        where = each.positions
        start = (None, None) if where is None else (where.lineno, where.col_offset)
        if each.offset == instruction:
            if start[1] is None:
                return []
            # What is called begins where the call begins; its arguments stand further right.
            found: list[str] = []
            for opname, name, begins in before:
                if begins == start:
                    found = [name] if opname in _FIRST else [*found, name]
            return found
        if each.opname in _FIRST or each.opname in _MEMBER:
            before.append((each.opname, each.argval if isinstance(each.argval, str) else "", start))
        elif each.opname not in _IDLE:
            before.append((each.opname, "", start))
    return []
