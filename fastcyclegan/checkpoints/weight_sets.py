"""Write the weights files of a run as sets, and check that the files of a set belong together.

A set is the files of all networks at one iteration, under one label (latest, 5, iter_1000 ...). The files are
written one after the other, so a process that is killed meanwhile leaves files of two iterations. The file
``weights.json`` is therefore written last. It records the iteration of each set and the checksums of its
files.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastcyclegan.checkpoints.run_files import BEST, save_weights, saved_epochs, weights_file
from fastcyclegan.errors import UserError, system_reason
from fastcyclegan.files.json_file import read_json
from fastcyclegan.files.schema import MisfitError, entries, record, whole
from fastcyclegan.settings.checks import is_folder_name
from fastcyclegan.tensor_files import checksum, write_atomically

SETS = "weights.json"
NEXT = "next_"
"""Beginning of the label of a set that is to replace another one, and of the names of its files."""
# A running process writes a set within seconds. Readers wait this long for it to finish.
PATIENCE = 30.0

_ENTRY = record({"iteration": whole(0, 2**63 - 1), "files": entries})

Sets = dict[str, dict[str, Any]]
"""The iteration and the checksums of the files of each set, by label."""


def read_sets(run: Path) -> Sets:
    """Return the sets that ``run`` records; {} for folders of official files and of older versions."""
    try:
        sets = read_json(run / SETS)
    except (OSError, ValueError):
        return {}
    if not isinstance(sets, dict):
        return {}
    return {label: entry for label, entry in sets.items() if _is_set(label, entry)}


def _is_set(label: str, entry: Any) -> bool:
    """Return whether ``entry`` records a set of files in this folder, under ``label``."""
    try:
        _ENTRY(entry, "")
    except MisfitError:
        return False
    files = entry["files"].items()
    are_files = all(is_folder_name(name) and isinstance(digest, str) for name, digest in files)
    return are_files and re.fullmatch(rf"latest|({NEXT})?best|(iter_)?[0-9]{{1,18}}", label) is not None


def write_set(
    run: Path,
    label: str,
    state: Mapping[str, Any],
    names: Mapping[str, str],
    beside: Mapping[str, str] | None = None,
) -> None:
    """Write the networks of ``state``, and their running averages if it has some, under ``label``.

    ``names`` maps the networks to their official names. ``beside`` has the contents of files about the set,
    by name, which are written at the end. Raises OSError if a file cannot be written.
    """
    files = {}
    for average, part in ((False, state["nets"]), (True, state.get("ema", {}))):
        for name, weights in part.items():
            file = weights_file(run, label, names[name], ema=average)
            save_weights(file, weights)
            files[file.name] = checksum(file)
    for name, contents in ({} if beside is None else beside).items():
        _write_text(run / name, contents)
    _write_sets(run, {**read_sets(run), label: {"iteration": state["iteration"], "files": files}})


def replace_set(
    run: Path,
    label: str,
    state: Mapping[str, Any],
    names: Mapping[str, str],
    beside: Mapping[str, str],
) -> None:
    """Write a set as ``write_set`` does, so that the one it replaces is not lost if the process is killed.

    The new set is first written under another label. ``complete_set`` then finishes what was interrupted.
    """
    following = {f"{NEXT}{name}": contents for name, contents in beside.items()}
    write_set(run, f"{NEXT}{label}", state, names, following)
    complete_set(run, label, tuple(beside))


def complete_set(run: Path, label: str, beside: Sequence[str]) -> None:
    """Finish replacing the set ``label``, or remove what was written of a new one that is not complete.

    ``beside`` are the names of files about the set. Raises OSError if a file cannot be written.
    """
    sets = read_sets(run)
    entry = sets.pop(f"{NEXT}{label}", None)
    names = [
        *(file.name for file in run.glob(f"{NEXT}{label}_net_*.pth")),
        *(f"{NEXT}{name}" for name in beside),
    ]
    for name in names:
        if entry is None:
            (run / name).unlink(missing_ok=True)
        elif (run / name).exists():
            (run / name).replace(run / name.removeprefix(NEXT))
    if entry is not None:
        files = {name.removeprefix(NEXT): digest for name, digest in entry["files"].items()}
        _write_sets(run, {**sets, label: {**entry, "files": files}})


def _write_sets(run: Path, sets: Sets) -> None:
    _write_text(run / SETS, json.dumps(sets, indent=1) + "\n")


def _write_text(file: Path, text: str) -> None:
    write_atomically(file, lambda partial: partial.write_text(text))


def remove_old_sets(run: Path, keep: int) -> None:
    """Delete the oldest permanent sets, so that ``keep`` of epochs and ``keep`` of iterations remain.

    Only sets that ``weights.json`` records are deleted, and never the latest one. Raises OSError if that
    fails.
    """
    sets = read_sets(run)
    epochs = sorted((label for label in sets if label.isdecimal()), key=int)
    iterations = sorted(
        (label for label in sets if label.startswith("iter_")), key=lambda label: sets[label]["iteration"]
    )
    old = [*epochs[:-keep], *iterations[:-keep]]
    if not old:
        return
    files = [run / name for label in old for name in sets[label]["files"]]
    # The files go first: a set that is recorded but incomplete is removed again at the next call.
    for file in files:
        if file.parent == run:
            file.unlink(missing_ok=True)
    _write_sets(run, {label: entry for label, entry in sets.items() if label not in old})


def move_later_sets(run: Path, epoch: int, iteration: int, start: str, folder: Path) -> int:
    """Move the sets of epochs after ``epoch`` and of iterations after ``iteration`` to ``folder``.

    A run that goes back would write others in their place. The set ``start`` that it starts from is copied
    instead. Returns the number of sets. Raises OSError if a file cannot be moved.
    """
    sets = read_sets(run)
    labels = [label for label in saved_epochs(run) if _is_later(label, epoch, iteration, sets)]
    if not labels:
        return 0
    folder.mkdir(exist_ok=True)
    if any(label in sets for label in labels):
        _write_sets(run, {label: entry for label, entry in sets.items() if label not in labels})
    for label in labels:
        for file in run.glob(f"{label}_net_*.pth"):
            if label == start:
                shutil.copy2(file, folder / file.name)
            else:
                file.replace(folder / file.name)
        if label == "best" and (run / BEST).exists():
            (run / BEST).replace(folder / BEST)
    return len(labels)


def move_set(run: Path, label: str, folder: Path, beside: Sequence[str] = ()) -> None:
    """Move the set ``label``, and the files ``beside`` it, to ``folder``, which is created.

    Raises OSError if a file cannot be moved.
    """
    folder.mkdir(exist_ok=True)
    _write_sets(run, {other: entry for other, entry in read_sets(run).items() if other != label})
    files = [*run.glob(f"{label}_net_*.pth"), *(run / name for name in beside)]
    for file in files:
        if file.exists():
            file.replace(folder / file.name)


def _is_later(label: str, epoch: int, iteration: int, sets: Sets) -> bool:
    if label == "best":
        return label in sets and sets[label]["iteration"] > iteration
    if label.isdecimal():
        return int(label) > epoch
    number = label.removeprefix("iter_")
    return number.isdecimal() and int(number) > iteration


def is_whole(run: Path, label: str, iteration: int | None = None) -> bool:
    """Return whether the files under ``label`` are those of the set that ``weights.json`` records.

    If ``iteration`` is given, the set must also be of this iteration.
    """
    entry = read_sets(run).get(label)
    if entry is None or iteration not in (None, entry["iteration"]):
        return False
    return all(checksum(run / name) == expected for name, expected in entry["files"].items())


def _require_readable(run: Path, label: str) -> None:
    """Raise UserError if a file of the set ``label`` is there, but cannot be read."""
    for name in read_sets(run).get(label, {"files": {}})["files"]:
        try:
            (run / name).open("rb").close()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise UserError(f"{run / name}: {system_reason(error)}") from None


def require_whole(run: Path, label: str, *, is_running: bool) -> None:
    """Raise UserError if ``weights.json`` shows that the files under ``label`` do not belong together.

    If a process is writing to the folder (``is_running``), wait for it to finish writing the set. Folders
    without a record of this set are accepted.
    """
    deadline = time.monotonic() + PATIENCE
    while label in read_sets(run) and not is_whole(run, label):
        _require_readable(run, label)
        if not is_running or time.monotonic() > deadline:
            again = "to write them again, resume the run with --continue_train"
            if label == "best":
                again = "a resumed run completes them if it was interrupted, or writes better ones"
            raise UserError(
                f"{run}: the files {label}_net_*.pth are not all of the same iteration, because the run"
                f" was interrupted while it saved them, or because one was replaced; {again}; to use one as"
                " it is, pass the file itself"
            )
        time.sleep(0.1)
