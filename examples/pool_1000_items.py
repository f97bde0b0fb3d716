"""Spread a thousand items over four workers of one plugin.

python examples/pool_1000_items.py
"""

from pathlib import Path

from ringfence import PluginPool, PoolConfig

PLUGINS = Path(__file__).parent / "plugins"


def main():
    config = PoolConfig().with_size(4).with_restart_on_crash(True).with_plugin_dirs(PLUGINS)
    with PluginPool("worker", config) as pool:
        futures = [
            pool.submit(lambda plugin, item=item: plugin.call("process", [float(item)])) for item in range(1000)
        ]
        pool.wait()
        print(f"Processed {len(futures)} items")
        answers = [future.result() for future in futures]
    print("Their squares add up to", sum(square for square, _ in answers))
    print("Workers:", len({worker for _, worker in answers}))


if __name__ == "__main__":
    main()
