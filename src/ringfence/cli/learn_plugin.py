"""Runs a plugin locked in, with grants that its manifest need not declare yet: on a copy of its folder."""

import shutil
import tempfile
from pathlib import Path

import tomli_w

from ringfence.cli.learn_output import manifest_with
from ringfence.cli.learn_program import Program
from ringfence.cli.learn_proof import Attempt

__all__ = ["attempt_plugin"]


def attempt_plugin(program: Program, grants: list[str], limits: dict[str, str]) -> Attempt:
    """Load the plugin with these grants, and call its function, if one was named."""
    from ringfence.errors import RingfenceError
    from ringfence.plugins.config import LoaderConfig, RuntimeConfig
    from ringfence.plugins.manifest import Manifest
    from ringfence.plugins.runtime import PluginRuntime
    from ringfence.sandbox.capabilities import Capabilities
    from ringfence.sandbox.refusal import Refusal

    assert program.manifest is not None
    function, args = program.call
    refusals: list[Refusal] = []
    with tempfile.TemporaryDirectory(prefix="ringfence-learn-") as scratch:
        copy = Path(scratch, Path(program.folder).name)
        shutil.copytree(program.folder, copy, symlinks=True)
        manifest = copy / program.manifest.name
        manifest.write_text(tomli_w.dumps(manifest_with(program.manifest, grants, limits)), encoding="utf-8")
        wanted = Capabilities(Manifest.from_file(manifest).grants())
        allowed = LoaderConfig().with_capabilities(wanted)
        Path(scratch).chmod(0o755)
        sentence, code = None, 0
        runtime = PluginRuntime(RuntimeConfig(loader_config=allowed))
        try:
            try:
                handle = runtime.load(copy)
                if function is not None:
                    handle.call(function, args)
            except RingfenceError as error:
                sentence, code = f"{type(error).__name__}: {error}", 1
            for event in runtime.audit.events(allowed=False):
                needs = event.detail.removeprefix("needs ").replace(str(copy), program.folder)
                target = None if event.target is None else event.target.replace(str(copy), program.folder)
                refusals.append(Refusal(
                    capability=(event.capability or "").partition("=")[0], operation=event.operation, target=target,
                    needs=needs, handled=code == 0, plugin=event.plugin, at=event.at,
                ))  # fmt: skip
        finally:
            runtime.shutdown()
    return Attempt(code, refusals, sentence)
