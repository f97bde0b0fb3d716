"""HostRegistry: the functions of a host that its plugins may call, each behind the capabilities that it requires."""

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar, final, get_args, get_origin, overload

from pydantic import ConfigDict, PydanticSchemaGenerationError, PydanticUserError, ValidationError, validate_call

from ringfence.locks import Lock
from ringfence.plugins.audit import AuditEvent
from ringfence.plugins.context import ExecutionContext
from ringfence.plugins.errors import (
    CapabilityDenied,
    DuplicatedKey,
    FunctionNotFound,
    HostFunctionError,
    LimitExceeded,
    ReentrantCall,
)
from ringfence.sandbox.capabilities import Capabilities, Grant, GrantLike, as_grant

__all__ = ["ArgError", "HostFunction", "HostRegistry", "record_for_guest"]

_log = logging.getLogger("ringfence.plugins")

_F = TypeVar("_F", bound=Callable[..., Any])

# What a plugin is told of an error is no longer than this.
_MAX_TEXT: Final = 4096
# To look at one problem is to build a dict for each: a list of a million wrong items is not worth that.
_MAX_PROBLEMS: Final = 100
# These mean something to the plugin, or to who called it, that they would lose inside a HostFunctionError.
_PASSED_ON: Final = (CapabilityDenied, HostFunctionError, LimitExceeded, ReentrantCall)

# Strict: "1" is no int, 1 is no bool. A parameter can opt out: Annotated[int, Strict(False)].
_CONFIG: Final = ConfigDict(strict=True, arbitrary_types_allowed=True)


class _Hidden:
    def __repr__(self) -> str:
        return "..."


_HIDDEN: Final = _Hidden()


class ArgError(HostFunctionError, TypeError):
    """A plugin called a function of the host with other arguments than it takes."""


@final
@dataclass(frozen=True, slots=True)
class HostFunction:
    """A function that plugins may call, as it was registered.

    `name` is how they call it, with its module in front if it has one; `requires` is what they must be granted; `owner`
    is who registered it, for `HostRegistry.release`.
    """

    name: str
    function: Callable[..., Any]
    requires: tuple[Grant, ...]
    owner: str | None
    _signature: inspect.Signature
    # Checks plugin's arguments, and returns them as the function is to get them, without the context.
    _check: Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]
    # Where the context goes, among the positional parameters or by name; both None when the function wants none.
    _position: int | None
    _keyword: str | None

    @property
    def module(self) -> str | None:
        """The module it belongs to, or None."""
        return self.name.rpartition(".")[0] or None

    @property
    def signature(self) -> str:
        """What plugins pass and get, as text: ``(a: int, b: int = 1) -> int``."""
        return str(self._signature)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments as checked. Raises ArgError, which names the first that is wrong."""
        try:
            return self._check(*args, **kwargs)
        except ValidationError as error:
            raise ArgError(_wrong(self.name, self._signature, error)) from None

    def call(self, context: ExecutionContext, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function with what `bind` returned, and the context if it wants it."""
        if self._keyword is not None:
            if self._position is not None and len(args) >= self._position:
                args = (*args[: self._position], context, *args[self._position :])
            else:
                kwargs = {**kwargs, self._keyword: context}
        return self.function(*args, **kwargs)


def _read(name: str, function: Callable[..., Any], requires: tuple[Grant, ...], owner: str | None) -> HostFunction:
    """Look at a function once, when it is registered. Raises TypeError for one that cannot be called by plugins."""
    if not callable(function):
        raise TypeError(f"host function {name!r}: {function!r} cannot be called")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"host function {name!r} is a coroutine function; plugins wait for it, so register a plain one")
    try:
        whole = inspect.signature(function, eval_str=True)
    except (ValueError, NameError, TypeError, AttributeError, SyntaxError) as error:
        raise TypeError(f"host function {name!r}: its parameters cannot be read: {error}") from error
    parameters = list(whole.parameters.values())
    contexts = [p for p in parameters if p.annotation is ExecutionContext]
    contexts = contexts or [p for p in parameters if p.name == "ctx" and p.annotation is p.empty]
    if len(contexts) > 1 or any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in contexts):
        raise TypeError(f"host function {name!r}: one parameter may be the context, and no * or **")
    position = keyword = None
    if contexts:
        keyword = contexts[0].name
        if contexts[0].kind is not inspect.Parameter.KEYWORD_ONLY:
            position = parameters.index(contexts[0])
    signature = whole.replace(parameters=[p for p in parameters if p not in contexts])
    return HostFunction(
        name, function, requires, owner, _plain(signature), _checker(name, function, signature), position, keyword
    )


