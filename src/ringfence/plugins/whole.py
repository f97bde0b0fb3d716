"""whole: a change of state that is cut short, by ^C most likely, is the last of its owner's."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from ringfence.errors import PluginError

__all__ = ["whole"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Owner(Protocol):
    """Whose state it is."""

    def cut_short(self) -> None:
        """A change was left half done, of which nobody can say which half: end."""


_O = TypeVar("_O", bound=Owner)


def whole(change: Callable[Concatenate[_O, _P], _T]) -> Callable[Concatenate[_O, _P], _T]:
    """Have a method's owner end if it raises anything but a PluginError, which is raised before it changes anything."""

    @wraps(change)
    def changed(self: _O, /, *args: _P.args, **kwargs: _P.kwargs) -> Any:
        try:
            return change(self, *args, **kwargs)
        except PluginError:
            raise
        except BaseException:
            self.cut_short()
            raise

    return changed
