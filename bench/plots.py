"""Draw results as plots. Needs matplotlib.

The plots show step time by provider, images per second by batch size, memory by image size, and the roofline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.figures import Results, Row, speed_up
from fastcyclegan.config import ModelSettings

if TYPE_CHECKING:
    from bench.step_work import Chip


def draw(results: Results, folder: Path, stem: str) -> list[Path]:
    """Draw every plot for which the results contain rows, as PNG and SVG, and return the files."""
    images: dict[str, Callable[[Any, Results], bool]] = {
        "step_time": _draw_step_time,
        "images_by_batch": _draw_images_by_batch,
        "memory_by_size": _draw_memory_by_size,
        "roofline": _draw_roofline,
    }
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    written = []
    for name, fill in images.items():
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
    """Return the rows of a bench, without those of other recipes: the plots show the default one."""
    default = ModelSettings.model
    return [row for row in results.rows if row.file == file and row.info.get("recipe", default) == default]


def _draw_step_time(axes: Any, results: Results) -> bool:
    """Draw the step times of the first training group as bars, with lines from minimum to maximum."""
    steps = _rows_of(results, "bench_train_step.py")
    if not steps:
        return False
    first = steps[0]
    rows = results.groups[first.group][::-1]
    medians, below, above, most = [], [], [], []
    for row in rows:
        spread = row.time.scaled(1e3)
        medians.append(spread.median)
        below.append(spread.median - spread.least)
        above.append(spread.most - spread.median)
        most.append(spread.most)
    names, colors = [row.provider for row in rows], [_color(row) for row in rows]
    axes.barh(names, medians, xerr=[below, above], color=colors, capsize=3)
    for y, (row, right) in enumerate(zip(rows, most, strict=True)):
        axes.text(right, y, f"  {speed_up(row, first).median:.2f}x", va="center", fontsize=8)
    axes.set(xlabel="ms per iteration (bar: median, line: min to max)", title=first.group)
    axes.set_xlim(right=1.12 * max(most))
    return True


def _draw_images_by_batch(axes: Any, results: Results) -> bool:
    """Draw the generator's images per second by batch size, one line per provider and image size."""
    lines: dict[tuple[str, int], list[tuple[int, float]]] = {}
    colors = {}
    for row in _rows_of(results, "bench_generator.py"):
        if row.rate is not None:
            point = row.info["batch"], row.rate[0].median
            lines.setdefault((row.provider, row.info["size"]), []).append(point)
            colors[row.provider] = _color(row)
    sizes = sorted({size for _, size in lines})
    styles = dict(zip(sizes, ("-", "--", ":", "-."), strict=False))
    batches: set[int] = set()
    for (provider, size), points in lines.items():
        x, y = zip(*sorted(points, key=lambda point: point[0]), strict=True)
        label, style = f"{provider}, {size}x{size}", styles.get(size, "-")
        axes.plot(x, y, style, marker="o", color=colors[provider], label=label)
        batches.update(x)
    axes.set(xlabel="images per batch", ylabel="images/s", title="generator")
    axes.set_ylim(bottom=0)
    axes.set_xticks(sorted(batches))
    axes.grid(alpha=0.3)
    if lines:
        axes.legend(fontsize=6, ncols=2)
    return bool(lines)


