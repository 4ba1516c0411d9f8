"""Sample grids are bounded in number, spread over the run, and all shown on the page."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fastcyclegan.errors import UserError
from fastcyclegan.training import sample_page
from fastcyclegan.training.sample_page import SamplePage, expendable
from tests.training.limits import no_file_longer_than

GRID = Image.new("RGB", (4, 4))


def opened(run: Path, keep: int = 5, resume_at: int | None = None) -> SamplePage:
    return SamplePage(run / "samples", run / "index.html", "<h1>head</h1>\n", keep, resume_at)


def filled(run: Path, iterations: Iterable[int], keep: int = 5) -> SamplePage:
    page = opened(run, keep)
    for n in iterations:
        page.add(n, GRID)
    return page


def files(run: Path) -> list[int]:
    return sorted(int(file.stem) for file in (run / "samples").glob("*.png"))


def shown(run: Path) -> list[int]:
    """Return the iterations of the images on the page, whose files must exist."""
    names = re.findall(r'<img src="([^"]+)"', (run / "index.html").read_text())
    assert all((run / name).exists() for name in names)
    headings = re.findall(r"<h3>iteration (\d+)</h3>", (run / "index.html").read_text())
    assert [int(Path(name).stem) for name in names] == [int(number) for number in headings]
    return [int(number) for number in headings]


def note(run: Path) -> str:
    notes = re.findall(r"<p>(.*)</p>", (run / "index.html").read_text())
    assert len(notes) <= 1
    return "".join(notes)


def test_the_grid_in_the_smallest_gap_is_removed() -> None:
    assert expendable([1, 2, 3, 4]) == 3  # 4/2 < 3/1
    assert expendable([1, 100, 101, 150]) == 101
    assert expendable([1, 2, 4, 8]) == 2  # the first of equal ones
    assert expendable([5, 6, 7]) == 6


@pytest.mark.parametrize("step", [1, 7, "growing"], ids=str)
@pytest.mark.parametrize("keep", [2, 3, 20])
def test_kept_grids_are_spread_evenly_on_a_logarithmic_scale(keep: int, step: int | str) -> None:
    """At all times, no gap that a removal left is larger than any two neighbouring gaps together."""
    kept: list[int] = []
    arrived: list[int] = []
    for n in range(3000):
        arrived.append(1 + n * step if isinstance(step, int) else int(1.01**n) + n + 1)
        kept.append(arrived[-1])
        if len(kept) > keep:
            kept.remove(expendable(kept))
        if n % 100 == 0:
            steps = set(itertools.pairwise(arrived))
            left = [math.log(b / a) for a, b in itertools.pairwise(kept) if (a, b) not in steps]
            pairs = [math.log(b / a) for a, b in zip(kept, kept[2:], strict=False)]
            assert max(left, default=0.0) <= min(pairs, default=math.inf) + 1e-9
    assert (kept[0], kept[-1], len(kept)) == (arrived[0], arrived[-1], keep)


def test_a_long_run_keeps_its_first_grids_and_its_newest(tmp_path: Path) -> None:
    page = filled(tmp_path, range(1, 31))
    assert files(tmp_path) == shown(tmp_path) == page.kept
    assert len(page.kept) == 5
    assert (page.kept[0], page.kept[-1]) == (1, 30)
    assert note(tmp_path) == "25 grids between these were removed (--keep_samples 5)"
    page.add(31, GRID)
    assert note(tmp_path).startswith("26 grids")


def test_a_page_without_removed_grids_has_no_note(tmp_path: Path) -> None:
    filled(tmp_path, [1, 2])
    assert note(tmp_path) == ""
    filled(tmp_path, [3, 4], keep=3)
    assert note(tmp_path) == "1 grid between these was removed (--keep_samples 3)"


def test_a_resumed_run_removes_the_same_grids(tmp_path: Path) -> None:
    """The choice depends only on the kept grids, which are read from the folder."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for run in (whole, resumed):
        run.mkdir()
    filled(whole, range(1, 21))
    for n in range(1, 21):
        filled(resumed, [n])
    assert files(resumed) == files(whole)
    assert (resumed / "index.html").read_text() == (whole / "index.html").read_text()


