"""Write the files that show the progress of a run.

These are sample grids and loss curves as PNG, a page that opens offline, stats.jsonl and tensorboard events.
Only stats.jsonl grows with each log line; ``disk.py`` estimates the size of them all.
"""

from __future__ import annotations

import html
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from fastcyclegan.tensor_files import write_atomically
from fastcyclegan.training.evaluation_history import PROTOCOL, History
from fastcyclegan.training.evaluation_page import draw_evaluations, section
from fastcyclegan.training.safe_write import append, naming
from fastcyclegan.training.sample_page import SamplePage
from fastcyclegan.training.thinned import Thinned
from fastcyclegan.training.tracker import scalars_of, scalars_of_evaluation

if TYPE_CHECKING:
    from fastcyclegan.training.events import EventFile

PAGE = "index.html"
SAMPLES = "samples"
STATS = "stats.jsonl"
CURVES = "losses.png"
EVALUATIONS = "evaluations.png"
EVENTS = "tensorboard"
REPLACED = "replaced-after-iteration-"
"""Beginning of the name of a folder with the records and grids of a run before it went back."""
SAMPLE_ROWS = 4
"""The largest number of rows of a sample grid."""


def _lines(file: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Yield each line of ``file``, and its record or None if the line is not a record.

    A killed process may leave its last line unfinished.
    """
    if not file.exists():
        return
    with file.open("rb") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict) or type(record.get("iteration")) is not int:
                record = None
            yield line, record


def new_folder(run: Path, name: str) -> Path:
    """Return a folder in ``run`` that does not exist: ``name``, or that with a number."""
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return next(run / each for each in itertools.chain([name], numbered) if not (run / each).exists())


def _copy_records(file: Path, start: int, folder: Path) -> int:
    """Copy the whole lines of ``file`` from byte ``start`` on to ``folder``. Return their number."""
    with file.open("rb") as stream:
        stream.seek(start)
        lines = [line for line in stream if line.endswith(b"\n")]
    if lines:
        target = folder / file.name
        with naming(target):
            folder.mkdir(exist_ok=True)
            write_atomically(target, lambda partial: partial.write_bytes(b"".join(lines)))
    return len(lines)


def read_stats(run: Path) -> list[dict[str, Any]]:
    """Return the records of stats.jsonl. Lines that are not records are skipped."""
    return [record for _, record in _lines(run / STATS) if record is not None]


def _draw_panel(axes: Any, title: str, records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    iterations, positive = [record["iteration"] for record in records], True
    for name in names:
        values = [record[name] for record in records]
        marker = "." if len(values) == 1 else ""  # a line of one point cannot be seen
        axes.plot(iterations, values, label=name, linewidth=1, marker=marker)
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
{evaluations}{curves}
<details><summary>Configuration</summary><pre>{config}</pre></details>
"""


class Report:
    """Writes the files in a run's folder that show its progress. Iterations count from 1.

    If ``resume_at`` is given, the records and sample grids of later iterations are dropped. They come from a
    process that was killed after it logged those iterations but before it saved its state, so the same ones
    are made again. If ``keep_later`` is true, the run goes back to an earlier state and they may differ, so
    they are moved to a new folder, ``replaced``. At most ``keep`` sample grids are kept. Raises UserError,
    here and in each method, if a file cannot be written.
    """

    def __init__(
        self,
        run: Path,
        name: str,
        config: Mapping[str, Any],
        panels: Mapping[str, Sequence[str]],
        resume_at: int | None = None,
        keep: int = 100,
        *,
        keep_later: bool = False,
    ) -> None:
        self.run, self.panels = run, panels
        self.replaced: Path | None = None
        """Where later records and grids are now, if there were any."""
        self.moved_records = 0
        if keep_later and resume_at is not None:
            self.replaced = new_folder(run, f"{REPLACED}{resume_at}")
        self.losses = tuple(itertools.chain.from_iterable(panels.values()))
        self.missing: list[str] = []
        self.can_draw = self._has("matplotlib")
        self.thinned = Thinned(("iteration", *self.losses))
        self.drawn = 0
        self.last_recorded = self.last_evaluated = -1
        self.name, self.config = name, config
        with naming(run / STATS):
            self._read_stats(resume_at)
        later = None if self.replaced is None else self.replaced / SAMPLES
        self.page = SamplePage(run / SAMPLES, run / PAGE, self._head(), keep, resume_at, later)
        self.events = self._open_events(resume_at)

    @property
    def sampled(self) -> Sequence[int]:
        """The iterations of the sample grids that are kept."""
        return self.page.kept

    def _head(self, evaluations: str = "") -> str:
        """Return the start of the page, with the HTML of its ``evaluations``."""
        curves, settings = "", html.escape(json.dumps(self.config, indent=2))
        if self.can_draw:
            curves = f'<p><img src="{CURVES}" alt="loss curves" style="image-rendering:auto"></p>'
        name = html.escape(self.name)
        return _HEAD.format(name=name, evaluations=evaluations, curves=curves, config=settings)

    def _has(self, module: str) -> bool:
        try:
            __import__(module)
        except ImportError:
            self.missing.append(module)
            return False
        return True

    def _open_events(self, resume_at: int | None) -> EventFile | None:
        if not self._has("tensorboard"):
            return None
        from fastcyclegan.training.events import EventFile

        purge_step = None if resume_at is None else resume_at + 1
        return EventFile(self.run / EVENTS, purge_step)

    def _read_stats(self, resume_at: int | None) -> None:
        """Read the records of an earlier process, and cut off those after iteration ``resume_at``.

        An unfinished last line is cut off too. The records are first copied to the folder ``replaced``.
        """
        file, kept = self.run / STATS, 0
        for line, record in _lines(file):
            later = record is not None and resume_at is not None and record["iteration"] > resume_at
            if later or not line.endswith(b"\n"):
                if self.replaced is not None:
                    self.moved_records = _copy_records(file, kept, self.replaced)
                os.truncate(file, kept)
                return
            kept += len(line)
            if record is not None:
                self._count(record)

    def _count(self, record: Mapping[str, Any]) -> None:
        """Take note of a record that is in stats.jsonl."""
        if PROTOCOL in record:
            self.last_evaluated = max(self.last_evaluated, record["iteration"])
            return
        self.thinned.add(record)
        self.last_recorded = max(self.last_recorded, record["iteration"])

    def add_stats(self, record: Mapping[str, Any]) -> None:
        """Append one record (iteration, epoch, each loss, lr, it/s) to stats.jsonl and to the events.

        If that fails, the record can be added again, also after resuming. It is skipped if it is there.
        """
        if record["iteration"] <= self.last_recorded:
            return
        self._append(record)
        if self.events is not None:
            self.events.add_scalars(record["iteration"], scalars_of(record, self.losses))

    def _append(self, record: Mapping[str, Any]) -> None:
        file = self.run / STATS
        with naming(file), file.open("ab", buffering=0) as stream:
            append(stream, (json.dumps(record) + "\n").encode())
        self._count(record)

    def add_evaluations(self, history: History) -> None:
        """Append the records of ``history`` that are not in stats.jsonl yet, and show all on the page."""
        for record in history.records:
            if record["iteration"] > self.last_evaluated:
                self._append({**record, PROTOCOL: history.protocol})
                if self.events is not None:
                    self.events.add_scalars(record["iteration"], scalars_of_evaluation(record))
        if not history.records:
            return
        if self.can_draw:
            with naming(self.run / EVALUATIONS):
                draw_evaluations(history, self.run / EVALUATIONS)
        self.page.show(self._head(section(history, EVALUATIONS if self.can_draw else None)))

    def add_samples(self, iteration: int, grid: Image.Image) -> Path:
        """Write a sample grid, show it on the page and redraw the curves. Return the grid's path."""
        path = self.page.add(iteration, grid)
        self._draw()
        if self.events is not None:
            self.events.add_image(iteration, "samples", grid)
        return path

    def _draw(self) -> None:
        """Draw the curves if there are records that they do not show."""
        if self.can_draw and self.thinned.count > self.drawn:
            with naming(self.run / CURVES):
                draw_curves(self.thinned.records(), self.panels, self.run / CURVES)
            self.drawn = self.thinned.count

    def close(self) -> None:
        """Draw the curves up to the last record, and close the events."""
        try:
            self._draw()
        finally:
            if self.events is not None:
                self.events.close()
