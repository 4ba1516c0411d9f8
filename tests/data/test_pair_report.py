"""The report on the pairs of two folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from fastcyclegan.data.folder_report import examine_folder
from fastcyclegan.data.pair_report import PairReport, examine_pairs, pair_findings, pair_summary, pairs_of
from fastcyclegan.errors import UserError


def write(folder: Path, **sizes: tuple[int, int]) -> None:
    """Write gray images of the ``sizes`` given by name."""
    folder.mkdir(exist_ok=True)
    for name, size in sizes.items():
        Image.new("L", size, 99).save(folder / f"{name}.png")


def examined(root: Path) -> PairReport:
    A, B = (examine_folder(name, root / name, 1, lambda count, total: None) for name in "AB")
    return examine_pairs("train", pairs_of(root / "A", root / "B"), A, B)


def test_finds_what_is_wrong_with_pairs(tmp_path: Path) -> None:
    write(tmp_path / "A", same=(4, 4), other=(4, 4), tall=(4, 8), broken=(4, 4), lost=(4, 4))
    write(tmp_path / "B", same=(4, 4), other_B=(4, 4), tall=(8, 4), broken=(4, 4), none=(4, 4))
    Image.new("L", (4, 4), 100).save(tmp_path / "A" / "other.png")
    (tmp_path / "B" / "broken.png").write_text("text")
    report = examined(tmp_path)
    a, b = tmp_path / "A", tmp_path / "B"
    assert pair_findings(report) == {
        "unpaired": [f"{a}/lost.png", f"{b}/none.png"],
        "unequal": [f"{a}/tall.png: 4x8, {b}/tall.png: 8x4"],
        "same": [f"{a}/same.png = {b}/same.png"],
    }
    assert pair_summary(report) == {
        "pairs": "4",
        "unpaired": "1 of A and 1 of B without an image of the same name",
        "unequal": "1 of different sizes, which need --preprocess resize_and_crop, the default",
        "same": "1 of identical pixels",
    }


def test_good_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "A", x=(4, 4))
    write(tmp_path / "B", x=(4, 4))
    Image.new("L", (4, 4), 100).save(tmp_path / "B" / "x.png")
    monkeypatch.chdir(tmp_path)
    report = examined(Path())
    assert not any(pair_findings(report).values())
    assert pair_summary(report)["unequal"] == "0 of different sizes"


def test_ambiguous_names_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "A", x=(4, 4), x_A=(4, 4))
    write(tmp_path / "B", x_B=(4, 4))
    with pytest.raises(UserError, match=r"B/x_B\.png: two images could be its partner"):
        pairs_of(tmp_path / "A", tmp_path / "B")
