"""How folders are watched: which files count, how long to wait for silence, how often to try again."""

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ringfence.plugins.backoff import BackoffConfig
from ringfence.plugins.model import Count, Flag, FrozenModel, seconds
from ringfence.plugins.watch_events import WatchEvent

__all__ = ["DEFAULT_EXCLUDES", "DEFAULT_EXTENSIONS", "DebouncerConfig", "WatchConfig"]

DEFAULT_EXTENSIONS: Final = ("py", "plb", "toml", "json")

# What version control, builds, interpreters and editors leave beside the files that count. vim probes a folder with a
# file that is called 4913.
DEFAULT_EXCLUDES: Final = ("*.tmp", "*.swp", ".git/*", "target/*", "__pycache__/*", "*~", ".#*", "4913")


def _wait(value: Any) -> Any:
    # A wait may be none, which other durations may not.
    return 0.0 if value in (0, timedelta(0)) and not isinstance(value, bool) else seconds(value)


Wait = Annotated[float, BeforeValidator(_wait)]
_Given = float | timedelta


class DebouncerConfig(FrozenModel):
    """How long nothing may change before the changes are reported: made by `fixed`, `adaptive` or `custom`."""

    kind: Literal["fixed", "adaptive", "custom"] = "fixed"
    # Of "fixed".
    delay: Wait = 0.5
    # Of "adaptive".
    min: Wait = 0.2
    max: Wait = 5.0
    # Of "custom", and of no other kind.
    rule: Callable[[Sequence[WatchEvent]], _Given] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.rule is not None) != (self.kind == "custom"):
            raise ValueError("a custom debouncer has a rule, and no other has one")
        if self.min > self.max:
            raise ValueError(f"an adaptive debouncer's min ({self.min:g} s) is above its max ({self.max:g} s)")
        return self

    @classmethod
    def fixed(cls, delay: _Given = 0.5) -> Self:
        """Wait `delay` seconds after the last change."""
        return cls._of(kind="fixed", delay=delay)

    @classmethod
    def adaptive(cls, min: _Given = 0.2, max: _Given = 5.0) -> Self:  # noqa: A002  # the documented names
        """Wait between `min` and `max` seconds, longer where changes are frequent (see `AdaptiveDebounce`)."""
        return cls._of(kind="adaptive", min=min, max=max)

    @classmethod
    def custom(cls, rule: Callable[[Sequence[WatchEvent]], _Given]) -> Self:
        """Wait the seconds that `rule` returns for the changes so far.

        It is asked again after each change, on the thread that runs handlers. When it raises, or returns no time, the
        wait is half a second.
        """
        return cls._of(kind="custom", rule=rule)

    @classmethod
    def _of(cls, **settings: Any) -> Self:
        """Return the settings as checked: they may be what the fields' types become, such as timedeltas."""
        return cls(**settings)


class WatchConfig(FrozenModel):
    """What a `PluginWatcher` does; each `with_*` returns a changed copy. Times are seconds, or timedeltas."""

    # Seconds without a change before a change is reported; `debouncer` overrides it.
    debounce: Wait = 0.5
    debouncer: DebouncerConfig | None = None
    # Seconds after which changes are reported though more keep coming (but never less than the debouncer's wait).
    max_wait: Wait = 10.0
    recursive: Flag = True
    # Without dots; empty means every file.
    extensions: tuple[str, ...] = DEFAULT_EXTENSIONS
    # Shell patterns below the watched folder: one without a slash fits the name of a file or folder at any depth, one
    # with a slash fits any end of the path ("build/*" is all that is in any folder called build).
    exclude_patterns: tuple[str, ...] = DEFAULT_EXCLUDES
    follow_symlinks: Flag = False
    # Whether the runtime is told to reload a changed plugin.
    auto_reload: Flag = True
    backoff: BackoffConfig = Field(default_factory=BackoffConfig.exponential)
    # So many changes in a row whose reload failed stop further reloads of that plugin for so many seconds.
    breaker_threshold: Count = 3
    breaker_timeout: Wait = 60.0

    @model_validator(mode="before")
    @classmethod
    def _read_texts(cls, values: Any) -> Any:
        """Take one text for a list of one, and extensions with their dot."""
        if isinstance(values, dict):
            values = dict(values)
            for field in ("extensions", "exclude_patterns"):
                if isinstance(values.get(field), str):
                    values[field] = (values[field],)
            if isinstance(values.get("extensions"), list | tuple | set | frozenset):
                values["extensions"] = tuple(
                    text.removeprefix(".").lower() if isinstance(text, str) else text for text in values["extensions"]
                )
        return values

    @classmethod
    def development(cls) -> Self:
        """Return the preset for writing plugins: quick to report, and quick to try again after failures."""
        return cls(debounce=0.2, breaker_timeout=5.0)

    @classmethod
    def production(cls) -> Self:
        """Return the preset for servers: waits for 2 s of silence; retries after 1 s, then up to a minute apart."""
        backoff = BackoffConfig.exponential(initial_delay=1.0, max_delay=60.0, max_retries=5)
        return cls(debounce=2.0, backoff=backoff)

    def effective_debouncer(self) -> DebouncerConfig:
        """Return the debouncer in force: `debouncer`, or the fixed one of `debounce` seconds."""
        return self.debouncer if self.debouncer is not None else DebouncerConfig.fixed(self.debounce)

    def with_debounce(self, seconds: _Given) -> Self:
        """Return a copy with a fixed wait after the last change."""
        return self._with(debounce=seconds, debouncer=None)

    def with_adaptive_debounce(self, min: _Given = 0.2, max: _Given = 5.0) -> Self:  # noqa: A002  # as above
        """Return a copy that waits longer where changes are frequent."""
        return self._with(debouncer=DebouncerConfig.adaptive(min, max))

    def with_debouncer(self, debouncer: DebouncerConfig) -> Self:
        """Return a copy with this debouncer."""
        return self._with(debouncer=debouncer)

    def with_max_wait(self, seconds: _Given) -> Self:
        """Return a copy that reports after so long although changes keep coming."""
        return self._with(max_wait=seconds)

    def with_recursive(self, recursive: bool = True) -> Self:
        """Return a copy that watches sub-folders, or does not."""
        return self._with(recursive=recursive)

    def with_extensions(self, extensions: str | Iterable[str]) -> Self:
        """Return a copy for files with these extensions; none means every file."""
        return self._with(extensions=extensions if isinstance(extensions, str) else tuple(extensions))

    def with_exclude_patterns(self, patterns: str | Iterable[str]) -> Self:
        """Return a copy with these patterns in place of the default ones."""
        return self._with(exclude_patterns=patterns if isinstance(patterns, str) else tuple(patterns))

    def with_follow_symlinks(self, follow: bool = True) -> Self:
        """Return a copy that looks behind symbolic links, or does not."""
        return self._with(follow_symlinks=follow)

    def with_auto_reload(self, auto_reload: bool = True) -> Self:
        """Return a copy that reloads changed plugins, or only reports changes."""
        return self._with(auto_reload=auto_reload)

    def with_backoff(self, backoff: BackoffConfig) -> Self:
        """Return a copy with these waits between retries."""
        return self._with(backoff=backoff)

    def with_breaker(self, threshold: int = 3, timeout: _Given = 60.0) -> Self:
        """Return a copy that leaves a plugin alone for `timeout` after `threshold` failed changes in a row."""
        return self._with(breaker_threshold=threshold, breaker_timeout=timeout)
