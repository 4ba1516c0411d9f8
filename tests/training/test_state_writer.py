"""The previous state is kept if a new one is not finite or does not fit on the disk."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from fastcyclegan import cli
from fastcyclegan.checkpoints.weight_sets import is_whole
from fastcyclegan.errors import UserError
from fastcyclegan.tensor_files import load_tensors
from fastcyclegan.training import state_writer
from fastcyclegan.training.run_report import read_stats
from tests.training.runs import assert_same_state, run


def test_weights_that_are_not_finite_are_not_saved(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is computed before the update, so it can be finite even if the last update broke the weights.

    The writer therefore checks the weights too.
    """
    from fastcyclegan.engine import Engine

    step = Engine.step

    def ruin(self: Engine, batch: Any, lr: float) -> torch.Tensor:
        losses = step(self, batch, lr)
        with torch.no_grad():
            next(self.nets["G_AB"].parameters()).fill_(float("nan"))
        return losses

    run(dataset, tmp_path, "r", "--max_iters", "1")
    before = (tmp_path / "r" / "state.pt").read_bytes()
    monkeypatch.setattr(Engine, "step", ruin)
    with pytest.raises(
        UserError, match="weights are not finite after iteration 2; the last good state is from iteration 1"
    ):
        run(dataset, tmp_path, "r", "--continue_train", "--max_iters", "2")
    assert (tmp_path / "r" / "state.pt").read_bytes() == before


@pytest.mark.parametrize("full", ["state", "weights"])
def test_a_full_disk_keeps_the_old_state(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    run(dataset, tmp_path, "r", "--max_iters", "2")
    files = {path: path.read_bytes() for path in (tmp_path / "r").glob("*.pt*")}
    save = torch.save

    def refuse(value: Any, file: IO[bytes]) -> None:
        """Imitate torch on a full disk: it raises its own error while the file's error is being handled."""
        if full == "weights" and "state" in file.name:
            return save(value, file)
        file.write(b"half")
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc]") from None

    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(
        UserError,
        match=(
            r"saving failed at iteration 3: cannot write .*(state|latest_net_G_A)\.pth?: No space left on"
            r" device \(disk .*: [\d,.]+ of [\d,.]+ GiB free\); the last good state is from iteration [23]"
        ),
    ):
        run(dataset, tmp_path, "r", "--continue_train", "--max_iters", "3")
    if full == "state":
        assert {path: path.read_bytes() for path in files} == files
    assert not list((tmp_path / "r").glob(".*"))
    assert load_tensors(tmp_path / "r" / "state.pt")["iteration"] == (2 if full == "state" else 3)


