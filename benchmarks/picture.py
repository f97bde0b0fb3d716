"""Draws the curves as SVG, readable on white and on black: transparent, in colours of middling brightness."""

import io
from collections.abc import Mapping
from typing import Any

# Text and axes; contrast 4.2 to white and 5.0 to black.
_GREY = "#7b8088"
# Never by the colour alone: each has a mark of its own.
_STYLES: Mapping[str, tuple[str, str, float]] = {
    "ringfence, untrusted": ("#e0561b", "o", 2.6),
    "ProcessPoolExecutor": ("#3d86c6", "s", 1.4),
    "multiprocessing.Pool.apply_async": ("#2f9e6b", "^", 1.4),
    "pebble.ProcessPool": ("#a566cc", "D", 1.4),
    "loky": ("#a88a1c", "v", 1.4),
}


def draw(data: Mapping[str, Any]) -> str:
    """Return the picture of what `benchmarks.curves` measured; the same values give the same text."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "ringfence",
        "font.family": "sans-serif",
        "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
        "font.size": 10,
        **{f"{part}.color": _GREY for part in ("text", "xtick", "ytick", "grid")},
        "axes.edgecolor": _GREY,
        "axes.labelcolor": _GREY,
        "axes.facecolor": "none",
        "legend.frameon": False,
    }
    with matplotlib.rc_context(settings):
        figure, (by_length, by_size) = pyplot.subplots(1, 2, figsize=(10.4, 5.0), sharey=True)
        lengths = data["lengths"]
        # 0 has no place on a logarithmic axis: it stands a step left of the smallest.
        sizes = [size or data["sizes"][1] / 16 for size in data["sizes"]]
        for name, rates in data["rates"].items():
            colour, mark, width = _STYLES[name]
            style = {"color": colour, "marker": mark, "markersize": 4, "linewidth": width}
            by_length.plot(lengths, rates["lengths"], label=name, **style)
            by_size.plot(sizes, rates["sizes"], **style)
        ideal = [data["workers"] / length for length in lengths]
        label = f"no cost at all: {data['workers']} / length"
        by_length.plot(lengths, ideal, color=_GREY, linestyle=":", label=label)

        by_length.set_title("by the time a task takes", fontsize=11)
        by_length.set_xlabel("work in a task")
        by_length.set_ylabel("tasks per second")
        ticks = {1e-6: "1 µs", 1e-5: "10 µs", 1e-4: "100 µs", 1e-3: "1 ms", 1e-2: "10 ms", 1e-1: "100 ms"}
        _axis(by_length, ticks)
        by_size.set_title("by the bytes it carries there and back", fontsize=11)
        by_size.set_xlabel("size of argument and of result")
        ticks = {
            sizes[0]: "0", 64: "64 B", 1 << 10: "1 KiB", 16 << 10: "16 KiB", 128 << 10: "128 KiB", 2 << 20: "2 MiB",
            64 << 20: "64 MiB",
        }  # fmt: skip
        _axis(by_size, ticks)
        rates = [rate for each in data["rates"].values() for kind in each.values() for rate in kind]
        by_length.set_ylim(min(rates) / 2, max(rates) * 2.5)
        figure.legend(loc="upper center", ncols=3, bbox_to_anchor=(0.5, 1.0), fontsize=9.5)
        how = f"{data['command']}: median of {data['rounds']} rounds in turn, {data['workers']} workers"
        caption = f"{how}\n{data['machine']}"
        figure.text(0.5, 0.005, caption, ha="center", va="bottom", fontsize=8)
        figure.tight_layout(rect=(0, 0.07, 1, 0.88))
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _axis(axes: Any, ticks: Mapping[float, str]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(list(ticks), labels=list(ticks.values()), fontsize=8.5)
    axes.minorticks_off()
    axes.grid(True, alpha=0.35, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
