"""The functions of a host, as plugins call them."""

import copy
import pickle
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, Strict

from ringfence.ipc.codec import Codec
from ringfence.plugins.audit import AuditEvent, AuditLog
from ringfence.plugins.context import ExecutionContext
from ringfence.plugins.errors import (
    CapabilityDenied,
    DuplicatedKey,
    FunctionNotFound,
    HostFunctionError,
    ReentrantCall,
    UnknownCapability,
)
from ringfence.plugins.host_functions import ArgError, HostRegistry, record_for_guest
from ringfence.pool.outcome import exception_from
from ringfence.sandbox.capabilities import Capabilities, Capability
from ringfence.worker.failure import record


@pytest.fixture(name="registry")
def _registry() -> HostRegistry:
    registry = HostRegistry()

    @registry.host_fn
    def add(a: int, b: int = 2, *rest: int, flag: bool = False, **more: float) -> float:
        return a + b + sum(rest) + sum(more.values()) + (1000 if flag else 0)

    return registry


@pytest.mark.parametrize(
    ("args", "kwargs", "value"),
    [
        ((1,), {}, 3),
        ((1, 5), {}, 6),
        ((1, 5, 10, 20), {}, 36),
        ((), {"a": 1, "b": 1}, 2),
        ((1,), {"flag": True}, 1003),
        ((1,), {"x": 0.5}, 3.5),
    ],
)
def test_arguments_arrive_as_declared(registry: HostRegistry, args: Any, kwargs: Any, value: Any) -> None:
    """Defaults, the rest, keywords and more keywords."""
    assert registry.invoke("add", args, kwargs) == value


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        (("1",), {}, "argument 1: expected int, got str"),
        ((1, "2"), {}, "argument 2: expected int, got str"),
        ((True,), {}, "argument 1: expected int, got bool"),
        ((1.0,), {}, "argument 1: expected int, got float"),
        ((1, 2, 3, "4"), {}, "argument 4: expected int, got str"),
        ((), {}, "argument 'a': expected int, got nothing"),
        ((1,), {"flag": 1}, "argument 'flag': expected bool, got int"),
        ((1,), {"x": "y"}, "argument 'x': expected float, got str"),
        ((None,), {}, "argument 1: expected int, got NoneType"),
    ],
)
def test_arguments_that_do_not_fit_are_named(registry: HostRegistry, args: Any, kwargs: Any, text: str) -> None:
    """Strictly: "1" is no int, nor is True. The value itself is not repeated."""
    with pytest.raises(ArgError) as caught:
        registry.invoke("add", args, kwargs)
    assert str(caught.value).startswith(text)
    assert isinstance(caught.value, TypeError)


def test_too_much_is_refused_and_bounds_are_explained() -> None:
    """What the function takes is in the text; constraints, the context and defaults that may be secret are not."""
    registry = HostRegistry()

    @registry.host_fn
    def take(n: Annotated[int, Field(gt=0)], xs: list[int], ctx: ExecutionContext, key: str = "s3cret") -> int:
        return n

    for args, text in (
        ((1, [1], "k", 4), "argument 4: expected nothing, got int"),
        ((0, [1]), "argument 1: expected int, got another: Input should be greater than 0"),
        ((1, [1, "2"]), "argument 2: expected list[int], got str at 1"),
        ((1, ["x"] * 100_000), "100000 values in the arguments"),
    ):
        with pytest.raises(ArgError) as caught:
            registry.invoke("take", args)
        assert str(caught.value).startswith(text)
        assert "host.take(n: int, xs: list[int], key: str = ...)" in str(caught.value)
    with pytest.raises(ArgError, match="argument 'ctx': expected nothing"):
        registry.invoke("take", (1, []), {"ctx": "mine"})


def test_the_context_goes_to_whoever_asks_and_is_no_argument() -> None:
    """By annotation or, without one, by the name ctx; first, last, or by keyword."""
    registry = HostRegistry()
    registry.register("first", lambda ctx, a: (ctx.plugin, a))

    def positional(a: int, context: ExecutionContext, /, b: int = 0) -> Any:
        return context.plugin, a, b

    def keyword(a: int, *rest: int, where: ExecutionContext) -> Any:
        return where.plugin, a, rest

    def text(ctx: str) -> str:
        return ctx

    for function in (positional, keyword, text):
        registry.register(function.__name__, function)
    context = ExecutionContext(plugin="p")
    assert registry.invoke("first", (1,), context=context) == ("p", 1)
    assert registry.invoke("first", (), {"a": 1}, context) == ("p", 1)
    assert registry.invoke("positional", (1, 2), context=context) == ("p", 1, 2)
    assert registry.invoke("positional", (1,), {"b": 2}, context) == ("p", 1, 2)
    assert registry.invoke("keyword", (1, 2), context=context) == ("p", 1, (2,))
    assert registry.invoke("text", ("plain",), context=context) == "plain"


