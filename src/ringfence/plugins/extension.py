"""What an extension is: the class that describes it, the hooks that its instance calls, and the check of both.

Imported inside workers too (an extension's class may run as a sandboxed plugin), hence from the standard library alone.
"""

import uuid as _uuid
import weakref
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from ringfence.plugins.instance import InstanceContext
    from ringfence.plugins.opaque import OpaqueList

__all__ = ["DynPluginEXT", "PluginEXT", "StaticPluginEXT", "check_extension"]


@runtime_checkable
class PluginEXT(Protocol):
    """The hooks that an instance calls on an extension. Each may raise; none of them is called twice.

    An error in `attach_to` or `initialize` ends the creation of the instance, after a teardown of every extension that
    was attached. Hooks that a class does not define do nothing.
    """

    def attach_to(self, instance: "weakref.ref[InstanceContext]") -> None:
        """Keep the reference: every extension exists by now. It returns None once the instance is closed."""

    def initialize(self) -> None:
        """Set up what this instance needs of the extension: every extension is attached by now. Keep it light."""

    def teardown(self) -> None:
        """Undo attach_to and initialize; whichever of them ran, in part or at all."""


@runtime_checkable
class DynPluginEXT(PluginEXT, Protocol):
    """An extension as an instance holds it: the hooks, and who it is."""

    @property
    def uuid(self) -> _uuid.UUID:
        """What identifies it, whatever it is called."""

    @property
    def name(self) -> str:
        """What callers enable it by."""

    @property
    def description(self) -> str:
        """What it does, in a sentence."""


class StaticPluginEXT(ABC):
    """The part of an extension that is known of its class: who it is, and how to make one.

    `UUID` is for good: hosts keep it as the extension's identity. `NAME` is what callers write ("__EXT_..." by custom).
    `REQUIRES_HOST` says which versions of ringfence it works with (">=0.1, <2"); None: any.
    """

    UUID: ClassVar[_uuid.UUID]
    NAME: ClassVar[str]
    DESCRIPTION: ClassVar[str]
    REQUIRES_HOST: ClassVar[str | None] = None

    @classmethod
    @abstractmethod
    def new(cls, ext: "OpaqueList") -> Self:
        """Make one; take from the list the configuration meant for it. Acquire nothing: there may be no teardown."""

    @property
    def uuid(self) -> _uuid.UUID:
        """The class's UUID."""
        return self.UUID

    @property
    def name(self) -> str:
        """The class's NAME."""
        return self.NAME

    @property
    def description(self) -> str:
        """The class's DESCRIPTION."""
        return self.DESCRIPTION


def check_extension(cls: Any, hooks: tuple[str, ...] = ()) -> None:
    """Raise TypeError, naming the attribute, unless `cls` is a StaticPluginEXT with all it must have, and `hooks`."""
    if not (isinstance(cls, type) and issubclass(cls, StaticPluginEXT)):
        raise TypeError(f"{cls!r:.200} is no class derived from StaticPluginEXT")
    where = f"{cls.__module__}.{cls.__qualname__}"
    for attribute, kind in (("UUID", _uuid.UUID), ("NAME", str), ("DESCRIPTION", str)):
        value = getattr(cls, attribute, None)
        if value is None:
            raise TypeError(f"{where} has no {attribute}; it must be a {kind.__qualname__}")
        if not isinstance(value, kind):
            raise TypeError(f"{where}.{attribute} must be a {kind.__qualname__}, not {type(value).__qualname__}")
    if not cls.NAME or not cls.NAME.isprintable():
        raise TypeError(f"{where}.NAME must be printable text, not {cls.NAME!r}")
    if not isinstance(cls.REQUIRES_HOST, str | None):
        raise TypeError(f"{where}.REQUIRES_HOST must be a str, not {type(cls.REQUIRES_HOST).__qualname__}")
    # Bound to the class where it is a classmethod, as it must be: an instance does not exist yet.
    if getattr(cls.new, "__isabstractmethod__", False) or getattr(cls.new, "__self__", None) is not cls:
        raise TypeError(f"{where}.new must be a classmethod that takes the OpaqueList")
    for hook in hooks:
        if not callable(getattr(cls, hook, None)):
            raise TypeError(f"{where}.{hook} must be a method; PluginEXT says what it is for")
    if abstract := sorted(getattr(cls, "__abstractmethods__", ())):
        raise TypeError(f"{where} leaves {', '.join(abstract)} abstract")
