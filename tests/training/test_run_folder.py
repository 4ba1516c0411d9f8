"""The folder of a run: names that are taken, numbered names, and folders that cannot be written to."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from fastcyclegan import cli
from tests.commands import TINY, fails


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


def test_unwritable_folder(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    error = fails(capsys, "--dataroot", str(dataset), "--checkpoints_dir", str(tmp_path / "file"))
    assert f"cannot write to {tmp_path}/file/photos_1: Not a directory" in error

    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "touch", refuse)
    error = fails(capsys, "--dataroot", str(dataset), "--checkpoints_dir", str(tmp_path / "runs"))
    assert f"cannot write to {tmp_path}/runs/photos_1: Permission denied" in error