def test_a_parameter_may_ask_for_less_strictness() -> None:
    """Annotated[..., Strict(False)] converts, for that parameter."""
    registry = HostRegistry()

    @registry.host_fn
    def loose(a: Annotated[int, Strict(False)], b: Annotated[tuple[int, ...], Strict(False)] = ()) -> Any:
        return a, b

    assert registry.invoke("loose", ("3", [1, 2])) == (3, (1, 2))


def test_the_capability_is_asked_for_before_anything_else() -> None:
    """Wrong arguments of a plugin that may not call say nothing about the function."""
    seen: list[AuditEvent] = []
    registry = HostRegistry(seen.append)
    ran: list[str] = []

    @registry.host_fn(module="chat", requires=Capability.PLUGIN_MESSAGE)
    def send(text: str) -> None:
        ran.append(text)

    with pytest.raises(CapabilityDenied, match="plugin:message") as caught:
        registry.invoke("chat.send", (1, 2, 3), context=ExecutionContext(plugin="other"))
    assert caught.value.plugin == "other"
    registry.invoke("chat.send", ("hello",), context=ExecutionContext(Capabilities(["plugin:message"]), plugin="p"))
    assert ran == ["hello"]
    assert [(e.plugin, e.capability, e.target, e.allowed) for e in seen] == [
        ("other", "plugin:message", "chat.send", False),
        ("p", "plugin:message", "chat.send", True),
    ]


def test_several_capabilities_are_all_needed() -> None:
    """And a scope of a requirement is kept to."""
    registry = HostRegistry()
    registry.register("both", lambda: 1, requires=["fs:read=/data", "time:read"])
    for granted in ([], ["time:read"], ["fs:read=/other", "time:read"]):
        with pytest.raises(CapabilityDenied):
            registry.invoke("both", context=ExecutionContext(Capabilities(granted)))
    assert registry.invoke("both", context=ExecutionContext(Capabilities(["fs:read=/", "time:read"]))) == 1


def test_an_unknown_function_names_those_that_can_be_called(registry: HostRegistry) -> None:
    """And those only; the refusal is audited."""
    log = AuditLog()
    registry = HostRegistry(log.record)
    registry.register("open_one", lambda: 1)
    registry.register("closed_one", lambda: 1, requires="fs:write")
    with pytest.raises(FunctionNotFound) as caught:
        registry.invoke("nothing", context=ExecutionContext(plugin="p"))
    assert caught.value.exports == ("open_one",)
    registry.invoke("open_one")


def test_an_error_of_the_function_stays_with_the_host() -> None:
    """The plugin learns class and text; the cause is there for the host; nothing of the traceback goes out."""
    registry = HostRegistry()

    @registry.host_fn
    def boom() -> None:
        raise KeyError("missing")

    with pytest.raises(HostFunctionError, match="boom raised KeyError: 'missing'") as caught:
        registry.invoke("boom", context=ExecutionContext(plugin="p"))
    assert isinstance(caught.value.__cause__, KeyError)
    told = record_for_guest(caught.value)
    assert told["traceback"] == ""
    assert __file__ not in str(told)


def test_what_means_something_to_the_plugin_is_passed_on() -> None:
    """A capability that the function itself asks for, and a call in a circle."""
    registry = HostRegistry()
    registry.register("ask", lambda ctx: ctx.require_capability("fs:write", "save", "/x"))

    @registry.host_fn
    def circle() -> None:
        raise ReentrantCall("a", ["a", "b"])

    with pytest.raises(CapabilityDenied) as denied:
        registry.invoke("ask", context=ExecutionContext(plugin="p"))
    with pytest.raises(ReentrantCall):
        registry.invoke("circle")
    told = record_for_guest(denied.value)
    assert told["denied"] == ["fs:write", "save", "/x", "fs:write"]


@pytest.mark.parametrize(
    "error",
    [HostFunctionError("no"), CapabilityDenied("fs:read", "open", "/x"), FunctionNotFound("f"), ArgError("argument 1")],
)
def test_records_have_the_form_that_workers_use(error: Exception) -> None:
    """The same keys as a record of a worker, and an exception can be made of it."""
    told = record_for_guest(error)
    assert set(told) == set(record(error, Codec()))
    rebuilt = exception_from(Codec().unpack(Codec().pack(told)))
    assert str(error) in str(rebuilt)


