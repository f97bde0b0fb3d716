"""PluginLog: one line that a plugin logged or printed, as its host sees it."""

from dataclasses import dataclass

__all__ = ["PluginLog", "on_one_line"]


@dataclass(frozen=True, slots=True)
class PluginLog:
    """One record from a plugin. Every text in it was chosen by the plugin, within bounds.

    Attributes:
        plugin: the plugin's name.
        level: 0 trace, 1 debug, 2 info, 3 warn, 4 error.
        message: the text. What was printed arrives line by line, stdout as info, stderr as warn.
        logger: the logger's name; ``stdout`` and ``stderr`` for what was printed.
        module, file, line, thread: where it came from, as far as the plugin said.
        at: seconds since the epoch, by the host's clock.
    """

    plugin: str
    level: int
    message: str
    logger: str
    module: str
    file: str | None
    line: int | None
    thread: str | None
    at: float


def on_one_line(text: str) -> str:
    """Escape what could move the cursor, recolour a terminal, or begin a line that looks like one of the host's."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
