"""A run, its weights and a model card that were saved before modules had rooms: they load, and training goes
on from their very bits.
"""

from __future__ import annotations

import dataclasses
import json
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

# Three iterations of the built-in dataset: resnet_1blocks with ngf 1, D of one layer with ndf 1, 16 pixels,
# pools of 2, averages of 0.9.
SAVED = Path(__file__).parent / "saved_run.tar.xz"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder with the run "saved" and the folder "card" of its generator."""
    with tarfile.open(SAVED) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def resumed(folder: Path, last: int) -> TrainConfig:
    """Return the run's own configuration, to be taken up and to end after iteration ``last``."""
    config = read_config(folder / "saved")
    assert config is not None
    run = dataclasses.replace(config.run, checkpoints_dir=folder, continue_train=True)
    return dataclasses.replace(config, run=run, optim=dataclasses.replace(config.optim, max_iters=last))


def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Return where two nested states differ, by the bits of their tensors."""
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        return (
            []
            if ours.dtype == theirs.dtype and ours.shape == theirs.shape and torch.equal(ours, theirs)
            else [where]
        )
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = [*ours, *(key for key in theirs if key not in ours)]
        return [
            found
            for key in keys
            for found in differences(ours.get(key, "nothing"), theirs.get(key, "nothing"), f"{where}/{key}")
        ]
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)) and len(ours) == len(theirs):
        return [
            found
            for n, pair in enumerate(zip(ours, theirs, strict=True))
            for found in differences(*pair, f"{where}/{n}")
        ]
    return [] if ours == theirs else [where]


def test_the_fixture_is_small() -> None:
    assert SAVED.stat().st_size < 100 * 1024


def test_its_configuration_is_read_whole(saved: Path) -> None:
    config = read_config(saved / "saved")
    assert config is not None
    assert to_dict(config) == json.loads((saved / "saved" / "config.json").read_text())


def test_its_state_is_taken_up_bit_for_bit(saved: Path) -> None:
    state = load_tensors(saved / "saved" / "state.pt")
    logged: list[str] = []
    run = start(resumed(saved, 6), logged.append)
    assert logged == [f"continuing {saved / 'saved'} after iteration 3"]
    again = Trainer(run, Console()).state()
    # What was asked for has changed: where the run lies, that it is continued, and its end.
    # The rate is the schedule's, which gives it to Adam with the next batch.
    rates = [f"/optimizers/{phase}/param_groups/0/lr" for phase in ("G", "D")]
    assert differences({**again, "config": 0}, {**state, "config": 0}) == rates
    assert differences(again["config"], state["config"]) == [
        "/optim/max_iters",
        "/run/checkpoints_dir",
        "/run/continue_train",
    ]


def test_it_goes_on(saved: Path) -> None:
    trainer = train(resumed(saved, 4), Console())
    assert (trainer.started_at, trainer.run.iteration) == (3, 4)
    assert load_tensors(saved / "saved" / "state.pt")["iteration"] == 4


def test_its_weights_and_its_card_are_one_network(saved: Path) -> None:
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


def test_the_card_is_written_as_it_was(saved: Path, tmp_path: Path) -> None:
    """From config.json, and from the state where that is all there is."""
    net = Generator.from_pretrained(saved / "card")

    def card(folder: str) -> str:
        net.save_pretrained(tmp_path / folder, run=saved / "saved", title="card")
        text = (tmp_path / folder / "README.md").read_text()
        # The head is huggingface_hub's.
        return text[text.index("# card") :]

    kept = (saved / "card" / "README.md").read_text()
    assert card("again") == kept[kept.index("# card") :]
    assert (tmp_path / "again" / "config.json").read_text() == (saved / "card" / "config.json").read_text()
    (saved / "saved" / "config.json").unlink()
    assert card("from the state") == card("again")
