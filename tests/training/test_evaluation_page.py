"""The curve of evaluations, and the table of the best and the last one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from PIL import Image

from fastcyclegan.errors import UserError
from fastcyclegan.training.evaluation_history import History
from fastcyclegan.training.evaluation_page import draw_evaluations, section
from fastcyclegan.training.safe_write import naming
from tests.training.limits import no_file_longer_than

PROTOCOL: dict[str, Any] = {"AtoB": {"features": {"network": "<a&b>", "side": 299}, "images": {"fake": 3}}}


def history(*values: float) -> History:
    one = History("kid", "eval_kid", PROTOCOL)
    for n, value in enumerate(values, start=1):
        record = {"iteration": 1000 * n, "epoch": n, "eval_fid": 100 * value, "eval_kid_AtoB": value}
        one.add({**record, "eval_kid": {"mean": value, "std": 0.01}})
    return one


class Plotted:
    """Records what is plotted: for each label, the points and the marker."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.curves: dict[str, tuple[list[float], list[float]]] = {}
        plot = Axes.plot

        def plotted(axes: Axes, x: Any, y: Any, *args: Any, **options: Any) -> Any:
            self.curves[options["label"]] = (list(x), list(y))
            return plot(axes, x, y, *args, **options)

        monkeypatch.setattr(Axes, "plot", plotted)


def test_the_curve_of_the_judge_with_the_best_and_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plotted = Plotted(monkeypatch)
    draw_evaluations(history(0.5, 0.25, 0.375), tmp_path / "evaluations.png")
    with Image.open(tmp_path / "evaluations.png") as image:
        image.load()
        assert image.format == "PNG"
    iterations, values = [1000, 2000, 3000], [0.5, 0.25, 0.375]
    assert plotted.curves == {
        "kid": (iterations, values),
        "kid_AtoB": (iterations, values),
        "last: 0.375 at 3,000": ([3000], [0.375]),
        "best: 0.25 at 2,000": ([2000], [0.25]),
    }


def test_records_that_lack_a_value_and_a_best_that_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plotted, one = Plotted(monkeypatch), history(0.5, 0.25)
    del one.records[0]["eval_kid_AtoB"]
    one.best = None
    draw_evaluations(one, tmp_path / "evaluations.png")
    assert plotted.curves["kid_AtoB"] == ([2000], [0.25])
    assert [label for label in plotted.curves if ":" in label] == ["last: 0.25 at 2,000"]
    assert "<th>best</th>" not in section(one, None)


def rows(text: str) -> dict[str, list[str]]:
    """Return the cells of each row of the table of evaluations, by the head of the row."""
    found = re.findall(r"<tr><th>(\w*)</th>(.*?)</tr>", text.partition("</table>")[0])
    return {head: re.findall(r"<t[hd]>(.*?)</t[hd]>", cells) for head, cells in found}


def test_the_table_of_the_best_and_the_last() -> None:
    text = section(history(0.5, 0.25, 0.375), "evaluations.png")
    assert rows(text) == {
        "": ["iteration", "epoch", "fid", "kid_AtoB", "kid"],
        "best": ["2,000", "2", "25", "0.25", "0.25 (std 0.01)"],
        "last": ["3,000", "3", "37.5", "0.375", "0.375 (std 0.01)"],
    }
    assert '<img src="evaluations.png"' in text
    assert "<p>kid judges.</p>" in text
    assert "<img" not in section(history(0.5), None)


def test_names_in_the_protocol_are_escaped() -> None:
    text = section(history(0.5), None)
    assert "network &lt;a&amp;b&gt;, side 299" in text
    assert "<a&b>" not in text


def test_a_full_disk_is_named_and_leaves_the_old_curve(tmp_path: Path) -> None:
    file = tmp_path / "evaluations.png"
    draw_evaluations(history(0.5), file)
    before = file.read_bytes()
    with (
        no_file_longer_than(1000),
        pytest.raises(UserError, match=r"cannot write .*evaluations\.png"),
        naming(file),
    ):
        draw_evaluations(history(0.5, 0.25), file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
