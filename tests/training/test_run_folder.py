"""The folder of a run: names that are taken, numbered names, and folders that cannot be written to."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from fastcyclegan import CycleGAN, cli
from fastcyclegan.checkpoints import run_files
from fastcyclegan.checkpoints.run_files import CONFIG, LOCK
from fastcyclegan.checkpoints.weight_sets import is_whole
from fastcyclegan.cli import parse_train
from fastcyclegan.config import DataConfig, RunConfig, TrainConfig
from fastcyclegan.errors import UserError, printable
from fastcyclegan.tensor_files import load_tensors
from fastcyclegan.training.run_folder import RunFolder, resume_command
from fastcyclegan.training.run_lock import RunLock
from fastcyclegan.training.trainer import Trainer
from tests.commands import TINY, fails
from tests.training.runs import assert_same_state, forked, run


def test_an_existing_name(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("--dataroot", str(dataset), "--checkpoints_dir", str(tmp_path), "--name", "r", "--max_iters", "1")
    assert cli.train([*TINY, *args]) == 0
    capsys.readouterr()
    assert "r already exists: use --continue_train, --overwrite or another --name" in fails(capsys, *args)
    (tmp_path / "r" / "notes.txt").write_text("mine")
    assert cli.train([*TINY, *args, "--overwrite"]) == 0
    assert (tmp_path / "r" / "notes.txt").read_text() == "mine"
    # A folder that is not a run is never replaced.
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "photo.png").touch()
    capsys.readouterr()
    assert "is not a run folder, so --overwrite does not replace it" in fails(
        capsys, *args, "--name", "q", "--overwrite"
    )


@pytest.mark.parametrize("name", ["r", "it's a", "-y", "$HOME"])
@pytest.mark.parametrize("folder", ["runs", "o v", "-v"])
def test_the_command_that_resumes_a_run_is_quoted_for_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, folder: str
) -> None:
    config = RunConfig(name=name, checkpoints_dir=Path(folder))
    monkeypatch.chdir(tmp_path)
    run_files.write_config(make_folder(Path(folder, name)), TrainConfig(run=config))
    flags = shlex.split(resume_command(config, previous=True))
    resumed = parse_train(flags).run
    assert (resumed.name, resumed.checkpoints_dir) == (name, Path(folder))
    assert resumed.continue_train
    assert resumed.epoch == "previous"


def make_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_a_name_that_is_no_folder_name_is_refused_when_resuming_too(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(dataset, tmp_path, "r", "--max_iters", "1")
    capsys.readouterr()
    error = fails(capsys, "--continue_train", "--name", ".", "--checkpoints_dir", str(tmp_path))
    assert "name must be a plain folder name, got '.'" in error


def test_numbered_default_names(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert (
            cli.train(
                [*TINY, "--dataroot", str(dataset), "--checkpoints_dir", str(tmp_path), "--max_iters", "1"]
            )
            == 0
        )
    assert {path.name for path in tmp_path.iterdir()} >= {"photos_1", "photos_2"}
    output = capsys.readouterr().out
    assert f"images: {tmp_path}/photos_2/samples and {tmp_path}/photos_2/index.html" in output
    assert json.loads((tmp_path / "photos_2" / "config.json").read_text())["run"]["name"] == "photos_2"


def test_default_names_of_long_folders(tmp_path: Path) -> None:
    """The names of both folders do not fit into one, and different folders get different names."""
    names = set()
    for last in "bc":
        data = DataConfig(data_A=tmp_path / ("a" * 200), data_B=tmp_path / ("\u00e9" * 100 + last))
        for _ in range(2):
            folder = RunFolder(TrainConfig(data, run=RunConfig(checkpoints_dir=tmp_path / "runs")), print)
            folder.open()
            folder.release()
            names.add(folder.path.name)
            (folder.path / "config.json").touch()
    assert len(names) == 4
    assert {name[-2:] for name in names} == {"_1", "_2"}
    assert {path.name for path in (tmp_path / "runs").iterdir()} == names


def test_unwritable_folder(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    error = fails(capsys, "--dataroot", str(dataset), "--checkpoints_dir", str(tmp_path / "file"))
    assert f"cannot write to {tmp_path}/file/photos_1: Not a directory" in error
    assert (tmp_path / "file").read_text() == ""

    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "touch", refuse)
    error = fails(capsys, "--dataroot", str(dataset), "--checkpoints_dir", str(tmp_path / "runs"))
    assert f"cannot write to {tmp_path}/runs/photos_1: Permission denied" in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", [None, "r"])
def test_runs_that_start_together_never_share_a_folder(tmp_path: Path, name: str | None) -> None:
    """Eight processes start at the same moment. Each gets a number of its own, or one gets the name."""
    data, run = (
        DataConfig(dataroot=tmp_path / "photos"),
        RunConfig(name=name, checkpoints_dir=tmp_path / "runs"),
    )
    start, release = time.monotonic() + 0.3, os.pipe()

    def take() -> str:
        try:
            folder = RunFolder(TrainConfig(data, run=run), print)
            time.sleep(max(start - time.monotonic(), 0))
            folder.open()
        except UserError as error:
            return str(error)
        return f"took {folder.path.name}"

    # A process keeps its folder until all have reported.
    outputs = [forked(take, until=release) for _ in range(8)]
    os.close(release[0])
    lines = sorted(output.readline().strip() for output in outputs)
    os.close(release[1])
    for output in outputs:
        assert output.read() == ""  # the process has ended
        output.close()
    if name is None:
        assert lines == [f"took photos_{number}" for number in range(1, 9)]
        return
    assert lines[-1] == "took r"
    assert len(lines) == 8
    in_use = r".*/runs/r is in use by (process \d+ on .*|another process): stop it first, or use another .*"
    for line in lines[:-1]:
        assert re.fullmatch(in_use, line)


def test_a_running_run_cannot_be_continued_replaced_or_saved_over(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("--dataroot", str(dataset), "--checkpoints_dir", str(tmp_path), "--name", "r", "--max_iters", "1")
    assert cli.train([*TINY, *args]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file()}
    lock = RunLock(tmp_path / "r")
    in_use = f"r is in use by process {os.getpid()} on "
    capsys.readouterr()
    for flag in ("--continue_train", "--overwrite"):
        assert in_use in fails(capsys, *args, flag)
    model = CycleGAN(netG="resnet_0blocks", netD="pixel", ngf=2, ndf=2)
    with pytest.raises(UserError, match=in_use):
        model.save(tmp_path / "r", overwrite=True)
    assert CycleGAN.load(tmp_path / "r").iteration == 1  # reading is possible
    lock.release()
    assert {path: path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file()} == before
    assert cli.train([*TINY, *args, "--continue_train", "--max_iters", "2"]) == 0


def test_a_callback_can_save_the_model_in_the_folder_of_its_run(dataset: Path, tmp_path: Path) -> None:
    model = CycleGAN(netG="resnet_0blocks", netD="pixel", ngf=2, ndf=2, crop_size=16, load_size=16)
    saved = []

    def save(model: CycleGAN, record: dict[str, object]) -> None:
        model.save(tmp_path / "r")
        saved.append(load_tensors(tmp_path / "r" / "state.pt")["iteration"])
        assert is_whole(tmp_path / "r", "latest", model.iteration)

    model.fit(dataset, folder=tmp_path / "r", callbacks=[save], print_freq=1, max_iters=3, num_threads=0)
    assert saved == [1, 2, 3]


def test_a_folder_that_is_deleted_or_replaced_ends_the_run(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise, the run would mix its files with those of another run that took the name."""
    after_step = Trainer._after_step

    def replace(self: Trainer, epoch: int, images: int) -> None:
        if self.run.iteration == 2:
            (tmp_path / "r").rename(tmp_path / "old")
            (tmp_path / "r").mkdir()
            (tmp_path / "r" / "notes.txt").touch()
        after_step(self, epoch, images)

    monkeypatch.setattr(Trainer, "_after_step", replace)
    with pytest.raises(UserError, match="r was deleted, moved or replaced while this run was writing to it"):
        run(dataset, tmp_path, "r", "--max_iters", "4", "--print_freq", "1")
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("left", [
    pytest.param([LOCK], id="the lock"),
    pytest.param([LOCK, ".writable.partial", ".config.json.77.partial"], id="half-written files"),
    pytest.param([LOCK, "dataset/trainA/000.png"], id="a half-drawn image"),
])  # fmt: skip
def test_a_start_that_was_killed_leaves_a_folder_that_the_same_command_accepts(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], left: list[str]
) -> None:
    args = ["--checkpoints_dir", str(tmp_path), "--name", "r", "--max_iters", "1", "--device", "cpu"]
    for name in left:
        (tmp_path / "r" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "r" / name).write_bytes(b"half")
    if len(left) == 1:
        # A second start that is stopped early must not make it worse.
        assert "no such folder" in fails(capsys, *args, "--dataroot", str(tmp_path / "none"))
        (tmp_path / "r").mkdir(exist_ok=True)
    if "dataset/trainA/000.png" in left:
        args += "--ngf 2 --ndf 2 --netG resnet_0blocks".split()
    else:
        args += [*TINY, "--dataroot", str(dataset)]
    assert cli.train(args) == 0, capsys.readouterr()
    assert not list((tmp_path / "r").glob(".*"))


