"""The names of a run's files, its configuration, and its weights as official files.

Files have the official code's names, which a recipe tells: its G_A translates A to B, its D_A judges images
of B.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from fastcyclegan.config import TrainConfig, from_dict, to_dict
from fastcyclegan.errors import UserError
from fastcyclegan.tensor_files import load_tensors, save_tensors, write_atomically

CONFIG = "config.json"
STATE = "state.pt"


def weights_file(run: Path, epoch: str, official_name: str, *, ema: bool = False) -> Path:
    """Return the file of a network by its official name: ``{epoch}_net_{G_A,G_B,D_A,D_B}.pth``; ``ema``: of
    its running average.
    """
    stem = f"{epoch}_net_{official_name}"
    if ema:
        stem += "_ema"
    return run / f"{stem}.pth"


def read_config(run: Path) -> TrainConfig | None:
    """Return the configuration that ``run`` was started with, from config.json or else from its state; None
    where it has neither.
    """
    file = run / CONFIG
    if not file.exists():
        return _config_of_state(run / STATE)
    try:
        return from_dict(json.loads(file.read_text()))
    except (UserError, OSError, ValueError) as error:
        raise UserError(f"{file}: not a configuration of a run: {error}") from None


def _config_of_state(file: Path) -> TrainConfig | None:
    if not file.exists():
        return None
    state = load_tensors(file)
    if isinstance(state, dict) and "config" in state:
        return from_dict(state["config"])
    return None


def write_config(run: Path, config: TrainConfig) -> None:
    """Write ``config`` as config.json. Raises OSError where the disk refuses."""
    text = json.dumps(to_dict(config), indent=2) + "\n"
    write_atomically(run / CONFIG, lambda partial: partial.write_text(text))


def remove_partials(run: Path) -> None:
    """Delete what a killed process left half written."""
    for partial in run.glob(".*.partial"):
        with contextlib.suppress(OSError):
            partial.unlink()


def fit_weights(net: nn.Module, weights: Mapping[str, Tensor], source: Path | str, architecture: str) -> None:
    """Load ``weights`` into ``net``. Raises UserError that says what was expected and what was found, and
    loads nothing then.
    """
    problems = _differences(net.state_dict(), weights)
    if problems:
        problem = problems[0]
        if len(problems) > 1:
            problem += f" (and {len(problems) - 1} more differences)"
        raise UserError(f"{source}: another architecture than {architecture}: {problem}")
    net.load_state_dict(dict(weights))


def _differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    reshaped = []
    for name, value in expected.items():
        if name in found and found[name].shape != value.shape:
            reshaped.append(f"{name} is {list(found[name].shape)} where {list(value.shape)} is expected")
    missing = [f"{name} is missing" for name in expected if name not in found]
    extra = [f"{name} is not expected" for name in found if name not in expected]
    return reshaped + missing + extra


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a state_dict as the official code does, plain contiguous tensors by name. Raises OSError where
    the disk refuses.
    """
    save_tensors(path, {name: value.contiguous() for name, value in weights.items()})


def saved_epochs(run: Path) -> list[str]:
    """Return the labels (latest, 5, iter_1000 ...) for which ``run`` has weights of a generator."""
    numbers: set[str] = set()
    words: set[str] = set()
    for file in run.glob("*_net_G*.pth"):
        match = re.fullmatch(r"(\w+)_net_G(?:_[AB])?\.pth", file.name)
        if match is None:
            continue
        label = match[1]
        if label.isdigit():
            numbers.add(label)
        else:
            words.add(label)
    return [*sorted(numbers, key=lambda label: label.zfill(12)), *sorted(words)]
