"""Show the numbers of an evaluation: a table, JSON, and an HTML page with the best and the worst pairs."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from fastcyclegan.errors import UserError, one_line, printable, system_reason
from fastcyclegan.files.json_file import read_json
from fastcyclegan.files.schema import entries, number
from fastcyclegan.metrics.evaluator import Result, ShownPair
from fastcyclegan.metrics.images import Pixels
from fastcyclegan.metrics.names import METRICS, mean_of, shown
from fastcyclegan.metrics.protocol import described
from fastcyclegan.tensor_files import write_atomically

_STYLE = """
body{font:14px sans-serif;margin:2em;max-width:1300px}
table{border-collapse:collapse;margin-bottom:1em}
td,th{padding:2px 1em 2px 0;vertical-align:top;text-align:left}
figure{margin:0 1em 1em 0;display:inline-block}
figcaption{font-size:12px;overflow-wrap:anywhere}
img{image-rendering:pixelated;max-width:256px;margin-right:2px}
"""


_SHOWN = 512
"""Larger images are reduced to this side in pixels."""


def table(result: Result) -> dict[str, str]:
    """Return the metrics as rows: titles, and values with their intervals and differences."""
    rows = {}
    for name, value in result.metrics.items():
        text = shown(value)
        if name in result.intervals:
            low, high = result.intervals[name]
            text += f"  95% interval {low:.5g} to {high:.5g}"
        if name in result.other:
            text += f"  difference {mean_of(value) - mean_of(result.other[name]):+.5g}"
        rows[f"{METRICS[name].title} {'↓' if METRICS[name].lower_is_better else '↑'}"] = text
    return rows


def write_json(result: Result, file: Path) -> None:
    """Write ``result`` to ``file``, atomically."""
    text = json.dumps(result.as_dict(), indent=2) + "\n"
    write_atomically(file, lambda partial: partial.write_text(text))


def read_metrics(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the metrics in ``file``, which ``write_json`` wrote, and their protocol.

    Raises UserError if it is not such a file.
    """
    try:
        saved = entries(read_json(file), "its content")
        metrics = entries(saved.get("metrics"), "metrics")
        protocol = entries(saved.get("protocol"), "protocol")
        for name, value in metrics.items():
            number()(entries(value, "kid").get("mean") if name == "kid" else value, f"metrics.{name}")
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except OSError as error:
        raise UserError(f"{file}: {system_reason(error)}") from None
    except ValueError as error:  # of which MisfitError is one
        raise UserError(f"{file}: not a file that evaluate.py --json wrote: {one_line(error)}") from None
    return dict(metrics), dict(protocol)


def write_page(result: Result, file: Path, title: str) -> None:
    """Write one HTML page that needs no other file: the metrics, the protocol, the best and worst pairs."""
    write_atomically(file, lambda partial: partial.write_text(_page(result, title), encoding="utf-8"))


def _escaped(text: str) -> str:
    return html.escape(printable(text))


def _rows(rows: Mapping[str, str]) -> str:
    cells = "".join(f"<tr><th>{_escaped(k)}</th><td>{_escaped(v)}</td></tr>" for k, v in rows.items())
    return f"<table>{cells}</table>"


def _page(result: Result, title: str) -> str:
    heading = _escaped(title)
    parts = [
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{heading}</title>',
        f"<style>{_STYLE}</style></head><body><h1>{heading}</h1>",
        _rows(table(result)),
    ]
    for kind, pairs in (("Best", result.best), ("Worst", result.worst)):
        if pairs:
            parts.append(f"<h2>{kind} pairs by {METRICS[result.judged_by].title}</h2>")
            parts += _figures(pairs)
    parts += ["<h2>Protocol</h2>", _rows(described(result.protocol))]
    return "\n".join(parts) + "\n</body></html>\n"


def _figures(pairs: Iterable[ShownPair]) -> list[str]:
    figures = []
    for pair in pairs:
        images = "".join(_image(pixels, what) for what, pixels in pair.images.items())
        values = ", ".join(f"{METRICS[name].title} {value:.4g}" for name, value in pair.metrics.items())
        caption = _escaped(f"{pair.name}: {', '.join(pair.images)}; {values}")
        figures.append(f"<figure>{images}<figcaption>{caption}</figcaption></figure>")
    return figures


def _image(pixels: Pixels, what: str) -> str:
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    image.thumbnail((_SHOWN, _SHOWN))
    image.save(stream, format="PNG")
    encoded = base64.b64encode(stream.getvalue()).decode()
    return f'<img src="data:image/png;base64,{encoded}" title="{what}" alt="{what}">'
