"""PluginLog: one line that a plugin logged or printed, as its host sees it."""

from dataclasses import dataclass

__all__ = ["PluginLog"]


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
