"""The report of a run: its files, resuming, damaged files, full disks, and running without the log extra."""

from __future__ import annotations

import builtins
import random
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fastcyclegan.errors import UserError
from fastcyclegan.training import run_report
from fastcyclegan.training.evaluation_history import PROTOCOL, History
from fastcyclegan.training.run_report import CURVES, EVALUATIONS, PAGE, STATS, Report, read_stats
from fastcyclegan.training.thinned import LIMIT
from tests.files.altered_values import altered_json
from tests.training.limits import no_file_longer_than
from tests.training.runs import run

LOSSES = {"adversarial": ("G_AB", "D_A"), "cycle and identity": ("cycle_A",)}


def record(iteration: int) -> dict[str, Any]:
    return {
        "iteration": iteration,
        "epoch": 1,
        "G_AB": 0.5,
        "cycle_A": 2.0,
        "D_A": 0.25,
        "lr": 1e-4,
        "it/s": 3.0,
        "images/s": 3.0,
    }


def test_every_file_is_written_and_readable(tmp_path: Path) -> None:
    report = Report(tmp_path, "<name>", {"a": "<b>"}, LOSSES)
    for n in (1, 2):
        report.add_stats(record(n))
        report.add_samples(n, Image.new("RGB", (20, 10), (n, 0, 0)))
    report.close()
    with Image.open(tmp_path / "samples" / "0000002.png") as image:
        assert image.getpixel((0, 0)) == (2, 0, 0)
    with Image.open(tmp_path / CURVES) as image:
        assert image.size == (1000, 360)
    page = (tmp_path / PAGE).read_text()
    assert "&lt;name&gt;" in page
    assert "http" not in page  # readable offline
    assert [r["iteration"] for r in read_stats(tmp_path)] == [1, 2]


def test_tensorboard_has_the_losses(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = Report(tmp_path, "n", {}, LOSSES)
    report.add_stats(record(3))
    report.add_samples(3, Image.new("RGB", (4, 4)))
    report.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"loss/G_AB", "loss/cycle_A", "loss/D_A", "lr", "it/s"} <= set(events.Tags()["scalars"])
    assert events.Scalars("loss/cycle_A")[0].step == 3
    assert events.Tags()["images"] == ["samples"]


def history(*iterations: int) -> History:
    one = History("kid", "eval_kid", {"AtoB": {"images": {"fake": 2}}})
    for n in iterations:
        one.add({"iteration": n, "epoch": 1, "eval_fid": 5.0, "eval_kid": {"mean": 1 / n, "std": 0.5}})
    return one


def evaluations(run: Path) -> list[int]:
    return [each["iteration"] for each in read_stats(run) if PROTOCOL in each]


def test_evaluations_are_recorded_once_and_shown(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = Report(tmp_path, "n", {}, LOSSES)
    report.add_evaluations(history())
    assert EVALUATIONS not in (tmp_path / PAGE).read_text()
    report.add_stats(record(1))
    report.add_evaluations(history(2))
    report.add_evaluations(history(2, 4))
    report.add_stats(record(4))
    report.add_samples(4, Image.new("RGB", (4, 4)))
    report.close()
    assert evaluations(tmp_path) == [2, 4]
    found = next(each for each in read_stats(tmp_path) if PROTOCOL in each)
    assert found == {**history(2).records[0], PROTOCOL: history().protocol}
    assert report.thinned.count == 2  # the curves of the losses are without them
    with Image.open(tmp_path / EVALUATIONS) as image:
        assert image.size == (1000, 360)
    page = (tmp_path / PAGE).read_text()
    assert f'src="{EVALUATIONS}"' in page
    assert "<td>0.25 (std 0.5)</td>" in page
    assert 'src="samples/0000004.png"' in page
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(point.step, point.value) for point in events.Scalars("eval/kid")] == [(2, 0.5), (4, 0.25)]


def test_a_resumed_run_completes_the_records_of_its_evaluations(tmp_path: Path) -> None:
    report = Report(tmp_path, "n", {}, LOSSES)
    report.add_evaluations(history(2, 4, 6))
    report.close()
    report = Report(tmp_path, "n", {}, LOSSES, resume_at=5)
    assert evaluations(tmp_path) == [2, 4]
    report.add_evaluations(history(2, 4, 5))  # the state was saved before the record of 5
    report.close()
    assert evaluations(tmp_path) == [2, 4, 5]
    page = (tmp_path / PAGE).read_text()
    report = Report(tmp_path, "n", {}, LOSSES, resume_at=5)
    report.add_evaluations(history(2, 4, 5))
    report.close()
    assert evaluations(tmp_path) == [2, 4, 5]
    assert (tmp_path / PAGE).read_text() == page


