"""Show the evaluations of a run: a curve, and a table of the best and the last one."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastcyclegan.metrics.names import METRICS, mean_of, shown
from fastcyclegan.metrics.protocol import described
from fastcyclegan.tensor_files import write_atomically
from fastcyclegan.training.evaluation_history import PREFIX, History, judged_names


def draw_evaluations(history: History, path: Path) -> None:
    """Plot the metric that judges over the iterations, with the best and the last value. Needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name in judged_names(history):
        records = [record for record in history.records if name in record]
        iterations = [record["iteration"] for record in records]
        values = [mean_of(record[name]) for record in records]
        width = 1.5 if name == history.judge else 0.7
        axes.plot(iterations, values, label=name.removeprefix(PREFIX), linewidth=width, marker=".")
    marked = [("last", history.records[-1], "s"), ("best", history.best, "*")]
    for label, record, marker in marked:
        if record is not None:
            value = mean_of(record[history.judge])
            point = f"{label}: {value:.4g} at {record['iteration']:,}"
            axes.plot(
                [record["iteration"]],
                [value],
                marker,
                markersize=11,
                color="black",
                label=point,
                fillstyle="none",
            )
    metric = METRICS[history.metric]
    better = "lower" if metric.lower_is_better else "higher"
    axes.set(title=f"{metric.title} ({better} is better)", xlabel="iteration")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    write_atomically(path, lambda partial: figure.savefig(partial, format="png", dpi=100))


def section(history: History, image: str | None) -> str:
    """Return the HTML about ``history``, with the curve in the file ``image`` if there is one."""
    parts = []
    if image is not None:
        parts.append(f'<p><img src="{image}" alt="evaluations" style="image-rendering:auto"></p>\n')
    rows: dict[str, Mapping[str, Any] | None] = {"best": history.best, "last": history.records[-1]}
    names = [name for name in history.records[-1] if name.startswith(PREFIX)]
    heads = "".join(f"<th>{html.escape(name.removeprefix(PREFIX))}</th>" for name in names)
    lines = [f"<tr><th></th><th>iteration</th><th>epoch</th>{heads}</tr>"]
    for label, record in rows.items():
        if record is not None:
            values = "".join(f"<td>{shown(record[name]) if name in record else ''}</td>" for name in names)
            lines.append(
                f"<tr><th>{label}</th><td>{record['iteration']:,}</td><td>{record['epoch']:,}</td>{values}</tr>"
            )
    parts.append(f'<table class="evaluations">{"".join(lines)}</table>\n')
    parts.append(f"<p>{html.escape(history.judge.removeprefix(PREFIX))} judges.</p>\n")
    parts.append(_protocol(history))
    return "".join(parts)


def _protocol(history: History) -> str:
    """Return the HTML of the protocol of each direction."""
    rows = []
    for label, protocol in history.protocol.items():
        for name, text in described(protocol).items():
            rows.append(
                f"<tr><th>{html.escape(label)}</th><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>"
            )
    return f"<details><summary>Protocol</summary><table>{''.join(rows)}</table></details>\n"
