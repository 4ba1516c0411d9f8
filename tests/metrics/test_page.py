"""The table, the JSON file and the page of an evaluation, and reading numbers back."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastcyclegan.errors import UserError
from fastcyclegan.metrics.evaluator import Result, ShownPair
from fastcyclegan.metrics.page import read_metrics, table, write_json, write_page
from tests.training.limits import no_file_longer_than


def shown_pair(name: str, value: float, side: int = 8) -> ShownPair:
    rng = np.random.default_rng(len(name))
    images = {kind: rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for kind in ("translation", "real")}
    return ShownPair(name, {"l1": value, "psnr": 20 + value}, images)


def result(**changes: Any) -> Result:
    given: dict[str, Any] = {
        "protocol": {"images": {"fake": 3, "real": 4}, "kid": {"subsets": 5}},
        "images": {"fake": 3, "real": 4, "pairs": 2},
        "metrics": {"fid": 0.0, "kid": {"mean": -0.00123456, "std": 0.5}, "l1": 0.25, "psnr": 21.0},
    }
    return Result(**given | changes)


def test_the_table_tells_which_values_are_better() -> None:
    assert table(result()) == {
        "FID ↓": "0",
        "KID ↓": "-0.0012346 (std 0.5)",
        "L1 ↓": "0.25",
        "PSNR ↑": "21",
    }


def test_the_table_has_intervals_and_differences() -> None:
    intervals = {"l1": [0.2, 0.3], "kid": [-0.1, 0.1]}
    other = {"l1": 0.15, "kid": {"mean": -0.00023456, "std": 2}, "ssim": 1, "fid": 1}
    rows = table(result(intervals=intervals, other=other))
    assert rows["FID ↓"] == "0  difference -1"
    assert rows["KID ↓"] == "-0.0012346 (std 0.5)  95% interval -0.1 to 0.1  difference -0.001"
    assert rows["L1 ↓"] == "0.25  95% interval 0.2 to 0.3  difference +0.1"
    assert rows["PSNR ↑"] == "21"


def test_numbers_are_written_and_read(tmp_path: Path) -> None:
    given = result(intervals={"l1": [0.2, 0.3]})
    write_json(given, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == given.as_dict()
    assert list(given.as_dict()) == ["protocol", "images", "metrics", "intervals"]
    assert read_metrics(tmp_path / "a.json") == (given.metrics, given.protocol)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.json"]


GOOD = {"protocol": {"a": 1}, "metrics": {"l1": 0.5}}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Expecting value"),
        ("[1]", "its content must be a dict, got a list"),
        ("{}", "metrics must be a dict, got None"),
        (GOOD | {"metrics": [1]}, "metrics must be a dict, got a list"),
        ({"metrics": {"l1": 0.5}}, "protocol must be a dict, got None"),
        (GOOD | {"metrics": {"l1": "low"}}, "metrics.l1 must be a number, got 'low'"),
        (GOOD | {"metrics": {"l1": True}}, "metrics.l1 must be a number, got True"),
        (GOOD | {"metrics": {"kid": {"std": 1}}}, "metrics.kid must be a number, got None"),
        (GOOD | {"metrics": {"l1": float("nan")}}, "metrics.l1 must be a number, got nan"),
        (GOOD | {"metrics": {"l1": 10**400}}, "metrics.l1 must be finite, got an integer of 1329 bits"),
        ("[" * 100_000, "it is nested too deeply"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: Any, reason: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(
        UserError, match=f"a.json: not a file that evaluate.py --json wrote: {re.escape(reason)}"
    ):
        read_metrics(file)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.json: no such file$"):
        read_metrics(tmp_path / "a.json")
    with pytest.raises(UserError, match="not a regular file"):
        read_metrics(tmp_path)


# --- The page -----------------------------------------------------------------------------------------------


def written(tmp_path: Path, given: Result, title: str = "a against b") -> str:
    write_page(given, tmp_path / "page.html", title)
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def images_in(page: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def test_the_page_has_all_numbers_and_the_pairs(tmp_path: Path) -> None:
    best, worst = [shown_pair("a.png", 0.125)], [shown_pair("x/b.png", 0.5), shown_pair("c.png", 0.25)]
    given = result(judged_by="l1", best=best, worst=worst, intervals={"l1": [0.2, 0.3]})
    page = written(tmp_path, given)
    for row in (*table(given).values(), *table(given)):
        assert html.escape(row) in page
    for text in (
        "Best pairs by L1",
        "Worst pairs by L1",
        "subsets 5",
        "a.png: translation, real; L1 0.125, PSNR 20.12",
    ):
        assert text in page
    assert page.index("a.png") < page.index("x/b.png") < page.index("c.png")
    pixels = [pixels for pair in (*best, *worst) for pixels in pair.images.values()]
    for image, expected in zip(images_in(page), pixels, strict=True):
        assert np.array_equal(np.asarray(image), expected)
    assert not re.search(r'(src|href)="(?!data:)', page)  # it needs no other file


def test_a_page_without_pairs(tmp_path: Path) -> None:
    page = written(tmp_path, result())
    assert "pairs by" not in page
    assert "<img" not in page


def test_large_images_are_reduced_in_the_page(tmp_path: Path) -> None:
    given = result(judged_by="l1", best=[shown_pair("a.png", 0.1, side=600)])
    assert [image.size for image in images_in(written(tmp_path, given))] == [(512, 512)] * 2


def test_names_act_neither_on_the_page_nor_on_its_encoding(tmp_path: Path) -> None:
    name = '<script>"&.png'
    given = result(judged_by="l1", best=[shown_pair(f"{name}\udcff\n", 0.1)], protocol={name: {name: name}})
    page = written(tmp_path, given, title=f"{name}\udcff")
    assert "<script>" not in page
    assert page.count("&lt;script&gt;") >= 4
    assert r"\xff" in page


def test_a_full_disk_leaves_the_old_files(tmp_path: Path) -> None:
    for name in ("a.json", "page.html"):
        (tmp_path / name).write_text("old")
    with no_file_longer_than(100):
        for write in (lambda: write_json(result(), tmp_path / "a.json"), lambda: written(tmp_path, result())):
            with pytest.raises(OSError, match="File too large"):
                write()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a.json": "old",
        "page.html": "old",
    }