def _checker(
    name: str, function: Callable[..., Any], signature: inspect.Signature
) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    def arguments(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs

    # pydantic looks at these two: the stand-in then has the function's parameters, and returns what they became.
    arguments.__signature__ = signature  # type: ignore[attr-defined]  # inspect's protocol
    arguments.__annotations__ = {
        p.name: p.annotation for p in signature.parameters.values() if p.annotation is not p.empty
    }
    arguments.__module__ = getattr(function, "__module__", None) or __name__
    try:
        return validate_call(config=_CONFIG)(arguments)
    except (PydanticUserError, PydanticSchemaGenerationError) as error:
        raise TypeError(f"host function {name!r}: arguments of its types cannot be checked: {error}") from error


def _wrong(name: str, signature: inspect.Signature, error: ValidationError) -> str:
    """Return the text of an ArgError: one line, in the words of who calls the function, and no value in it."""
    if error.error_count() > _MAX_PROBLEMS:
        return f"{error.error_count()} values in the arguments are not of the types of host.{name}{signature}"
    problem = error.errors(include_url=False, include_context=False)[0]
    place, rest = problem["loc"][0], problem["loc"][1:]
    where = f"argument {place + 1}" if type(place) is int else f"argument {str(place)[:64]!r}"
    parameter = _parameter(signature, place)
    expected = "nothing" if parameter is None else _type_of(parameter)
    got = f"got {type(problem['input']).__name__}"
    kind = problem["type"]
    if kind.startswith("missing_"):
        got = "got nothing"
    elif rest:
        got = f"{got} at {'.'.join(str(part)[:64] for part in rest[:8])}"
    elif parameter is not None and not kind.endswith(("_type", "is_instance_of")):
        got = f"got another: {problem['msg'][:200]}"  # of the right type, yet out of its bounds
    return f"{where}: expected {expected}, {got}, in a call of host.{name}{signature}"[:_MAX_TEXT]


def _parameter(signature: inspect.Signature, place: object) -> inspect.Parameter | None:
    parameters = list(signature.parameters.values())
    if type(place) is not int:
        named = signature.parameters.get(str(place))
        return named or next((p for p in parameters if p.kind is p.VAR_KEYWORD), None)
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if place < len(positional):
        return positional[place]
    return next((p for p in parameters if p.kind is p.VAR_POSITIONAL), None)


def _type_of(parameter: inspect.Parameter) -> str:
    if parameter.annotation is parameter.empty:
        return "a value"
    return inspect.formatannotation(parameter.annotation)


def _plain(signature: inspect.Signature) -> inspect.Signature:
    """Return the signature as plugins see it: types without constraints, and no default that may be a secret."""
    shown = []
    for parameter in signature.parameters.values():
        annotation, default = parameter.annotation, parameter.default
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        if default is not parameter.empty and type(default) not in (bool, int, float, type(None)):
            default = _HIDDEN
        shown.append(parameter.replace(annotation=annotation, default=default))
    return signature.replace(parameters=shown)


def _grants(requires: GrantLike | Iterable[GrantLike] | None) -> tuple[Grant, ...]:
    if requires is None:
        return ()
    if isinstance(requires, str | Grant):
        return (as_grant(requires),)
    return tuple(as_grant(each) for each in requires)


@final
class HostRegistry:
    """The functions that plugins of one runtime may call; there is no other than a runtime's. Thread-safe.

    Plugins call ``host.add(1, 2)``, or ``host.maths.add(1, 2)`` for a function of a module. Arguments are checked by
    the function's annotations. A parameter that is annotated `ExecutionContext` (or is named ``ctx``, without
    annotation) gets the context of the call; plugins do not see it.
    """

    def __init__(self, audit: Callable[[AuditEvent], object] | None = None) -> None:
        """Begin empty. `audit` is told of every use and every refusal, such as by ``AuditLog().record``."""
        self._audit = audit
        self._lock = Lock()
        # Replaced, never changed, under the lock: readers need none.
        self._functions: Mapping[str, HostFunction] = {}

    def register(
        self,
        name: str,
        function: Callable[..., Any],
        *,
        requires: GrantLike | Iterable[GrantLike] | None = None,
        owner: str | None = None,
    ) -> None:
        """Let plugins that are granted `requires` (one or several) call `function` as `name`.

        Raises:
            ValueError: `name` is no name.
            TypeError: the function cannot be called by plugins.
            DuplicatedKey: there is one of this name.
            UnknownCapability, PolicyError: `requires` is no capability.
        """
        self._add(_checked(name, name), function, requires, owner)

    def register_module(
        self,
        module: str,
        name: str,
        function: Callable[..., Any],
        *,
        requires: GrantLike | Iterable[GrantLike] | None = None,
        owner: str | None = None,
    ) -> None:
        """Let plugins call `function` as ``module.name``. Raises as `register`."""
        self._add(f"{_checked(module, module)}.{_checked(name, name)}", function, requires, owner)

    @overload
    def host_fn(self, function: _F, /) -> _F: ...
    @overload
    def host_fn(
        self,
        /,
        *,
        name: str | None = None,
        module: str | None = None,
        requires: GrantLike | Iterable[GrantLike] | None = None,
    ) -> Callable[[_F], _F]: ...
    def host_fn(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        module: str | None = None,
        requires: GrantLike | Iterable[GrantLike] | None = None,
    ) -> Any:
        """Register a function, as a decorator: ``@rt.host_fn``, or with the name, module and capability it is to have.

        The function stays as it is. Raises as `register`.
        """

        def decorator(function: Callable[..., Any]) -> Callable[..., Any]:
            own = str(name or getattr(function, "__name__", ""))
            if module is None:
                self.register(own, function, requires=requires)
            else:
                self.register_module(module, own, function, requires=requires)
            return function

        return decorator if function is None else decorator(function)

    def _add(
        self,
        name: str,
        function: Callable[..., Any],
        requires: GrantLike | Iterable[GrantLike] | None,
        owner: str | None,
    ) -> None:
        made = _read(name, function, _grants(requires), owner)
        with self._lock:
            if name in self._functions:
                raise DuplicatedKey("host function", name, "remove the first, or give this one another name or module")
            self._functions = {**self._functions, name: made}

    def merge(self, other: "HostRegistry") -> None:
        """Take over all functions of another registry, or none. Raises DuplicatedKey."""
        theirs = other._functions
        with self._lock:
            for name in theirs:
                if name in self._functions and self._functions[name].function is not theirs[name].function:
                    raise DuplicatedKey("host function", name, "both registries have one")
            self._functions = {**self._functions, **theirs}

    def remove(self, name: str) -> bool:
        """Take a function back; return whether there was one."""
        with self._lock:
            left = dict(self._functions)
            found = left.pop(name, None)
            self._functions = left
            return found is not None

    def release(self, owner: str) -> list[str]:
        """Take back whatever `owner` registered; return the names."""
        with self._lock:
            gone = [name for name, each in self._functions.items() if each.owner == owner]
            self._functions = {name: each for name, each in self._functions.items() if each.owner != owner}
            return gone

    def get(self, name: str) -> HostFunction | None:
        """Return the function of this name (with its module in front, if it has one), or None."""
        return self._functions.get(name)

    def get_module(self, module: str) -> dict[str, HostFunction]:
        """Return the functions of a module by their names in it; none when there is no such module."""
        return {
            name.removeprefix(f"{module}."): each for name, each in self._functions.items() if each.module == module
        }

    def names(self, capabilities: Capabilities | None = None) -> list[str]:
        """Return all names, or those that a plugin with these `capabilities` can call, in order of registration."""
        return [
            name
            for name, each in self._functions.items()
            if capabilities is None or all(capabilities.has(grant) for grant in each.requires)
        ]

    def function_names(self) -> list[str]:
        """Return the names of the functions that are in no module."""
        return [name for name, each in self._functions.items() if each.module is None]

    def module_names(self) -> list[str]:
        """Return the names of the modules."""
        return list(dict.fromkeys(each.module for each in self._functions.values() if each.module is not None))

    def __contains__(self, name: object) -> bool:
        return name in self._functions

    def __len__(self) -> int:
        return len(self._functions)

    def invoke(
        self,
        name: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        context: ExecutionContext | None = None,
    ) -> Any:
        """Call a function for a plugin: look it up, ask for the capabilities, check the arguments, run it.

        Without a `context` nothing is granted.

        Raises:
            FunctionNotFound: there is no such function.
            CapabilityDenied: the plugin is not granted what it requires; nothing else was looked at.
            ArgError: the arguments do not fit.
            HostFunctionError: the function raised; its own error is the cause, for the host alone.
            ReentrantCall, LimitExceeded: as the function raised them.
        """
        context = ExecutionContext() if context is None else context
        found = self._functions.get(name)
        if found is None:
            self._tell(context, name, None, allowed=False, detail="there is no such function")
            raise FunctionNotFound(name, "the host", self.names(context.capabilities))
        self._gate(found, context)
        try:
            return found.call(context, *found.bind(args, {} if kwargs is None else kwargs))
        except _PASSED_ON as error:
            error.plugin = error.plugin or context.plugin or None
            raise
        except Exception as error:
            # Not louder: a plugin can make it happen as often as it likes.
            _log.debug("host function %s, called by plugin %r, raised", name, context.plugin, exc_info=True)
            failed = HostFunctionError(f"host function {name} raised {type(error).__name__}: {_message(error)}")
            failed.plugin = context.plugin or None
            raise failed from error

    def _gate(self, function: HostFunction, context: ExecutionContext) -> None:
        needs = ", ".join(str(grant) for grant in function.requires) or None
        try:
            for grant in function.requires:
                context.require_capability(grant, f"host.{function.name}")
        except CapabilityDenied as error:
            self._tell(context, function.name, error.needs, allowed=False, detail="not granted")
            raise
        self._tell(context, function.name, needs, allowed=True, detail="")

    def _tell(
        self, context: ExecutionContext, name: str, capability: str | None, *, allowed: bool, detail: str
    ) -> None:
        if self._audit is None:
            return
        event = AuditEvent(
            plugin=context.plugin,
            capability=capability,
            operation="host_call",
            target=name,
            allowed=allowed,
            detail=detail,
        )
        try:
            self._audit(event)
        except Exception:  # noqa: BLE001  # an audit that fails is the host's trouble, and no answer to a plugin
            _log.exception("the audit callback raised for %s of plugin %r", name, context.plugin)


def _checked(text: str, name: str) -> str:
    if not isinstance(text, str) or not text.isascii() or not text.isidentifier() or text.startswith("_"):
        raise ValueError(f"{name!r} is no name for a host function or module: letters, digits and _, not _ in front")
    return text


def _message(error: BaseException) -> str:
    try:
        return str(error)[:_MAX_TEXT]
    except Exception:  # noqa: BLE001  # the text of any exception whatever
        return "(its text cannot be made)"


def record_for_guest(error: BaseException) -> dict[str, Any]:
    """Return what a plugin is told of an error that `HostRegistry.invoke` raised: class and text, no traceback.

    The form is that of `ringfence.worker.failure.record`.
    """
    cls = type(error)
    text = _message(error)
    made: dict[str, Any] = {
        "kind": "exception",
        "module": cls.__module__,
        "type": cls.__qualname__,
        "bases": [base.__name__ for base in cls.__mro__ if base.__module__ == "builtins"],
        "message": text,
        "args": [text],
        "traceback": "",
        "notes": [],
    }
    if isinstance(error, OSError):
        made["filename"] = made["filename2"] = None
    if isinstance(error, CapabilityDenied):
        made["kind"] = "denied"  # by which the guest knows that it may raise it as what it is
        made["denied"] = [error.capability, error.operation or "", error.target, error.needs]
    return made
