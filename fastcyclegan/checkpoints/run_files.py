"""Name, read and write the files of a run: its configuration, and its weights in the official format.

Weights files are named as in the official code. A recipe provides the names; those of CycleGAN are G_A, which
translates A to B, G_B, D_A, which judges images of domain B, and D_B.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fastcyclegan.config import TrainConfig, from_dict, to_dict
from fastcyclegan.errors import UserError, one_line, shortened
from fastcyclegan.files.json_file import read_json
from fastcyclegan.recipes.recipe import Recipe
from fastcyclegan.tensor_files import load_tensors, save_tensors, write_atomically

CONFIG = "config.json"
STATE = "state.pt"
PREVIOUS = "previous_state.pt"
"""The last state that was followed by iterations with normal losses."""
LOCK = ".lock"
"""The file that a process locks while it writes to the folder of a run."""
BEST = "best.json"
"""What is known of the best weights of a run that was evaluated: the iteration, metrics and protocol."""
DATASET = "dataset"
"""The folder of the built-in images of a run."""


_OFFICIAL_GENERATORS = ("G", "G_A", "G_B")


def _generators_of(run: Path) -> list[str]:
    """Return the official names of the generators of ``run``, or [] if its configuration does not tell."""
    with contextlib.suppress(UserError, OSError):
        config = read_config(run)
        if config is not None:
            recipe = config.make_recipe()
            return [recipe.official_names[name] for name in recipe.generators]
    return []


def is_weights_file(file: Path) -> bool:
    """Return whether ``file`` has the name of a weights file of a run."""
    return re.fullmatch(r"\w+_net_\w+\.pth", file.name) is not None


def network_of(file: Path, recipe: Recipe) -> str | None:
    """Return which network of ``recipe`` the weights file of a run is named after, or None if it is none."""
    for name, official in recipe.official_names.items():
        if re.fullmatch(rf"\w+?_net_{re.escape(official)}(_ema)?\.pth", file.name):
            return name
    return None


def weights_file(run: Path, epoch: str, official_name: str, *, ema: bool = False) -> Path:
    """Return the path of a network's weights file, such as ``latest_net_G_A.pth``.

    With ``ema``, the path is that of the running average of the network's weights.
    """
    stem = f"{epoch}_net_{official_name}"
    if ema:
        stem += "_ema"
    return run / f"{stem}.pth"


def read_config(run: Path) -> TrainConfig | None:
    """Return the configuration that ``run`` was started with, or None if none was saved.

    It is read from config.json or, if that file does not exist, from the training state.
    """
    file = run / CONFIG
    if not file.exists():
        return _config_of_state(run / STATE)
    with _named(file):
        return from_dict(read_json(file))


@contextlib.contextmanager
def _named(file: Path) -> Iterator[None]:
    """Raise UserError, which names ``file``, if the block finds that it contains no configuration."""
    try:
        yield
    except (UserError, OSError, ValueError) as error:
        raise UserError(f"{file}: not a valid run configuration: {one_line(error)}") from None


def _config_of_state(file: Path) -> TrainConfig | None:
    if not file.exists():
        return None
    state = load_tensors(file)
    if not isinstance(state, dict) or "config" not in state:
        return None
    with _named(file):
        return from_dict(state["config"])


def write_config(run: Path, config: TrainConfig) -> None:
    """Write ``config`` to config.json in the folder ``run``. Raises OSError if it cannot be written."""
    text = json.dumps(to_dict(config), indent=2) + "\n"
    write_atomically(run / CONFIG, lambda partial: partial.write_text(text))


def remove_partials(run: Path) -> None:
    """Delete the half-written files that a killed process left in ``run`` and its subfolders.

    Call it only while this process holds the lock of the folder.
    """
    for partial in run.rglob(".*.partial"):
        with contextlib.suppress(OSError):
            partial.unlink()


def fit_weights(net: nn.Module, weights: Mapping[str, Tensor], source: Path | str, architecture: str) -> None:
    """Load ``weights`` into ``net``.

    If they do not fit, nothing is loaded, and a UserError states what was expected and what was found.
    """
    problems = differences(net.state_dict(), weights)
    if problems:
        problem = shortened(problems[0], 200)
        if len(problems) > 1:
            problem += f" (and {len(problems) - 1} more)"
        raise UserError(f"{source}: does not match {architecture}: {problem}")
    net.load_state_dict(dict(weights))


def differences(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> list[str]:
    """Return a text for each entry of the state_dict ``actual`` that does not fit ``expected``."""
    reshaped = []
    for name, value in expected.items():
        if name in actual and actual[name].shape != value.shape:
            reshaped.append(f"{name} has the shape {list(actual[name].shape)} instead of {list(value.shape)}")
    missing = [f"{name} is missing" for name in expected if name not in actual]
    extra = [f"{name} is unexpected" for name in actual if name not in expected]
    if reshaped or missing or extra:
        return reshaped + missing + extra
    narrowed = [name for name, value in expected.items() if _overflows(actual[name], value.dtype)]
    return [f"{name} has values that are too large for {expected[name].dtype}" for name in narrowed]


def _overflows(value: Tensor, dtype: torch.dtype) -> bool:
    """Return whether a finite value becomes infinite in ``dtype``."""
    if value.dtype == dtype or not dtype.is_floating_point:
        return False
    return bool((value.isfinite() & ~value.to(dtype).isfinite()).any())


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a state_dict as the official code does: plain contiguous tensors by name.

    Raises OSError if the file cannot be written.
    """
    save_tensors(path, {name: value.contiguous() for name, value in weights.items()})


def saved_epochs(run: Path) -> list[str]:
    """Return the epoch labels (latest, 5, iter_1000 ...) for which ``run`` contains generator weights."""
    numbers: set[str] = set()
    names: set[str] = set()
    generators = {*_OFFICIAL_GENERATORS, *_generators_of(run)}
    for file in run.glob("*_net_*.pth"):
        match = re.fullmatch(r"(\w+?)_net_(\w+)\.pth", file.name)
        if match is None or match[2] not in generators:
            continue
        label = match[1]
        if label.startswith("next_"):  # being written, in place of another set
            continue
        if label.isdigit():
            numbers.add(label)
        else:
            names.add(label)
    return [*sorted(numbers, key=lambda label: label.zfill(12)), *sorted(names)]