def test_an_error_without_a_text_is_told_all_the_same() -> None:
    """The exception's own __str__ raises."""

    class Bad(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    registry = HostRegistry()

    @registry.host_fn
    def boom() -> None:
        raise Bad

    with pytest.raises(HostFunctionError, match="cannot be made"):
        registry.invoke("boom")


def test_an_audit_that_raises_answers_no_plugin(registry: HostRegistry) -> None:
    """It is logged; the call goes on."""
    registry = HostRegistry(lambda _event: 1 / 0)
    registry.register("f", lambda: 1)
    assert registry.invoke("f") == 1


def test_names_are_names() -> None:
    """What could not be written in a plugin is refused, and what is reserved by the underscore."""
    registry = HostRegistry()
    for wrong in ("", "a b", "a.b", "_private", "1a", "é", "a\n"):
        with pytest.raises(ValueError, match="is no name"):
            registry.register(wrong, lambda: 1)
        with pytest.raises(ValueError, match="is no name"):
            registry.register_module(wrong, "f", lambda: 1)


def test_functions_are_looked_at_when_registered() -> None:
    """What plugins could not call is refused then, not at the first call."""
    registry = HostRegistry()

    async def later() -> None: ...

    def two(a: ExecutionContext, b: ExecutionContext) -> None: ...

    def star(*ctx: ExecutionContext) -> None: ...

    def unread(a: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    for wrong in (later, two, star, unread, 3, dict.fromkeys(())):
        with pytest.raises(TypeError, match="host function 'f'"):
            registry.register("f", wrong)  # type: ignore[arg-type]
    with pytest.raises(UnknownCapability):
        registry.register("f", lambda: 1, requires="fs:reed")
    assert len(registry) == 0


def test_a_name_is_given_once(registry: HostRegistry) -> None:
    """DuplicatedKey; merging is all or nothing."""
    with pytest.raises(DuplicatedKey):
        registry.register("add", lambda: 1)
    other = HostRegistry()
    other.register("new", lambda: 1)
    other.register("add", lambda: 1)
    with pytest.raises(DuplicatedKey):
        registry.merge(other)
    assert "new" not in registry
    other.remove("add")
    registry.merge(other)
    registry.merge(other)
    assert registry.names() == ["add", "new"]


def test_listing_and_taking_back(registry: HostRegistry) -> None:
    """By module, by capability, by owner."""
    registry.register_module("m", "f", lambda: 1, requires="fs:read", owner="ext")
    registry.register_module("m", "g", lambda: 1, owner="ext")
    assert registry.names() == ["add", "m.f", "m.g"]
    assert registry.names(Capabilities()) == ["add", "m.g"]
    assert registry.function_names() == ["add"]
    assert registry.module_names() == ["m"]
    assert list(registry.get_module("m")) == ["f", "g"]
    found = registry.get("m.f")
    assert found is not None
    assert (found.module, found.signature) == ("m", "()")
    assert registry.release("ext") == ["m.f", "m.g"]
    assert registry.remove("add") is True
    assert registry.remove("add") is False


def test_an_arg_error_survives_copying() -> None:
    """Like every public error."""
    error = ArgError("argument 1: expected int, got str")
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (type(again), str(again)) == (ArgError, str(error))


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(_VALUES, max_size=5), st.dictionaries(st.text(), _VALUES, max_size=3))
def test_whatever_is_passed_fits_or_is_an_arg_error(args: list[Any], kwargs: dict[str, Any]) -> None:
    """The function only ever sees what its annotations say; the text is one bounded line."""
    registry = HostRegistry()

    @registry.host_fn
    def typed(a: int, ctx: ExecutionContext, b: list[str] | None = None, *rest: bool, **more: bytes) -> str:
        assert type(a) is int
        assert isinstance(ctx, ExecutionContext)
        assert b is None or all(type(each) is str for each in b)
        assert all(type(each) is bool for each in rest)
        assert all(type(each) is bytes for each in more.values())
        return "ok"

    try:
        assert registry.invoke("typed", args, kwargs) == "ok"
    except ArgError as error:
        assert len(str(error)) < 5000


def test_a_refusal_is_told_as_one() -> None:
    """By its kind: else the plugin could not tell it from any other error."""
    told = record_for_guest(CapabilityDenied("fs:write", "host.save", None))
    assert (told["kind"], told["denied"]) == ("denied", ["fs:write", "host.save", None, "fs:write"])
    assert record_for_guest(ValueError("x"))["kind"] == "exception"
