"""Functions of the host that are called as plugins live."""

import pytest

from ringfence.plugins.hooks import LifecycleHooks


def test_hooks_chain_and_run_in_order() -> None:
    """Several for one phase; each with the plugin's name."""
    log: list[str] = []
    hooks = LifecycleHooks().on_init(lambda n: log.append(f"1 {n}")).on_init(lambda n: log.append(f"2 {n}"))
    assert hooks.run("init", "p") == []
    assert hooks.run("start", "p") == []
    assert log == ["1 p", "2 p"]


def test_each_phase_works_as_a_decorator() -> None:
    """With brackets the function keeps its name; without, it is registered all the same."""
    hooks = LifecycleHooks()
    log: list[object] = []

    @hooks.on_call()
    def timed(plugin: str, function: str, seconds: float) -> None:
        log.append((plugin, function, seconds))

    @hooks.on_error()
    def failed(plugin: str, error: BaseException) -> None:
        log.append((plugin, str(error)))

    @hooks.on_stop
    def stopped(plugin: str) -> None:
        log.append(plugin)

    hooks.called("p", "f", 0.5)
    hooks.failed("p", ValueError("no"))
    hooks.run("stop", "p")
    timed("p", "g", 1.0)
    assert log == [("p", "f", 0.5), ("p", "no"), "p", ("p", "g", 1.0)]
    assert failed.__name__ == "failed"
    assert stopped is hooks  # type: ignore[comparison-overlap]


def test_errors_are_collected_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """All hooks of the phase run, whatever those before raised; of calls and errors nobody hears."""
    log: list[str] = []
    hooks = LifecycleHooks().on_stop(lambda _n: 1 / 0).on_stop(log.append).on_call(lambda *_a: 1 / 0)
    assert [type(error) for error in hooks.run("stop", "p")] == [ZeroDivisionError]
    assert log == ["p"]
    hooks.called("p", "f", 0.5)
    assert caplog.text.count("ZeroDivisionError") == 2


def test_added_hooks_run_after_these_and_live_on() -> None:
    """What is registered on them later counts; set_hooks replaces, remove takes out."""
    log: list[str] = []
    base, more = LifecycleHooks(), LifecycleHooks()
    base.add_hooks(more)
    base.on_init(lambda _n: log.append("base"))
    more.on_init(lambda _n: log.append("more"))
    base.run("init", "p")
    assert log == ["base", "more"]
    base.set_hooks(more)
    base.run("init", "p")
    assert log == ["base", "more", "more"]
    assert base.remove(more) is True
    assert base.remove(more) is False
    base.run("init", "p")
    base.on_init(log.append).on_stop(log.append)
    assert base.remove(log.append) is True
    base.run("init", "p")
    assert log == ["base", "more", "more"]
    base.set_hooks(None)


def test_hooks_cannot_run_themselves() -> None:
    """A circle is refused when it would be made."""
    one, two, three = LifecycleHooks(), LifecycleHooks(), LifecycleHooks()
    one.add_hooks(two)
    two.add_hooks(three)
    for wrong in (one, two, three):
        with pytest.raises(ValueError, match="themselves"):
            wrong.set_hooks(wrong)
        with pytest.raises(ValueError, match="themselves"):
            three.add_hooks(wrong)


def test_a_hook_must_be_callable() -> None:
    """Found out when it is registered."""
    with pytest.raises(TypeError, match="on_init takes a function"):
        LifecycleHooks().on_init("print")  # type: ignore[call-overload]
