"""Write the files that show the progress of a run.

These are sample grids and loss curves as PNG, a page that opens offline, stats.jsonl and tensorboard events.
"""

from __future__ import annotations

import html
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastcyclegan.data.pixels import save_image
from fastcyclegan.tensor_files import write_atomically

PAGE = "index.html"
STATS = "stats.jsonl"
CURVES = "losses.png"


def read_stats(run: Path) -> list[dict[str, Any]]:
    """Return the records of stats.jsonl.

    Lines that are not records are skipped: a killed process may leave its last line unfinished.
    """
    file, records = run / STATS, []
    if not file.exists():
        return []
    for line in file.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("iteration"), int):
            records.append(record)
    return records


def _draw_panel(axes: Any, title: str, records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    iterations, positive = [record["iteration"] for record in records], True
    for name in names:
        values = [record[name] for record in records]
        axes.plot(iterations, values, label=name, linewidth=1)
        positive = positive and all(value >= 0 for value in values)
    axes.set(title=title, xlabel="iteration")
    if positive:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper right")


def draw_curves(
    records: Sequence[Mapping[str, Any]], panels: Mapping[str, Sequence[str]], path: Path
) -> None:
    """Plot the losses over the iterations, one panel for each title in ``panels``. Needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False)
    for place, (title, names) in zip(axes.flat, panels.items(), strict=True):
        _draw_panel(place, title, records, names)
    write_atomically(path, lambda partial: figure.savefig(partial, format="png", dpi=100))


_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{name}</title>
<style>
body{{font:14px sans-serif;margin:2em;max-width:1200px}}
img{{max-width:100%;image-rendering:pixelated}}
pre{{background:#f4f4f4;padding:1em;overflow:auto}}
.newest-first{{display:flex;flex-direction:column-reverse;align-items:flex-start}}
</style>
</head><body><h1>{name}</h1>
{curves}
<details><summary>Configuration</summary><pre>{config}</pre></details>
<div class="newest-first">
"""


class Report:
    """Writes the files in a run's folder that show its progress. Iterations count from 1.

    If ``resume_at`` is given, the records and sample grids of later iterations are dropped. They come from a
    process that was killed after it logged those iterations but before it saved its state.
    """

    def __init__(
        self,
        run: Path,
        name: str,
        config: Mapping[str, Any],
        panels: Mapping[str, Sequence[str]],
        resume_at: int | None = None,
    ) -> None:
        self.run, self.panels = run, panels
        self.losses = tuple(itertools.chain.from_iterable(panels.values()))
        self.samples = run / "samples"
        self.samples.mkdir(exist_ok=True)
        self.missing: list[str] = []
        self.can_draw = self._has("matplotlib")
        self.tensorboard = self._open_tensorboard(resume_at)
        if resume_at is not None:
            self._drop_after(resume_at)
        if not (run / PAGE).exists():
            self._begin_page(name, config)

    def _begin_page(self, name: str, config: Mapping[str, Any]) -> None:
        curves, settings = "", html.escape(json.dumps(config, indent=2))
        if self.can_draw:
            curves = f'<p><img src="{CURVES}" alt="loss curves" style="image-rendering:auto"></p>'
        text = _HEAD.format(name=html.escape(name), curves=curves, config=settings)
        (self.run / PAGE).write_text(text, encoding="utf-8")

    def _has(self, module: str) -> bool:
        try:
            __import__(module)
        except ImportError:
            self.missing.append(module)
            return False
        return True

    def _open_tensorboard(self, resume_at: int | None) -> Any:
        if not self._has("tensorboard"):
            return None
        from torch.utils.tensorboard import SummaryWriter

        purge_step = None if resume_at is None else resume_at + 1
        return SummaryWriter(str(self.run / "tensorboard"), purge_step=purge_step)

    def _drop_after(self, iteration: int) -> None:
        remaining = [record for record in read_stats(self.run) if record["iteration"] <= iteration]
        text = "".join(json.dumps(record) + "\n" for record in remaining)
        write_atomically(self.run / STATS, lambda partial: partial.write_text(text))
        page = self.run / PAGE
        if not page.exists():
            return
        lines = []
        for line in page.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            entry = re.match(r"<!--(\d+)-->", line)
            if entry is None or int(entry[1]) <= iteration:
                lines.append(line)
        write_atomically(page, lambda partial: partial.write_text("".join(lines), encoding="utf-8"))

    def add_stats(self, record: Mapping[str, Any]) -> None:
        """Append one record (iteration, epoch, each loss, lr, it/s) to stats.jsonl and to tensorboard."""
        with (self.run / STATS).open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self.tensorboard is None:
            return
        scalars = {f"loss/{name}": record[name] for name in self.losses}
        for name, value in {**scalars, "lr": record["lr"], "it/s": record["it/s"]}.items():
            self.tensorboard.add_scalar(name, value, record["iteration"])

    def add_samples(self, iteration: int, grid: Image.Image) -> Path:
        """Write a sample grid, append it to the page and redraw the curves. Return the grid's path."""
        path = self.samples / f"{iteration:07d}.png"
        save_image(grid, path)
        image = f'<img src="samples/{path.name}" alt="samples" loading="lazy">'
        entry = f"<!--{iteration}--><section><h3>iteration {iteration}</h3>{image}</section>\n"
        with (self.run / PAGE).open("a", encoding="utf-8") as file:
            file.write(entry)
        records = [record for record in read_stats(self.run) if set(self.losses) <= record.keys()]
        if self.can_draw and records:
            draw_curves(records, self.panels, self.run / CURVES)
        if self.tensorboard is not None:
            self.tensorboard.add_image("samples", np.asarray(grid), iteration, dataformats="HWC")
        return path

    def close(self) -> None:
        if self.tensorboard is not None:
            self.tensorboard.close()
