"""Results as pictures: step time by provider, images a second by batch, memory by size, and the roofline.
Needs matplotlib.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.figures import Results, Row, speed_up


def draw(results: Results, folder: Path, stem: str) -> list[Path]:
    """Draw what the results have rows for, each as PNG and SVG, and return the files. Needs matplotlib."""
    pictures: dict[str, Callable[[Any, Results], bool]] = {
        "step_time": _draw_step_time,
        "images_by_batch": _draw_images_by_batch,
        "memory_by_size": _draw_memory_by_size,
        "roofline": _draw_roofline,
    }
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    written = []
    for name, fill in pictures.items():
        figure = Figure(figsize=(8, 4))
        FigureCanvasAgg(figure)
        if not fill(figure.subplots(), results):
            continue
        figure.text(0.005, 0.005, results.title, fontsize=6, color="gray")
        figure.set_layout_engine("constrained", rect=(0, 0.03, 1, 0.97))
        for suffix in ("png", "svg"):
            written.append(folder / f"{stem}{name}.{suffix}")
            figure.savefig(written[-1], dpi=120)
    return written


def _rows_of(results: Results, file: str) -> list[Row]:
    return [row for row in results.rows if row.file == file]


def _draw_step_time(axes: Any, results: Results) -> bool:
    """Bars of the first training step's group, with least and most."""
    groups = [rows for rows in results.groups.values() if rows[0].file == "bench_train_step.py"]
    if not groups:
        return False
    rows = groups[0][::-1]
    spreads = [row.each.scaled(1e3) for row in rows]
    errors = [[s.median - s.least for s in spreads], [s.most - s.median for s in spreads]]
    axes.barh(
        [row.provider for row in rows],
        [s.median for s in spreads],
        xerr=errors,
        color=[_color(row) for row in rows],
        capsize=3,
    )
    for y, (row, spread) in enumerate(zip(rows, spreads, strict=True)):
        axes.text(spread.most, y, f"  {speed_up(row, groups[0][0]).median:.2f}x", va="center", fontsize=8)
    axes.set(xlabel="ms an iteration (bar: median, line: least to most)", title=groups[0][0].group)
    axes.set_xlim(right=1.12 * max(s.most for s in spreads))
    return True


def _draw_images_by_batch(axes: Any, results: Results) -> bool:
    """Images a second of the generator by the number of pictures, a line for each provider and size."""
    rows = [row for row in _rows_of(results, "bench_generator.py") if row.rate is not None]
    lines: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        lines.setdefault((row.provider, row.info["size"]), []).append(row)
    styles = dict(zip(sorted({size for _, size in lines}), ("-", "--", ":", "-."), strict=False))
    for (provider, size), found in lines.items():
        found.sort(key=lambda row: row.info["batch"])
        batches = [row.info["batch"] for row in found]
        rates = [row.rate[0].median for row in found if row.rate]
        axes.plot(
            batches,
            rates,
            styles.get(size, "-"),
            marker="o",
            color=_color(found[0]),
            label=f"{provider}, {size}x{size}",
        )
    axes.set(xlabel="pictures in a batch", ylabel="images/s", title="generator")
    axes.set_ylim(bottom=0)
    axes.set_xticks(sorted({row.info["batch"] for row in rows}))
    axes.grid(alpha=0.3)
    if lines:
        axes.legend(fontsize=6, ncols=2)
    return bool(lines)


