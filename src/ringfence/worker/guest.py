"""What runs in a plugin's locked-in worker: load the plugin, answer its host's calls, end by the book."""

import atexit
import faulthandler
import os
import resource
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

from ringfence.ipc import guest_messages as g
from ringfence.ipc.channel import Channel
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import ChannelClosed
from ringfence.ipc.types import TypeRegistry
from ringfence.sandbox.capabilities import Capabilities, Capability, Grant
from ringfence.sandbox.denials import Refusals
from ringfence.worker.guest_calls import Calls, flush
from ringfence.worker.guest_failure import failed
from ringfence.worker.guest_limits import Limits
from ringfence.worker.guest_loading import Loaded, PluginModules
from ringfence.worker.guest_log import HostHandler
from ringfence.worker.guest_stacks import write_stacks
from ringfence.worker.guest_state import Call, Settings, set_active
from ringfence.worker.guest_talk import Talk
from ringfence.worker.guest_watch import Watch

if TYPE_CHECKING:
    from ringfence.worker.guest_extension import Extension

__all__ = ["serve"]

_STDERR: Final = 2
# Bytes of stack: what a thread needs besides its calls, what one call of a C function by Python and back may take, and
# what there is by default.
_STACK_BASE: Final = 256 * 1024
_STACK_OF_A_CALL: Final = 2048
_STACK_USUAL: Final = 8 * 1024 * 1024
_PAGE: Final = 64 * 1024


def serve(fd: int) -> None:
    """Be a plugin: say HELLO, load what the host sends, run its calls until it says STOP or closes the socket.

    `fd` is our end of a pair of stream sockets, and is closed in the end. Whatever the plugin does is answered to the
    host; nothing of it is raised here.
    """
    if not faulthandler.is_enabled():
        # On the descriptor, so that it works whatever the plugin does to sys.stderr.
        faulthandler.enable(_STDERR)
    with Channel(fd, blocking=True) as channel:
        codec = Codec(TypeRegistry())
        try:
            version = ".".join(map(str, sys.version_info[:3]))
            channel.send(codec.pack([g.HELLO, g.PROTOCOL_VERSION, {"runtime": "python", "version": version}]))
            message = codec.unpack(channel.recv())
        except ChannelClosed:
            return
        if message[0] != g.LOAD:
            return
        guest = _Guest(channel, codec, Settings.from_data(message[1]))
        guest.install()
        try:
            guest.run()
        except ChannelClosed:
            pass  # the host is gone, and so is the reason to be
        finally:
            guest.remove()


