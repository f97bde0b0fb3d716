"""An extension's class runs as a sandboxed plugin, with the trace that it has in an instance."""

from typing import Any

import pytest
from guest_peer import Peer, settings

from ringfence.ipc import guest_messages as g

_SOURCE = """
    import uuid
    from ringfence.ext import OpaqueList, PluginEXT, StaticPluginEXT, define_plugin

    trace = []
    FAIL = None

    def step(name):
        trace.append(name)
        print(name, flush=True)
        if name == FAIL: raise RuntimeError(name)

    @define_plugin
    class FooPlugin(StaticPluginEXT, PluginEXT):
        UUID = uuid.UUID("cdb726aa-8656-486f-a5b5-ff09f37a83fb")
        NAME = "__EXT_FOO"
        DESCRIPTION = "Provides foo-related features"

        def __init__(self): self.instance = None
        @classmethod
        def new(cls, _ext: OpaqueList):
            step("new"); return cls()
        def attach_to(self, instance):
            self.instance = instance; step("attach_to")
        def initialize(self):
            assert self.instance() is not None
            global the_one
            the_one = self
            step("initialize")
        def teardown(self): step("teardown")

    def steps(): return trace
    def sees():
        instance = the_one.instance()
        instance.log.info("from within")
        from ringfence.api.ext.hylog import hyerror, hyinfo
        hyinfo(instance, "{} and {}", 1, 2)
        hyerror(the_one.instance, "by reference")
        return [instance.host.add(1, 2), list(instance.extensions), instance.get_plugin_ext(FooPlugin) is the_one,
                instance.get_plugin_ext(dict)]
"""


def test_the_steps_are_those_of_an_instance() -> None:
    """new, attach_to, initialize while it is loaded, teardown at the end."""
    with Peer(settings(_SOURCE, extension="__EXT_FOO")) as peer:
        assert set(peer.loaded[1]["functions"]) == {"steps", "sees", "step", "cleanup"}
        assert peer.call("steps") == ["new", "attach_to", "initialize"]
        assert peer.stop() == ("new\nattach_to\ninitialize\nteardown\n", "")


def test_its_instance_is_what_the_host_offers() -> None:
    """Host functions and the log; no other extension."""
    with Peer(settings(_SOURCE, extension="__EXT_FOO")) as peer:
        number = peer.start("sees")
        asked = peer.hear(g.HOST_CALL)
        assert asked[2:] == [number, "add", [1, 2], {}]
        peer.send([g.HOST_RESULT, asked[1], 3])
        assert peer.answer(number)[2] == [3, ["__EXT_FOO"], True, None]
        assert [(message[1], message[3], message[4]["module"]) for message in peer.heard(g.LOG)] == [
            (2, "from within", "plugin"),
            (2, "1 and 2", "plugin"),
            (4, "by reference", "plugin"),
        ]


@pytest.mark.parametrize(
    ("step", "printed"),
    [
        ("new", b"new\n"),
        ("attach_to", b"new\nattach_to\nteardown\n"),
        ("initialize", b"new\nattach_to\ninitialize\nteardown\n"),
    ],
)
def test_a_step_that_raises_ends_the_load(step: str, printed: bytes) -> None:
    """What was attached is torn down; the error is the step's."""
    source = _SOURCE.replace("FAIL = None", f"FAIL = {step!r}")
    with Peer(settings(source, extension="__EXT_FOO")) as peer:
        assert peer.loaded[0] == g.LOAD_FAILED
        record: dict[str, Any] = peer.loaded[1]
        assert (record["type"], record["message"]) == ("RuntimeError", step)
        assert "ringfence" not in record["traceback"]
        assert peer.process.communicate(timeout=20)[0] == printed


def test_a_teardown_that_raises_is_told_of() -> None:
    """In the log; the end goes on."""
    source = _SOURCE.replace("FAIL = None", "FAIL = 'teardown'")
    with Peer(settings(source, extension="__EXT_FOO")) as peer:
        peer.stop()
        (message,) = peer.heard(g.LOG)
        assert message[1] == 4
        assert "RuntimeError: teardown" in message[3]


def test_the_teardown_is_its_cleanup() -> None:
    """The host asks for it as of any plugin, after the plugin's own, hears what it raises, and it is done once."""
    source = _SOURCE.replace("FAIL = None", "FAIL = 'teardown'") + "    async def cleanup(): step('own')\n"
    with Peer(settings(source, extension="__EXT_FOO")) as peer:
        assert peer.fail("cleanup")["message"] == "teardown"
        assert peer.stop() == ("new\nattach_to\ninitialize\nown\nteardown\n", "")
        assert peer.heard(g.LOG) == []


def test_an_extension_that_is_not_there_is_said() -> None:
    """By its name."""
    with Peer(settings(_SOURCE, extension="__EXT_BAR")) as peer:
        assert "'__EXT_BAR'" in peer.loaded[1]["message"]


def test_a_plugin_without_extension_pays_nothing_for_it() -> None:
    """Nothing of ringfence.plugins is imported."""
    source = "import sys\ndef f(): return [name for name in sys.modules if name.startswith('ringfence.plugins')]"
    with Peer(settings(source)) as peer:
        assert peer.call("f") == []