def _draw_memory_by_size(axes: Any, results: Results) -> bool:
    """Peak memory of the generator's and the training step's rows by the number of pixels in a batch."""
    rows = [
        row
        for row in results.rows
        if row.info.get("peak_bytes") and row.file in ("bench_generator.py", "bench_train_step.py")
    ]
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        kind = "training" if row.file == "bench_train_step.py" else "translating"
        if row.info.get("identity", True):
            lines.setdefault((row.provider, kind), []).append(row)
    for (provider, kind), found in lines.items():
        found.sort(key=_pixels)
        x, y = [_pixels(row) / 1e6 for row in found], [row.info["peak_bytes"] / 2**20 for row in found]
        axes.plot(
            x,
            y,
            marker="s" if kind == "training" else "o",
            color=_color(found[0]),
            label=f"{provider}, {kind}",
        )
    axes.set(
        xlabel="megapixels in a batch",
        ylabel="peak memory, MiB",
        title="memory by size",
        xscale="log",
        yscale="log",
    )
    axes.set_xticks(ticks := sorted({_pixels(row) / 1e6 for row in rows}), [f"{x:.3g}" for x in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    if lines:
        axes.legend(fontsize=6, ncols=2)
    return bool(lines)


def _pixels(row: Row) -> int:
    return int(row.info["batch"] * row.info["size"] ** 2)


def _draw_roofline(axes: Any, results: Results) -> bool:
    """The ceilings that were measured, where each layer of a training step lies under them, and the step as
    it was timed.
    """
    from bench.roofline import step_work

    chips = chips_of(results)
    # The floor is that of networks of the default width.
    steps = [
        row
        for row in _rows_of(results, "bench_train_step.py")
        if row.info.get("precision") in chips and row.info.get("ngf") == 64
    ]
    if not chips or not steps:
        return False
    best = min(steps, key=lambda row: row.each.median / row.info["batch"])
    intensities = [2.0**n for n in range(-4, 14)]
    for (precision, chip), style in zip(chips.items(), ("-", "--"), strict=False):
        rates = [min(chip.matrix, n * chip.bandwidth) / 1e12 for n in intensities]
        axes.plot(intensities, rates, style, color="black", label=f"ceilings, {precision}")
    for row in (row for row in steps if row.group == best.group):
        work = step_work(
            row.info["size"],
            row.info["batch"],
            row.info["blocks"],
            row.info["identity"],
            row.info["precision"],
        )
        flops, moved = (sum(w.calls * getattr(w, name) for w in work) for name in ("flops", "bytes"))
        label = f"{row.provider}, the whole step in {row.info['precision']}"
        axes.plot(flops / moved, flops / row.each.median / 1e12, "s", color=_color(row), label=label)
        if row is best:
            chip = chips[row.info["precision"]]
            layers = [each.flops / each.bytes for each in work if each.flops]
            rates = [min(chip.matrix, x * chip.bandwidth) / 1e12 for x in layers]
            axes.plot(layers, rates, ".", color="black", markersize=5)
    axes.set(xscale="log", yscale="log", xlabel="FLOP a byte that must move", ylabel="TFLOP/s")
    axes.set_title(
        f"roofline of a training step, {best.info['size']}x{best.info['size']} (dots: layers at their"
        " ceiling)"
    )
    axes.legend(fontsize=6)
    axes.grid(alpha=0.3)
    return True


def chips_of(results: Results) -> dict[str, Any]:
    """Return the ceilings that the run itself has measured, by precision."""
    from bench.roofline import Chip

    rows = {row.provider: row for row in _rows_of(results, "bench_ceilings.py")}
    if not {"copy", "launch"} <= rows.keys():
        return {}
    bandwidth, launch = rows["copy"].rate, rows["launch"].each.median
    assert bandwidth is not None
    found = {}
    for precision in ("fp32", "bf16"):
        row = rows.get(f"matmul {precision}")
        if row is not None and row.rate is not None:
            source = f"measured on {results.machine['hardware']}"
            found[precision] = Chip(row.rate[0].median * 1e9, bandwidth[0].median * 1e9, launch, source)
    return found


_COLORS = {
    "official": "tab:gray",
    "official_strict": "silver",
    "official_bf16": "tab:orange",
    "official_compiled": "tab:brown",
}
_COLORS |= {"official_max_autotune": "tab:purple", "ours": "tab:cyan", "ours_compiled": "tab:blue"}


def _color(row: Row) -> str:
    return _COLORS.get(row.provider, "black")