def _draw_memory_by_size(axes: Any, results: Results) -> bool:
    """Draw the peak memory of the generator and the training step by the number of pixels per batch."""
    kinds = {
        "bench_generator.py": ("translating", "o"),
        "bench_train_step.py": ("training", "s"),
    }
    lines: dict[tuple[str, str], list[Row]] = {}
    sizes = set()
    for row in results.rows:
        if row.file in kinds and row.info.get("peak_bytes"):
            sizes.add(_megapixels(row))
            if row.info.get("identity", True):
                lines.setdefault((row.provider, row.file), []).append(row)
    for (provider, file), rows in lines.items():
        rows.sort(key=_megapixels)
        kind, marker = kinds[file]
        x, y = [_megapixels(row) for row in rows], [row.info["peak_bytes"] / 2**20 for row in rows]
        axes.plot(x, y, marker=marker, color=_color(rows[0]), label=f"{provider}, {kind}")
    axes.set(xlabel="megapixels per batch", ylabel="peak memory, MiB", title="memory by size")
    axes.set(xscale="log", yscale="log")
    ticks = sorted(sizes)
    axes.set_xticks(ticks, [f"{x:.3g}" for x in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    if lines:
        axes.legend(fontsize=6, ncols=2)
    return bool(lines)


def _megapixels(row: Row) -> float:
    return float(row.info["batch"] * row.info["size"] ** 2 / 1e6)


def _draw_roofline(axes: Any, results: Results) -> bool:
    """Draw the measured ceilings, each layer of a training step at its ceiling, and the timed steps."""
    chips = chips_of(results)
    steps = []
    for row in _rows_of(results, "bench_train_step.py"):
        # The floor is computed for networks of the default width.
        if row.info.get("precision") in chips and row.info.get("ngf") == 64:
            steps.append(row)
    if not chips or not steps:
        return False
    best = min(steps, key=lambda row: row.time.median / row.info["batch"])
    intensities = [2.0**n for n in range(-4, 14)]
    for (precision, chip), style in zip(chips.items(), ("-", "--"), strict=False):
        rates = _ceilings(chip, intensities)
        axes.plot(intensities, rates, style, color="black", label=f"ceilings, {precision}")
    for row in steps:
        if row.group == best.group:
            _draw_step_under_the_roof(axes, row, chips[row.info["precision"]], row is best)
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte of minimum traffic", ylabel="TFLOP/s")
    size = f"{best.info['size']}x{best.info['size']}"
    axes.set_title(f"roofline of a training step, {size} (dots: layers at their ceiling)")
    axes.legend(fontsize=6)
    axes.grid(alpha=0.3)
    return True


def _ceilings(chip: Chip, intensities: Sequence[float]) -> list[float]:
    """Return the highest possible TFLOP/s at each of ``intensities``, in FLOP per byte."""
    return [min(chip.matrix, x * chip.bandwidth) / 1e12 for x in intensities]


def _draw_step_under_the_roof(axes: Any, row: Row, chip: Chip, with_layers: bool) -> None:
    from bench.step_work import step_work

    info = row.info
    work = step_work(info["size"], info["batch"], info["blocks"], info["identity"], info["precision"])
    flops = sum(each.calls * each.flops for each in work)
    moved = sum(each.calls * each.bytes for each in work)
    label = f"{row.provider}, the whole step in {info['precision']}"
    axes.plot(flops / moved, flops / row.time.median / 1e12, "s", color=_color(row), label=label)
    if with_layers:
        layers = [each.flops / each.bytes for each in work if each.flops]
        axes.plot(layers, _ceilings(chip, layers), ".", color="black", markersize=5)


def chips_of(results: Results) -> dict[str, Chip]:
    """Return the ceilings that were measured in the same run, by precision."""
    from bench.step_work import Chip

    rows = {row.provider: row for row in _rows_of(results, "bench_ceilings.py")}
    if not {"copy", "launch"} <= rows.keys():
        return {}
    bandwidth, launch = rows["copy"].rate, rows["launch"].time.median
    assert bandwidth is not None
    chips = {}
    for precision in ("fp32", "bf16"):
        row = rows.get(f"matmul {precision}")
        if row is not None and row.rate is not None:
            source = f"measured on {results.machine['hardware']}"
            chips[precision] = Chip(row.rate[0].median * 1e9, bandwidth[0].median * 1e9, launch, source)
    return chips


_COLORS = {
    "official": "tab:gray",
    "official_strict": "silver",
    "official_bf16": "tab:orange",
    "official_compiled": "tab:brown",
}
_COLORS |= {"official_max_autotune": "tab:purple", "ours": "tab:cyan", "ours_compiled": "tab:blue"}
_COLORS["ours_without_kernels"] = "tab:olive"


def _color(row: Row) -> str:
    return _COLORS.get(row.provider, "black")