def test_a_loss_of_a_recipe_can_have_the_name_of_a_metric(tmp_path: Path) -> None:
    for _ in range(2):  # also when the records are read again
        report = Report(tmp_path, "n", {}, {"loss": ("eval_l1",)})
        report.add_stats({**record(1), "eval_l1": 0.5})
        report.close()
        assert report.thinned.records() == [{"iteration": 1.0, "eval_l1": 0.5}]


def test_resume_drops_later_records(tmp_path: Path) -> None:
    report = Report(tmp_path, "n", {}, LOSSES)
    for n in (1, 2, 3):
        report.add_stats(record(n))
        report.add_samples(n, Image.new("RGB", (4, 4)))
    report.close()
    with (tmp_path / STATS).open("a") as file:
        file.write('{"iteration": 4, "G_')  # killed in the middle of a line
    Report(tmp_path, "n", {}, LOSSES, resume_at=2).close()
    assert [r["iteration"] for r in read_stats(tmp_path)] == [1, 2]
    page = (tmp_path / PAGE).read_text()
    assert "0000002.png" in page
    assert "0000003.png" not in page
    assert page.count("<h1>") == 1


def test_a_run_that_goes_back_keeps_later_records_in_a_new_folder(tmp_path: Path) -> None:
    """Twice at the same iteration: the names differ. If nothing is later, there is no folder."""
    for replaced in ("replaced-after-iteration-1", "replaced-after-iteration-1-2"):
        report = Report(tmp_path, "n", {}, LOSSES)
        for n in (1, 2, 3):
            report.add_stats(record(n))
            report.add_samples(n, Image.new("RGB", (4, 4)))
        report.close()
        lines = (tmp_path / STATS).read_bytes().splitlines(keepends=True)
        with (tmp_path / STATS).open("a") as file:
            file.write('{"iteration": 4, "G_')
        report = Report(tmp_path, "n", {}, LOSSES, resume_at=1, keep_later=True)
        report.close()
        assert (report.moved_records, report.page.moved) == (2, 2)
        assert report.replaced == tmp_path / replaced
        assert (tmp_path / STATS).read_bytes() == lines[0]
        assert (tmp_path / replaced / STATS).read_bytes() == b"".join(lines[1:])
        grids = sorted(file.name for file in (tmp_path / replaced / "samples").iterdir())
        assert grids == ["0000002.png", "0000003.png"]
        assert [file.name for file in (tmp_path / "samples").iterdir()] == ["0000001.png"]
        assert "0000002.png" not in (tmp_path / PAGE).read_text()
    again = Report(tmp_path, "n", {}, LOSSES, resume_at=1, keep_later=True)
    again.close()
    assert (again.moved_records, again.page.moved) == (0, 0)
    assert len(list(tmp_path.glob("replaced*"))) == 2


def test_at_most_keep_grids_stay(tmp_path: Path) -> None:
    report = Report(tmp_path, "n", {}, LOSSES, keep=3)
    for n in range(1, 8):
        report.add_samples(n, Image.new("RGB", (4, 4)))
    report.close()
    files = sorted(file.name for file in (tmp_path / "samples").iterdir())
    assert re.findall(r'src="samples/(.*?)"', (tmp_path / PAGE).read_text()) == files
    assert (len(files), files[0], files[-1]) == (3, "0000001.png", "0000007.png")


def test_curves_are_drawn_from_few_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The records of a resumed run are read once, and the curves are drawn only if there are new ones."""
    lines = [f'{{"iteration": {n}, "G_AB": {n}.0, "D_A": 1.0, "cycle_A": 2.0}}\n' for n in range(1, 9001)]
    (tmp_path / STATS).write_text("".join(lines) + '{"iteration": 9001, "G_')
    drawn = []
    monkeypatch.setattr(run_report, "draw_curves", lambda records, panels, path: drawn.append(records))
    report = Report(tmp_path, "n", {}, LOSSES, resume_at=8999)
    for n in (9000, 9001):
        report.add_samples(n, Image.new("RGB", (4, 4)))
    report.close()
    (points,) = drawn
    assert LIMIT / 2 <= len(points) <= LIMIT
    mean = sum(point["G_AB"] for point in points[:-1]) / len(points[:-1])
    assert mean == pytest.approx(8999 / 2, rel=1e-3)
    assert (tmp_path / STATS).read_text() == "".join(lines[:-1])


def test_closing_draws_the_last_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the page of a run without a grid after its first record would show a missing image."""
    report = Report(tmp_path, "n", {}, LOSSES)
    report.add_samples(1, Image.new("RGB", (4, 4)))
    assert not (tmp_path / CURVES).exists()
    report.add_stats(record(1))
    report.close()
    assert (tmp_path / CURVES).exists()


