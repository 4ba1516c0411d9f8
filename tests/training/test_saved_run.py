"""Files of an earlier version of the package can be loaded, and training continues bit for bit.

The files are those of a run, its weights and a model card.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcyclegan import Generator, load_generator
from fastcyclegan.checkpoints.run_files import read_config
from fastcyclegan.config import TrainConfig, to_dict
from fastcyclegan.console import Console
from fastcyclegan.tensor_files import load_tensors
from fastcyclegan.training.start import start
from fastcyclegan.training.trainer import Trainer, train

# Three iterations on the built-in dataset: resnet_1blocks with ngf 1, D of one layer with ndf 1, 16 pixels,
# pools of 2, averages with decay 0.9.
SAVED = Path(__file__).parent / "saved_run.tar.xz"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder that contains the run "saved" and the folder "card" of its generator."""
    with tarfile.open(SAVED) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def resumed(folder: Path, last: int) -> TrainConfig:
    """Return the run's configuration, changed to resume and to end after iteration ``last``."""
    config = read_config(folder / "saved")
    assert config is not None
    run = dataclasses.replace(config.run, checkpoints_dir=folder, continue_train=True)
    return dataclasses.replace(config, run=run, optim=dataclasses.replace(config.optim, max_iters=last))


def differences(ours: Any, expected: Any, path: str = "") -> list[str]:
    """Return the paths at which two nested states differ, comparing the bits of tensors."""
    if isinstance(ours, Tensor) and isinstance(expected, Tensor):
        return (
            []
            if ours.dtype == expected.dtype and ours.shape == expected.shape and torch.equal(ours, expected)
            else [path]
        )
    if isinstance(ours, dict) and isinstance(expected, dict):
        keys = [*ours, *(key for key in expected if key not in ours)]
        return [
            difference
            for key in keys
            for difference in differences(
                ours.get(key, "nothing"), expected.get(key, "nothing"), f"{path}/{key}"
            )
        ]
    if isinstance(ours, (list, tuple)) and isinstance(expected, (list, tuple)) and len(ours) == len(expected):
        return [
            difference
            for n, pair in enumerate(zip(ours, expected, strict=True))
            for difference in differences(*pair, f"{path}/{n}")
        ]
    return [] if ours == expected else [path]


def test_the_fixture_is_small() -> None:
    assert SAVED.stat().st_size < 100 * 1024


def test_the_saved_configuration_is_read_completely(saved: Path) -> None:
    config = read_config(saved / "saved")
    assert config is not None
    expected = json.loads((saved / "saved" / "config.json").read_text())
    assert expected["data"]["crop_size"] == 16
    for group, defaults in to_dict(TrainConfig()).items():
        expected[group] = {**defaults, **expected.get(group, {})}  # later versions have more settings
    assert to_dict(config) == expected


def test_the_saved_state_is_restored_bit_for_bit(saved: Path) -> None:
    state = load_tensors(saved / "saved" / "state.pt")
    logged: list[str] = []
    run = start(resumed(saved, 6), logged.append)
    assert logged == [f"resuming {saved / 'saved'} after iteration 3"]
    restored = Trainer(run, Console()).state()
    # Only the settings requested by this test differ: the run's folder, that it is resumed, and its end. The
    # learning rate belongs to the schedule, which passes it to Adam with the next batch.
    assert restored["extra"].pop("losses") == [0.0, 0]  # which that version did not record
    rates = [f"/optimizers/{phase}/param_groups/0/lr" for phase in ("G", "D")]
    assert differences({**restored, "config": 0}, {**state, "config": 0}) == rates
    requested = {"/optim/max_iters", "/run/checkpoints_dir", "/run/continue_train"}
    common = {
        group: {name: restored["config"][group][name] for name in settings}
        for group, settings in state["config"].items()
    }
    assert set(differences(common, state["config"])) == requested


def test_the_saved_run_can_be_resumed(saved: Path) -> None:
    trainer = train(resumed(saved, 4), Console())
    assert (trainer.started_at, trainer.run.iteration) == (3, 4)
    assert load_tensors(saved / "saved" / "state.pt")["iteration"] == 4


def test_the_saved_weights_and_card_give_the_same_network(saved: Path) -> None:
    nets = [
        load_generator(saved / "saved"),
        load_generator(saved / "card"),
        Generator.from_pretrained(saved / "card"),
    ]
    weights = [net.state_dict() for net in nets]
    assert differences(weights[0], weights[1]) == differences(weights[0], weights[2]) == []
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(nets[0](x), nets[2](x))


def facts(card: str) -> tuple[list[str], list[str]]:
    """Return the names of the rows of a model card, and all its numbers. Its wording may change."""
    text = card[card.index("# card") :]  # huggingface_hub writes the part before this
    return re.findall(r"^\| (\w+) \|", text, re.MULTILINE), re.findall(r"\d+(?:\.\d+)?", text)


def test_the_card_is_written_with_the_same_facts(saved: Path, tmp_path: Path) -> None:
    """The facts are read from config.json, or from the training state if there is no config.json."""
    net = Generator.from_pretrained(saved / "card")

    def card(folder: str) -> str:
        net.save_pretrained(tmp_path / folder, run=saved / "saved", title="card")
        return (tmp_path / folder / "README.md").read_text()

    expected = facts((saved / "card" / "README.md").read_text())
    assert facts(card("again")) == expected
    assert len(expected[0]) == 6
    arguments = json.loads((saved / "card" / "config.json").read_text())
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again == arguments | {"downsample": "stride"}  # which there was no choice of
    (saved / "saved" / "config.json").unlink()
    assert card("from the state") == card("again")