def grow(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply the losses by ``factor`` in each iteration until they are inf. The weights stay finite."""
    from fastcyclegan.engine import Engine

    step = Engine.step
    count = 0

    def growing(self: Engine, batch: Any, lr: float) -> torch.Tensor:
        nonlocal count
        count += 1
        return step(self, batch, lr) * min(factor**count, 3e38)

    monkeypatch.setattr(Engine, "step", growing)


@pytest.mark.usefixtures("saves_at_once")
def test_the_state_before_the_losses_grew_is_kept(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run diverges for many saves before a loss is infinite. The last line names a state from before.

    It is that of iteration 6: the losses after that of iteration 8 are too large from the start.
    """
    more = ("--save_latest_freq", "2", "--print_freq", "2", "--save_epoch_freq", "0")
    run(dataset, tmp_path, "r", *more, "--max_iters", "8")
    with monkeypatch.context() as patched:
        grow(8.0, patched)
        with pytest.raises(UserError) as caught:
            run(dataset, tmp_path, "r", "--continue_train", "--max_iters", "200")
    last = load_tensors(tmp_path / "r" / "state.pt")["iteration"]
    command = f"--continue_train --name r --checkpoints_dir {tmp_path} --epoch previous"
    assert str(caught.value).endswith(
        f"; the state of iteration {last} is kept in {tmp_path / 'r'}, but the losses right after it were not"
        f" normal; the last good one is previous_state.pt; to resume from that with"
        f" half the learning rate: {command} --lr 0.0001"
    )
    assert last > 20
    assert load_tensors(tmp_path / "r" / "previous_state.pt")["iteration"] == 6
    # The command works, and its result is that of a run that never diverged.
    capsys.readouterr()
    assert cli.train([*command.split(), "--max_iters", "12"]) == 0
    assert f"resuming {tmp_path / 'r'} after iteration 6" in capsys.readouterr().out
    run(dataset, tmp_path, "whole", *more, "--max_iters", "12")
    assert_same_state(tmp_path / "whole", tmp_path / "r")
    assert is_whole(tmp_path / "r", "latest", 12)
    assert [record["iteration"] for record in read_stats(tmp_path / "r")] == [2, 4, 6, 8, 10, 12]


def end_suddenly(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the losses of the iteration ``at`` NaN."""
    from fastcyclegan.engine import Engine

    step = Engine.step
    count = 0

    def suddenly(self: Engine, batch: Any, lr: float) -> torch.Tensor:
        nonlocal count
        count += 1
        return step(self, batch, lr) * (float("nan") if count == at else 1.0)

    monkeypatch.setattr(Engine, "step", suddenly)


SAVES = ("--save_latest_freq", "2", "--print_freq", "1", "--max_iters", "9")


@pytest.mark.usefixtures("saves_at_once")
def test_a_sudden_end_names_the_last_state(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_suddenly(6, monkeypatch)
    with pytest.raises(
        UserError, match=r"at iteration 6; the state of iteration 4 is kept in .*/r; to resume"
    ) as caught:
        run(dataset, tmp_path, "r", *SAVES)
    monkeypatch.undo()
    _, _, command = str(caught.value).partition("to resume from it with half the learning rate: ")
    assert cli.train([*command.split(), "--max_iters", "6"]) == 0
    records = {record["iteration"]: record["lr"] for record in read_stats(tmp_path / "r")}
    assert records == {1: 2e-4, 2: 2e-4, 3: 2e-4, 4: 2e-4, 5: 1e-4, 6: 1e-4}


@pytest.mark.usefixtures("saves_at_once")
def test_a_sudden_end_right_after_a_save_names_the_state_before(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing speaks for the last state: the first iteration that computed with it failed."""
    end_suddenly(5, monkeypatch)
    with pytest.raises(
        UserError,
        match=(
            r"at iteration 5; the state of iteration 4 is kept in .*/r, but the losses right after it were"
            r" not normal; the last good one is previous_state.pt; to resume from that with half the learning"
            r" rate: .* --epoch previous --lr 0.0001$"
        ),
    ):
        run(dataset, tmp_path, "r", *SAVES)
    assert load_tensors(tmp_path / "r" / "previous_state.pt")["iteration"] == 2


def test_a_sudden_end_names_the_state_that_is_being_written(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It will be the last one, because the process waits for it before it ends."""
    save = state_writer.save_tensors

    def slowly(file: Path, value: Any) -> None:
        time.sleep(1.0)
        save(file, value)

    monkeypatch.setattr(state_writer, "save_tensors", slowly)
    end_suddenly(4, monkeypatch)
    with pytest.raises(UserError, match="at iteration 4; the state of iteration 2 is kept in"):
        run(dataset, tmp_path, "r", *SAVES)
    assert load_tensors(tmp_path / "r" / "state.pt")["iteration"] == 2


@pytest.mark.usefixtures("saves_at_once")
def test_a_damaged_state_names_the_one_before(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path, "r", "--save_latest_freq", "2", "--max_iters", "4")
    (tmp_path / "r" / "state.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"state.pt: .*; to resume from the state before it: ") as caught:
        run(dataset, tmp_path, "r", "--continue_train")
    _, _, command = str(caught.value).partition("the state before it: ")
    assert cli.train([*command.split(), "--max_iters", "6"]) == 0
    run(dataset, tmp_path, "whole", "--save_latest_freq", "2", "--max_iters", "6")
    assert_same_state(tmp_path / "whole", tmp_path / "r")
    (tmp_path / "r" / "state.pt").write_bytes(b"damaged")
    (tmp_path / "r" / "previous_state.pt").unlink()
    with pytest.raises(UserError, match=r"state.pt: [^;]*$"):
        run(dataset, tmp_path, "r", "--continue_train")


@pytest.mark.usefixtures("saves_at_once")
def test_a_lost_state_does_not_replace_later_weights_without_being_asked(
    dataset: Path, tmp_path: Path
) -> None:
    run(dataset, tmp_path, "r", "--save_latest_freq", "2", "--max_iters", "4")
    (tmp_path / "r" / "state.pt").unlink()
    files = {path: path.read_bytes() for path in (tmp_path / "r").glob("*_net_*")}
    with pytest.raises(
        UserError,
        match=(
            r"state.pt: no such file; the weights in latest_net_\*.pth are those of iteration 4, and"
            r" previous_state.pt is that of iteration 2: --epoch previous resumes from there"
        ),
    ):
        run(dataset, tmp_path, "r", "--continue_train", "--max_iters", "6")
    assert {path: path.read_bytes() for path in files} == files
    run(dataset, tmp_path, "r", "--continue_train", "--epoch", "previous", "--max_iters", "6")
    run(dataset, tmp_path, "whole", "--save_latest_freq", "2", "--max_iters", "6")
    assert_same_state(tmp_path / "whole", tmp_path / "r")


def test_the_previous_state_without_one(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path, "r", "--max_iters", "2")
    with pytest.raises(UserError, match=r"previous_state.pt: no such file: no state before the last one was"):
        run(dataset, tmp_path, "r", "--continue_train", "--epoch", "previous")


@pytest.mark.usefixtures("saves_at_once")
def test_file_systems_without_hard_links(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The previous state is renamed there, so a process may be killed when there is no state.pt."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    run(dataset, tmp_path, "r", "--save_latest_freq", "1", "--max_iters", "3")
    assert load_tensors(tmp_path / "r" / "previous_state.pt")["iteration"] == 2
    (tmp_path / "r" / "state.pt").replace(tmp_path / "r" / "previous_state.pt")
    run(dataset, tmp_path, "r", "--continue_train", "--max_iters", "5")
    assert "state.pt: no such file, so the run resumes from previous_state.pt" in capsys.readouterr().out
    run(dataset, tmp_path, "whole", "--max_iters", "5")
    assert_same_state(tmp_path / "whole", tmp_path / "r")


@pytest.mark.parametrize("lost", ["one file", "all files", "another iteration"])
def test_weights_that_do_not_belong_to_the_state_are_written_again(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lost: str
) -> None:
    """Also if there is nothing left to train."""
    folder = tmp_path / "r"
    run(dataset, tmp_path, "r", "--max_iters", "2", "--ema", "0.5")
    older = {file: file.read_bytes() for file in folder.glob("latest_net_*")}
    run(dataset, tmp_path, "r", "--continue_train", "--max_iters", "4")
    expected = {file: file.read_bytes() for file in folder.glob("latest_net_*")}
    assert len(expected) == 6
    if lost == "one file":
        (folder / "latest_net_G_B.pth").unlink()
    for file, content in older.items():
        if lost == "all files":
            file.unlink()
        elif lost == "another iteration":
            file.write_bytes(content)
    capsys.readouterr()
    run(dataset, tmp_path, "r", "--continue_train")
    assert "wrote the weights of iteration 4, which the folder lacked" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in folder.glob("latest_net_*")} == expected
    run(dataset, tmp_path, "r", "--continue_train")
    assert "wrote the weights" not in capsys.readouterr().out


def test_only_the_newest_copies_of_the_weights_are_kept(dataset: Path, tmp_path: Path) -> None:
    """A save is left out while the last one is still being written, so their iterations are not certain."""

    def kept() -> tuple[set[str], list[int]]:
        labels = {file.name.split("_net")[0] for file in (tmp_path / "r").glob("*_net_*.pth")}
        iterations = [int(label.removeprefix("iter_")) for label in labels if label.startswith("iter_")]
        return {label for label in labels if not label.startswith("iter_")}, sorted(iterations)

    more = ("--save_epoch_freq", "1", "--keep_epochs", "2", "--save_by_iter", "--save_latest_freq", "1")
    run(dataset, tmp_path, "r", *more, "--max_iters", "21")
    epochs, first = kept()
    assert epochs == {"latest", "3", "4"}
    assert 1 <= len(first) <= 2
    run(dataset, tmp_path, "r", "--continue_train", "--keep_epochs", "1", "--max_iters", "29")
    epochs, second = kept()
    assert epochs == {"latest", "5"}
    assert len(second) == 1
    assert second[0] >= first[-1]