def test_a_write_that_fails_names_the_file_and_leaves_no_torn_record(tmp_path: Path) -> None:
    report = Report(tmp_path, "n", {}, LOSSES)
    report.add_stats(record(1))
    size = (tmp_path / STATS).stat().st_size
    with (
        no_file_longer_than(size + 20),
        pytest.raises(UserError, match=r"cannot write .*stats\.jsonl: File too"),
    ):
        report.add_stats(record(2))
    assert (tmp_path / STATS).stat().st_size == size
    with no_file_longer_than(100), pytest.raises(UserError, match=r"cannot write .*0000002\.png: File too"):
        report.add_samples(2, Image.effect_noise((64, 64), 90))
    with no_file_longer_than(5000), pytest.raises(UserError, match=r"cannot write .*losses\.png: File too"):
        report.add_samples(2, Image.new("RGB", (4, 4)))
    (events,) = (tmp_path / "tensorboard").iterdir()
    size = events.stat().st_size + 10
    with no_file_longer_than(size), pytest.raises(UserError, match=f"cannot write {events}: File too"):
        report.events.add_scalars(2, {f"loss/{n}": 1.0 for n in range(100)})
    for n in (3, 4):
        report.add_stats(record(n))
    report.close()
    assert [r["iteration"] for r in read_stats(tmp_path)] == [1, 3, 4]
    with no_file_longer_than(10), pytest.raises(UserError, match=r"cannot write .*index\.html: File too"):
        Report(tmp_path, "n", {}, LOSSES)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "samples").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write .*samples: File exists"):
        Report(tmp_path, "n", {}, LOSSES)


def test_without_the_log_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] in ("tensorboard", "matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    report = Report(tmp_path, "n", {}, LOSSES)
    report.add_stats(record(1))
    report.add_samples(1, Image.new("RGB", (4, 4)))
    report.close()
    assert report.missing == ["matplotlib", "tensorboard"]
    assert not (tmp_path / CURVES).exists()
    assert CURVES not in (tmp_path / PAGE).read_text()
    assert len(read_stats(tmp_path)) == 1


def test_damaged_side_files_do_not_matter(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path, "r", "--max_iters", "2", "--print_freq", "1")
    with (tmp_path / "r" / "stats.jsonl").open("ab") as file:
        file.write(b'[1]\n{}\n{"iteration": 1}\n\xff\xfe\nnonsense\n{"iteration": true}\n')
        file.write(b"[" * 100_000 + b"\n" + b'{"iteration": 1, "G_AB": 1' + b"0" * 400 + b"}\n")
    with (tmp_path / "r" / "index.html").open("ab") as file:
        file.write(b"<!-- a comment of mine -->\n\xff\n<!--" + b"9" * 5000 + b"-->\n")
    (tmp_path / "r" / "samples" / f"{'9' * 200}.png").touch()
    run(dataset, tmp_path, "r", "--continue_train", "--max_iters", "3")
    assert read_stats(tmp_path / "r")[-1]["iteration"] == 3


def test_altered_records_do_not_matter(tmp_path: Path) -> None:
    for seed in range(60):
        lines = [altered_json(random.Random(seed + n), record(n + 1)) for n in (0, 1000, 2000)]
        (tmp_path / STATS).write_bytes(b"\n".join(lines) + b"\n")
        report = Report(tmp_path, "name", {}, LOSSES, resume_at=2001)
        report.add_stats(record(3000))
        assert read_stats(tmp_path)[-1] == record(3000), seed
        if seed % 30 == 0:
            report.close()


def test_a_record_without_a_loss_of_the_current_settings(tmp_path: Path) -> None:
    """It can come from a state that was saved before the settings changed."""
    report = Report(tmp_path, "name", {}, LOSSES)
    report.add_stats({name: value for name, value in record(1).items() if name != "cycle_A"})
    report.close()


def test_a_folder_in_place_of_the_records_is_named(tmp_path: Path) -> None:
    (tmp_path / STATS).mkdir()
    with pytest.raises(UserError, match=r"stats.jsonl: Is a directory"):
        Report(tmp_path, "name", {}, LOSSES)
