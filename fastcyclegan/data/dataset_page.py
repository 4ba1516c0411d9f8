"""Render the report on a dataset as one HTML page, with its images embedded."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from fastcyclegan.data.folder_report import THUMBS, FolderReport, Group, encode_jpeg, equal_files, summary
from fastcyclegan.data.pair_report import PairReport, pair_findings, pair_summary
from fastcyclegan.errors import printable
from fastcyclegan.settings.crop_size import CropSize

_STYLE = """
body{font:14px sans-serif;margin:2em;max-width:1300px}
table{border-collapse:collapse}
td{padding:2px 1em 2px 0;vertical-align:top}
figure{margin:0 1em 0 0;display:inline-block}
figcaption{font-size:12px;max-width:160px;overflow-wrap:anywhere}
.thumbs{display:flex;flex-wrap:wrap;gap:4px}
.thumbs img{height:112px}
.bad{color:#b00}
"""


def _escaped(text: str) -> str:
    return html.escape(printable(text))


def _image(data: bytes, title: str) -> str:
    encoded = base64.b64encode(data).decode()
    name = _escaped(Path(title).name)
    return f'<img src="data:image/jpeg;base64,{encoded}" title="{_escaped(title)}" alt="{name}">'


def _figure(image: str, caption: str) -> str:
    return f"<figure>{image}<figcaption>{_escaped(caption)}</figcaption></figure>"


def page(
    title: str,
    reports: list[FolderReport],
    pairs: list[PairReport],
    groups: list[Group],
    crop_size: CropSize,
) -> str:
    """Render the report as one HTML page that needs no other file."""
    heading = _escaped(title)
    parts = [
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{heading}</title>',
        f"<style>{_STYLE}</style></head><body><h1>{heading}</h1>\n<h2>Mean images</h2>",
    ]
    for report in reports:
        for domain, mean in report.means.items():
            name = f"{report.name} {domain}".strip()
            pixels = mean.image.round().clip(0, 255).astype(np.uint8)
            parts.append(_figure(_image(encode_jpeg(pixels), f"mean of {name}"), name))
    if groups:
        parts.append(f'<h2 class="bad">Images found more than once ({len(groups):,})</h2>')
        parts.append(_list(equal_files(group) for group in groups))
    for of_split in pairs:
        parts += _pair_section(of_split)
    for report in reports:
        parts += _section(report, crop_size)
    return "\n".join(parts) + "\n</body></html>\n"


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{_escaped(line)}</li>' for line in lines)}</ul>"


def _table(rows: Mapping[str, str]) -> str:
    cells = (f"<tr><td>{label}</td><td>{_escaped(text)}</td></tr>" for label, text in rows.items())
    return f"<table>{''.join(cells)}</table>"


_HEADINGS = {
    "unpaired": "Images without a partner",
    "unequal": "Pairs of different sizes",
    "same": "Pairs of identical pixels",
}


def _pair_section(report: PairReport) -> Iterator[str]:
    """Yield the HTML of the section about the pairs of two folders."""
    yield f"<h2>Pairs of {report.name} A and {report.name} B</h2>"
    yield _table(pair_summary(report))
    for kind, lines in pair_findings(report).items():
        if lines:
            yield f'<h3 class="bad">{_HEADINGS[kind]} ({len(lines):,})</h3>'
            yield _list(lines)


def _section(report: FolderReport, crop_size: CropSize) -> Iterator[str]:
    """Yield the HTML of the section about one folder."""
    yield f"<h2>{_escaped(report.name)}: {_escaped(str(report.folder))}</h2>"
    yield _table(summary(report, crop_size))
    if report.broken:
        yield '<h3 class="bad">Broken files</h3>'
        yield _list(f"{file.path}: {file.error}" for file in report.broken)
    if report.same:
        yield '<h3 class="bad">Files with two halves of identical pixels</h3>'
        yield _list(report.same)
    if report.small:
        yield f'<h3>Small images ({len(report.small):,})</h3><div class="thumbs">'
        for file in report.small[:THUMBS]:
            caption = f"{Path(file.path).name} {report.described_size(file)}"
            yield _figure(_image(report.thumbs[file.path], file.path), caption)
        yield "</div>"
    others = dict(report.thumbs)
    for file in report.small:
        others.pop(file.path, None)
    if others:
        yield '<h3>Sample images</h3><div class="thumbs">'
        for path, data in others.items():
            yield _image(data, path)
        yield "</div>"
