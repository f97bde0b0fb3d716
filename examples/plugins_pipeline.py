"""Load a folder of plugins that depend on each other, and let one call the others through their host.

python examples/plugins_pipeline.py
"""

from pathlib import Path

from ringfence import (
    ApiVersion,
    Capabilities,
    Capability,
    EngineConfig,
    LoaderConfig,
    PluginRuntime,
    RegistryConfig,
    RuntimeConfig,
)

PLUGINS = Path(__file__).parent / "plugins/pipeline"


def main():
    loader_config = (
        LoaderConfig()
        .with_host_api_version(ApiVersion(0, 18, 0))
        .with_engine_config(
            EngineConfig().with_capabilities(Capabilities([Capability.FS_READ, Capability.PLUGIN_CALL]))
        )
    )
    registry_config = RegistryConfig().with_max_plugins(10)
    runtime = PluginRuntime(
        RuntimeConfig().with_loader_config(loader_config).with_registry_config(registry_config)
    )

    # Plugins do not reach each other: what crosses is what the host decides to offer, and to whom.
    @runtime.host_fn(requires=Capability.PLUGIN_CALL)
    def call_plugin(name: str, function: str, data: object) -> object:
        return runtime.call(name, function, [data])

    plugins = runtime.load_directory(PLUGINS)
    print(f"Loaded {len(plugins)} plugins")
    for name in plugins:  # dependencies come first, whatever the folders are called
        runtime.init_plugin(name)
        print(f"- {name}")
    for path, error in plugins.failures.items():
        print(f"Not loaded: {path.parent.name}: {type(error).__name__}")
    result = runtime.call("data-processor", "process", ["input.csv"])
    print(f"Processing result: {result!r}")
    runtime.shutdown()


if __name__ == "__main__":
    main()