def test_an_unfinished_removal_of_a_run_can_be_repeated(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--overwrite is killed at each of its deletions. The same command works, and other files are kept."""
    args = (*TINY, "--dataroot", str(dataset), "--checkpoints_dir", str(tmp_path), "--name", "r")
    args = (*args, "--max_iters", "1", "--overwrite")
    delete = {shutil: shutil.rmtree, Path: Path.unlink}
    assert cli.train(args) == 0
    killed_at = count = 0

    def kill(owner: Any, *values: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        if count >= killed_at:
            raise SystemExit(137)
        delete[owner](*values, **options)

    while count >= killed_at:
        killed_at, count = killed_at + 3, 0
        (tmp_path / "r" / "notes.txt").write_text("mine")
        with monkeypatch.context() as patched:
            patched.setattr(shutil, "rmtree", functools.partial(kill, shutil))
            patched.setattr(Path, "unlink", lambda *values, **options: kill(Path, *values, **options))
            folder = RunFolder(parse_train(args), print)
            with contextlib.suppress(SystemExit):
                folder.open()
            assert folder.lock is not None
            folder.lock.close_in_child()  # as if the process were gone: the file stays
        if count >= killed_at:
            assert cli.train(args) == 0
        assert (tmp_path / "r" / "notes.txt").read_text() == "mine"
    assert killed_at > 12


def test_a_run_without_a_saved_state_starts_from_the_beginning(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(dataset, tmp_path, "whole", "--max_iters", "3")
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / CONFIG).write_bytes((tmp_path / "whole" / CONFIG).read_bytes())
    run(dataset, tmp_path, "r", "--continue_train", "--max_iters", "3")
    assert "r has no saved state yet, so training starts from the beginning" in capsys.readouterr().out
    assert_same_state(tmp_path / "whole", tmp_path / "r")


def test_a_start_that_fails_late_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "image.png"))

    monkeypatch.setattr(Path, "write_bytes", full)
    small = "--ngf 2 --ndf 2 --netG resnet_0blocks --device cpu".split()
    assert cli.train([*small, "--checkpoints_dir", str(tmp_path / "runs"), "--name", "r"]) == 2
    message = f"error: cannot write {tmp_path}/image.png: No space left on device (disk "
    assert capsys.readouterr().err.startswith(message)
    assert not (tmp_path / "runs").exists()
    (tmp_path / "runs").mkdir()
    assert cli.train([*small, "--checkpoints_dir", str(tmp_path / "runs")]) == 2
    assert not list((tmp_path / "runs").iterdir())


def test_a_run_is_named_after_a_dataset_of_any_name(tmp_path: Path) -> None:
    for name, expected in ((os.fsdecode(b".d\xe9\n"), "d___1"), ("...", "dataset_1"), ("写真 x", "写真 x_1")):
        data = DataConfig(dataroot=tmp_path / name)
        folder = RunFolder(TrainConfig(data=data, run=RunConfig(checkpoints_dir=tmp_path)), print)
        folder.open()
        assert folder.path.name == expected
        folder.release()


def test_the_command_that_resumes_a_run_can_be_copied_whatever_the_folder(tmp_path: Path) -> None:
    folder = os.fsdecode(b"\xe9\n\x1b' \\x \"$HOME")
    command = resume_command(RunConfig(name="r", checkpoints_dir=Path(folder)))
    assert printable(command) == command
    shown = subprocess.run(["bash", "-c", f"printf '%s|' {command}"], capture_output=True, check=True).stdout
    assert shown.split(b"|")[-2] == os.fsencode(folder)