def test_resuming_drops_later_grids_and_a_lower_limit_thins(tmp_path: Path) -> None:
    filled(tmp_path, range(1, 9), keep=20)
    (tmp_path / "samples" / ".0000009.png.77.partial").write_bytes(b"half")
    (tmp_path / "samples" / "mine.png").write_bytes(b"")
    opened(tmp_path, keep=3, resume_at=6)
    assert shown(tmp_path) == [1, 2, 6]
    assert {file.name for file in (tmp_path / "samples").iterdir()} == {
        *(f"000000{n}.png" for n in (1, 2, 6)),
        "mine.png",
    }
    assert note(tmp_path) == "3 grids between these were removed (--keep_samples 3)"


def test_a_kill_at_any_moment_leaves_a_right_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends before or after each of its changes to the folder; then the run is resumed."""

    class Killed(BaseException):
        pass

    def run_until(change: int, run: Path) -> bool:
        """Draw eight grids, and return whether all of them were drawn before the kill."""
        left = [change]

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                return function(*args, **kwargs)

            return call

        run.mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(sample_page, "save_image", counted(sample_page.save_image))
            patch.setattr(sample_page, "write_atomically", counted(sample_page.write_atomically))
            patch.setattr(Path, "unlink", counted(Path.unlink))
            try:
                filled(run, range(1, 9), keep=3)
            except Killed:
                return False
        return True

    change = 0
    while not run_until(change, run := tmp_path / str(change)):
        if (run / "index.html").exists():
            shown(run)
        drawn = max(files(run), default=0)
        page = opened(run, keep=3)
        assert files(run) == shown(run) == page.kept
        assert len(page.kept) + page.removed == drawn
        change += 1
    assert change > 15


def test_a_lost_page_is_written_from_the_files(tmp_path: Path) -> None:
    filled(tmp_path, range(1, 9))
    kept = files(tmp_path)
    (tmp_path / "samples" / f"{kept[1]:07d}.png").unlink()
    opened(tmp_path)
    assert shown(tmp_path) == [kept[0], *kept[2:]]  # no image that does not exist
    (tmp_path / "index.html").unlink()
    opened(tmp_path)
    assert shown(tmp_path) == [kept[0], *kept[2:]]
    assert "<h1>head</h1>" in (tmp_path / "index.html").read_text()


def test_a_page_of_an_earlier_version_is_continued(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    text = ["<!doctype html>\n", '<div class="newest-first">\n']
    for n in (100, 200):
        GRID.save(tmp_path / "samples" / f"{n:07d}.png")
        text.append(f"<!--{n}--><section><h3>iteration {n}</h3><img ...></section>\n")
    (tmp_path / "index.html").write_text("".join(text))
    opened(tmp_path, resume_at=150).add(10_000_000, GRID)
    assert files(tmp_path) == shown(tmp_path) == [100, 10_000_000]


def test_errors_name_the_file(tmp_path: Path) -> None:
    page = filled(tmp_path, [1, 2])
    before = (tmp_path / "index.html").read_text()
    with (
        no_file_longer_than(10),
        pytest.raises(UserError, match=r"cannot write .*0000003\.png: File too large"),
    ):
        page.add(3, GRID)
    with (
        no_file_longer_than(200),
        pytest.raises(UserError, match=r"cannot write .*index\.html: File too large"),
    ):
        page.add(3, GRID)
    assert (tmp_path / "index.html").read_text() == before
    page.add(3, GRID)
    assert files(tmp_path) == shown(tmp_path) == [1, 2, 3]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file"):
        SamplePage(tmp_path / "file", tmp_path / "index.html", "", 5)


def test_later_grids_can_be_moved(tmp_path: Path) -> None:
    filled(tmp_path, range(1, 5))
    later = tmp_path / "old" / "samples"
    page = SamplePage(tmp_path / "samples", tmp_path / "index.html", "<h1>head</h1>\n", 5, 2, later)
    assert page.moved == 2
    assert shown(tmp_path) == files(tmp_path) == page.kept == [1, 2]
    assert sorted(file.name for file in later.iterdir()) == ["0000003.png", "0000004.png"]
    assert note(tmp_path) == ""
    assert opened(tmp_path).moved == 0


def test_the_start_of_the_page_can_change(tmp_path: Path) -> None:
    page = filled(tmp_path, [1, 2])
    page.show("<h1>other</h1>\n")
    assert (tmp_path / "index.html").read_text().startswith("<h1>other</h1>\n")
    page.add(3, GRID)
    assert (tmp_path / "index.html").read_text().startswith("<h1>other</h1>\n")
    assert shown(tmp_path) == [1, 2, 3]
