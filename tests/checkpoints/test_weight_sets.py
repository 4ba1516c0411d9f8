"""The files of a set belong together: mixed sets are noticed, and old sets are removed."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fastcyclegan.checkpoints import weight_sets
from fastcyclegan.checkpoints.loading import load_generator
from fastcyclegan.checkpoints.run_files import LOCK, weights_file
from fastcyclegan.checkpoints.weight_sets import (
    SETS,
    is_whole,
    read_sets,
    remove_old_sets,
    require_whole,
    write_set,
)
from fastcyclegan.errors import UserError
from fastcyclegan.nn.networks import Generator
from tests.files.altered_values import altered_json

NAMES = {"G_AB": "G_A", "G_BA": "G_B"}


def state(iteration: int) -> dict[str, Any]:
    torch.manual_seed(iteration)
    nets = {name: Generator(3, 3, ngf=2, n_blocks=1).state_dict() for name in NAMES}
    return {"iteration": iteration, "nets": nets, "ema": {"G_AB": nets["G_BA"]}}


def test_a_set_is_whole_only_if_every_file_is_of_its_iteration(tmp_path: Path) -> None:
    write_set(tmp_path, "latest", state(1), NAMES)
    assert is_whole(tmp_path, "latest")
    assert is_whole(tmp_path, "latest", 1)
    assert not is_whole(tmp_path, "latest", 2)
    assert not is_whole(tmp_path, "5")
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert files.keys() == {"latest_net_G_A.pth", "latest_net_G_B.pth", "latest_net_G_A_ema.pth", SETS}
    write_set(tmp_path, "latest", state(2), NAMES)
    # A process that is killed at any point between the two sets leaves some files of each.
    for name in ("latest_net_G_A.pth", "latest_net_G_B.pth", "latest_net_G_A_ema.pth"):
        newer = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(files[name])
        assert not is_whole(tmp_path, "latest")
        with pytest.raises(UserError, match=r"the files latest_net_\*.pth are not all of the same iteration"):
            load_generator(tmp_path, direction="BtoA")
        (tmp_path / name).unlink()
        assert not is_whole(tmp_path, "latest")
        (tmp_path / name).write_bytes(newer)
    assert is_whole(tmp_path, "latest", 2)
    (tmp_path / "latest_net_G_A.pth").write_bytes(b"not an archive")
    assert not is_whole(tmp_path, "latest")


def test_a_file_that_cannot_be_read_is_not_one_of_another_iteration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests may run as a user who can read everything, so the error is made."""
    write_set(tmp_path, "latest", state(1), NAMES)
    file = tmp_path / "latest_net_G_A.pth"
    opened = Path.open

    def refusing(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == file:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refusing)
    monkeypatch.setattr(weight_sets, "checksum", lambda path: "")
    with pytest.raises(UserError, match=r"latest_net_G_A.pth: Permission denied$"):
        require_whole(tmp_path, "latest", is_running=False)


def test_folders_without_a_record_are_accepted(tmp_path: Path) -> None:
    """These are official files, and runs of older versions."""
    write_set(tmp_path, "latest", state(1), NAMES)
    for content in (None, "", "[]", '{"latest": 3}', '{"latest": {"iteration": "x", "files": {}}}', "\x00"):
        (tmp_path / SETS).unlink(missing_ok=True)
        if content is not None:
            (tmp_path / SETS).write_text(content)
        assert read_sets(tmp_path) == {}
        require_whole(tmp_path, "latest", is_running=False)
        assert load_generator(tmp_path)


def test_altered_records_are_legal_or_not_used(tmp_path: Path) -> None:
    """``weights.json`` only guards the files: damage to it neither ends a command nor touches other files."""
    for number, label in enumerate(("latest", "5", "10", "iter_7")):
        write_set(tmp_path, label, state(number), NAMES)
    good = json.loads((tmp_path / SETS).read_text())
    (tmp_path / "other").touch()
    for seed in range(100):
        (tmp_path / SETS).write_bytes(altered_json(random.Random(seed), good))
        for label, entry in read_sets(tmp_path).items():
            assert set(entry) == {"iteration", "files"}, seed
            is_whole(tmp_path, label)
            with contextlib.suppress(UserError):
                require_whole(tmp_path, label, is_running=False)
        if seed % 10 == 0:
            remove_old_sets(tmp_path, 1)
            write_set(tmp_path, "5", state(1), NAMES)
            assert is_whole(tmp_path, "5")
    assert (tmp_path / "other").exists()


def test_a_set_that_is_being_written_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path, "latest", state(1), NAMES)
    written = weights_file(tmp_path, "latest", "G_A")
    newer = written.read_bytes()
    torch.save({}, written)
    (tmp_path / LOCK).touch()
    thread = threading.Thread(target=lambda: (time.sleep(0.3), written.write_bytes(newer)))
    thread.start()
    assert load_generator(tmp_path)
    thread.join()
    torch.save({}, written)
    monkeypatch.setattr(weight_sets, "PATIENCE", 0.1)
    with pytest.raises(UserError, match="are not all of the same iteration"):
        load_generator(tmp_path)


def test_old_sets_are_removed_but_never_the_latest(tmp_path: Path) -> None:
    for label, iteration in (("5", 50), ("iter_70", 70), ("10", 100), ("iter_110", 110), ("15", 150)):
        write_set(tmp_path, label, state(iteration), NAMES)
    write_set(tmp_path, "latest", state(150), NAMES)
    foreign = tmp_path / "1_net_G_A.pth"
    foreign.write_bytes(b"of another program")
    remove_old_sets(tmp_path, 1)
    labels = {file.name.split("_net")[0] for file in tmp_path.glob("*_net_*.pth")}
    assert labels == {"latest", "15", "iter_110", "1"}
    assert read_sets(tmp_path).keys() == {"latest", "15", "iter_110"}
    before = (tmp_path / SETS).stat().st_mtime_ns
    remove_old_sets(tmp_path, 1)
    assert (tmp_path / SETS).stat().st_mtime_ns == before


def test_a_record_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    run, victim = tmp_path / "run", tmp_path / "victim.pth"
    run.mkdir()
    victim.touch()
    sets = {label: {"iteration": 1, "files": {"../victim.pth": ""}} for label in ("1", "2")}
    (run / SETS).write_text(json.dumps(sets))
    remove_old_sets(run, 1)
    assert victim.exists()
