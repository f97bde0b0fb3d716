"""Put an application together: an instance with the logger, the plugin runtime and an extension, and two plugins.

One class is in it twice, as an extension in this process, where it is trusted, and as a plugin in a locked-in one.

python examples/both_seeds.py
"""

import sys
from pathlib import Path

from ringfence import Capability, LoaderConfig, PluginRuntime, RuntimeConfig
from ringfence.api import ApplicationInfo, InstanceCreateInfo, InstanceEXT, Version, create_instance
from ringfence.api.ext.hylog import LogCreateInfoEXT, LogLevelEXT

PLUGINS = Path(__file__).parent / "plugins"

# As an extension it is code like any other: imported, by whichever way.
sys.path.insert(0, str(PLUGINS / "counter"))
import main as counter  # noqa: E402


def say(text):
    # One write: messages come in threads of the runtime's, in the middle of a line that is printed piece by piece.
    sys.stdout.write(f"{text}\n")


def print_msg(msg):
    # Messages out of a plugin have its name.
    say(f"[{getattr(msg, 'plugin', 'host')}] {msg.level.name} {msg.message}")


def main():
    capabilities = ["stdout:write", "logging", "plugin:message"]
    info = InstanceCreateInfo(
        application_info=ApplicationInfo("Notebook", Version.parse("0.1.0"), "Hyperion", Version.parse("0.1.1")),
        enabled_extensions=[InstanceEXT.LOGGER, InstanceEXT.PLUGIN_RUNTIME, counter.Counter.NAME],
        ext=[
            LogCreateInfoEXT(level=LogLevelEXT.INFO, callback=print_msg),
            # Taken by the runtime's extension, as the one before is by the logger's.
            RuntimeConfig()
            .with_call_timeout(30)
            .with_loader_config(LoaderConfig().with_capabilities(capabilities)),
        ],
    )
    with create_instance(info) as instance:
        rt = instance.get_plugin_ext(PluginRuntime)
        published = []

        @rt.host_fn(requires=Capability.PLUGIN_MESSAGE)
        def publish(text: str) -> int:
            published.append(text)
            return len(published)

        rt.load_manifest(PLUGINS / "talker/plugin.toml")
        rt.load_manifest(PLUGINS / "counter/plugin.toml")
        say(f"answer: {rt.call('talker', 'process', ['data'])}")
        say(f"published: {rt.call('talker', 'publish', ['the news'])} {published}")
        say(f"the same steps: {rt.call('counter', 'trace') == counter.steps}")
        say("and now the end:")
    # Plugins stop and clean up, the last one first; then the extensions go, the last one first, the logger last.


if __name__ == "__main__":
    main()