class _Guest:
    """The parts of one guest, put together."""

    def __init__(self, channel: Channel, codec: Codec, settings: Settings) -> None:
        self._settings = settings
        self._codec = codec
        grants = settings.capabilities
        if settings.folder is not None and grants.is_unscoped(Capability.FS_READ):
            grants = grants.with_(f"{Capability.FS_READ}={settings.folder}")
        everything = Capabilities.all() | Capabilities(["fs:read=/", "fs:write=/", "fs:delete=/"])
        refusals = Refusals(
            grants if settings.sandboxed else everything,
            private_root=settings.private_root,
            home=settings.folder,
            holder="this plugin",
            remedy=_remedy,
        )
        known = ("call_depth", "instructions", "fs_ops", "net_ops")
        self._limits = Limits(**{name: settings.limits.get(name) for name in known})
        self._watch = Watch(refusals, self._limits, grants if settings.sandboxed else None)
        self._refusals = refusals
        self._calls = Calls(self._limits, refusals, self._watch)
        self._calls.told = settings.limits
        self._talk = self._calls.talk = Talk(
            channel, codec, settings, self._calls.perform, self._on_cancel, self._watch.report
        )
        self._handler = HostHandler(self._talk)
        self._modules = PluginModules([])
        self._loaded = False
        self._extension: Extension | None = None
        self._before = sys.dont_write_bytecode

    def install(self) -> None:
        """Put in place what plugin code finds around it."""
        # The libraries' folders are not the plugin's to write to; trying would only look like an attempt.
        sys.dont_write_bytecode = True
        _small_stacks(self._limits.call_depth)
        set_active(self._talk)
        self._handler.install()
        self._limits.install()
        self._watch.install(self._talk)
        _at_fork(self._talk)

    def remove(self) -> None:
        """End the threads, and take away again what install() put in place."""
        self._talk.finish()
        self._watch.remove()
        self._limits.remove()
        self._handler.remove()
        self._modules.remove()
        set_active(None)
        _at_fork(None)
        sys.dont_write_bytecode = self._before
        threading.stack_size(0)

    def run(self) -> None:
        """Load, serve, say BYE. Raises ChannelClosed when the host is gone."""
        self._talk.load(self._load)
        if not self._loaded:
            return
        try:
            self._talk.serve()
        finally:
            self._tear_down()
        atexit._run_exitfuncs()
        flush()
        self._watch.summarise()
        self._talk.send([g.BYE])

    def _load(self) -> list[Any]:
        """Return LOADED or LOAD_FAILED."""
        try:
            answer: list[Any] = [g.LOADED, self._import().describe()]
            self._loaded = True
        except BaseException as error:  # noqa: BLE001  # a module may raise anything; the host is told
            kind = "compile" if self._modules.failure is error else "exception"
            with self._watch.paused():
                answer = [g.LOAD_FAILED, failed(error, self._codec, refusals=self._refusals, kind=kind)]
        flush()
        self._watch.summarise()
        return answer

    def _import(self) -> Loaded:
        settings = self._settings
        main = settings.main
        if settings.working_dir is not None:
            os.chdir(settings.working_dir)
        if settings.bytecode is None:
            self._modules = PluginModules(settings.modules, settings.optimize)
        else:
            # Not at the top: few plugins come as bytecode.
            from ringfence.worker.container import read_container

            entries = read_container(settings.bytecode)[1]
            main = entries[0][0]
            self._modules = PluginModules(entries)
        self._modules.install()
        module = self._modules.run(main)
        loaded = Loaded(module, settings)
        if settings.extension is not None:
            # Not at the top: few plugins are one.
            from ringfence.worker.guest_extension import Extension

            self._extension = Extension(module, settings.extension)
            # So that the host waits for the teardown as for any cleanup, and hears what it raises.
            loaded.functions["cleanup"] = self._extension.cleanup_after(loaded.functions.get("cleanup"))
        self._calls.functions = loaded.functions
        return loaded

    def _tear_down(self) -> None:
        if self._extension is None:
            return
        try:
            self._extension.tear_down()
        except BaseException as error:  # noqa: BLE001  # the end goes on; there is no call that it could be the answer to
            with self._watch.paused():
                text = failed(error, self._codec)["traceback"]
            self._talk.send([g.LOG, 4, "ringfence.guest", f"teardown failed: {text}", {}])

    def _on_cancel(self, call: Call, running: list[Call]) -> None:
        with self._watch.paused():
            write_stacks(_STDERR, call, running)


def _small_stacks(depth: int | None) -> None:
    """Let threads reserve no more stack than calls so deep can use: where memory is limited all of it counts at once.

    With the usual 8 MiB a plugin of 10 MiB would have one thread, and calls that could overlap would wait.
    """
    if resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY:
        return
    wanted = _STACK_BASE + _STACK_OF_A_CALL * (sys.getrecursionlimit() if depth is None else depth)
    if wanted < _STACK_USUAL:
        threading.stack_size(-(-wanted // _PAGE) * _PAGE)


_talk_of_this_process: Talk | None = None
_fork_registered = False


def _at_fork(talk: Talk | None) -> None:
    """See to it that a child of this process, if the plugin may make one, does not speak for it."""
    global _talk_of_this_process, _fork_registered
    _talk_of_this_process = talk
    if not _fork_registered:
        _fork_registered = True
        os.register_at_fork(after_in_child=_in_child)


def _in_child() -> None:
    if _talk_of_this_process is not None:
        _talk_of_this_process.abandon()


def _remedy(grant: Grant) -> str:
    """Return how a plugin's author asks for a grant."""
    lines = f'capabilities = ["{grant.capability}"]'
    if grant.scope is not None:
        lines += f' and scopes = {{ "{grant.capability}" = ["{grant.scope}"] }}'
    return f"ask for it in the manifest, {lines}, and let the host allow it"
