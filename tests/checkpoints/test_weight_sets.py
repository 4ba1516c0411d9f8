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
from fastcyclegan.checkpoints.run_files import BEST, LOCK, weights_file
from fastcyclegan.checkpoints.weight_sets import (
    SETS,
    complete_set,
    is_whole,
    move_later_sets,
    move_set,
    read_sets,
    remove_old_sets,
    replace_set,
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


def kept(run: Path, *sets: tuple[str, int]) -> None:
    """Write sets of these labels and iterations, and the file about the best one."""
    for label, iteration in sets:
        beside = {BEST: str(iteration)} if label == "best" else None
        write_set(run, label, state(iteration), NAMES, beside)


def names(run: Path) -> set[str]:
    return {file.name for file in run.iterdir() if file.is_file()}


OF_BEST = {"best_net_G_A.pth", "best_net_G_B.pth", "best_net_G_A_ema.pth", BEST}


def test_the_best_set_moves_with_what_is_known_of_it(tmp_path: Path) -> None:
    kept(tmp_path, ("best", 4), ("latest", 6))
    assert is_whole(tmp_path, "best", 4)
    require_whole(tmp_path, "best", is_running=False)
    others = names(tmp_path) - OF_BEST
    move_set(tmp_path, "best", tmp_path / "aside", (BEST,))
    assert names(tmp_path / "aside") == OF_BEST
    assert names(tmp_path) == others
    assert read_sets(tmp_path).keys() == {"latest"}
    move_set(tmp_path, "best", tmp_path / "aside", (BEST,))  # nothing is left to move
    assert names(tmp_path / "aside") == OF_BEST


@pytest.mark.parametrize(("iteration", "moves"), [(3, True), (4, False), (9, False)])
def test_a_run_that_goes_back_moves_a_later_best(tmp_path: Path, iteration: int, moves: bool) -> None:
    kept(tmp_path, ("best", 4))
    assert move_later_sets(tmp_path, 0, iteration, "previous", tmp_path / "later") == int(moves)
    assert (names(tmp_path / "later") == OF_BEST) if moves else (names(tmp_path) > OF_BEST)


def test_a_run_that_starts_from_the_best_set_keeps_its_files(tmp_path: Path) -> None:
    kept(tmp_path, ("best", 4))
    assert move_later_sets(tmp_path, 0, 0, "best", tmp_path / "later") == 1
    assert names(tmp_path / "later") == OF_BEST
    assert names(tmp_path) == {*OF_BEST, SETS} - {BEST}
    assert read_sets(tmp_path) == {}


def test_the_best_set_is_not_one_of_the_old_ones(tmp_path: Path) -> None:
    kept(tmp_path, ("best", 1), ("1", 2), ("2", 4))
    remove_old_sets(tmp_path, 1)
    assert read_sets(tmp_path).keys() == {"best", "2"}
    assert names(tmp_path) > OF_BEST


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_set_that_is_replaced_is_lost_at_no_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever rename is the last before a kill, the old set or the new one is whole afterwards."""
    replace, renames = Path.replace, 0

    def counting(source: Path, target: Path) -> Path:
        nonlocal renames
        if renames == 0:
            raise Killed
        renames -= 1
        return replace(source, target)

    seen = set()
    for allowed in range(40):
        run = tmp_path / str(allowed)
        run.mkdir()
        replace_set(run, "best", state(1), NAMES, {BEST: "1"})
        renames, finished = allowed, True
        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", counting)
            try:
                replace_set(run, "best", state(2), NAMES, {BEST: "2"})
            except Killed:
                finished = False
        complete_set(run, "best", (BEST,))
        iteration = read_sets(run)["best"]["iteration"]
        assert is_whole(run, "best", iteration)
        assert (run / BEST).read_text() == str(iteration)
        files = {file.name for file in run.iterdir() if not file.name.startswith(".")}
        names = {"best_net_G_A.pth", "best_net_G_B.pth", "best_net_G_A_ema.pth"}
        assert files == {*names, BEST, SETS}
        seen.add(iteration)
        if finished:
            break
    assert finished
    assert seen == {1, 2}
