"""The files of a run: their names, and how their weights are saved and loaded.

Weights that do not fit are rejected, and the error states what was expected and what was found.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from fastcyclegan.checkpoints import run_files
from fastcyclegan.checkpoints.run_files import fit_weights, save_weights, saved_epochs
from fastcyclegan.config import TrainConfig, to_dict
from fastcyclegan.errors import UserError
from fastcyclegan.nn.networks import Generator
from fastcyclegan.tensor_files import load_tensors
from tests.files.altered_values import altered_json


def test_removes_partial_files_of_a_killed_process(tmp_path: Path) -> None:
    (tmp_path / ".state.pt.123.partial").touch()
    (tmp_path / "state.pt").touch()
    run_files.remove_partials(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_saves_official_weights_and_loads_them(tmp_path: Path) -> None:
    net = Generator(ngf=2, n_blocks=1).to(memory_format=torch.channels_last)
    save_weights(tmp_path / "latest_net_G_A.pth", net.state_dict())
    weights = load_tensors(tmp_path / "latest_net_G_A.pth")
    assert all(value.is_contiguous() for value in weights.values())
    other = Generator(ngf=2, n_blocks=1)
    fit_weights(other, weights, "file", "generator")
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_rejects_another_architecture_and_loads_nothing() -> None:
    net = Generator(ngf=2, n_blocks=1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(
        UserError,
        match=(
            r"f.pth: does not match small: model.11.weight has the shape \[2, 2, 3, 3\] instead of"
            r" \[8, 4, 3, 3\]"
        ),
    ):
        fit_weights(net, net.state_dict() | {"model.11.weight": torch.ones(2, 2, 3, 3)}, "f.pth", "small")
    missing = dict(net.state_dict())
    del missing["model.1.bias"]
    with pytest.raises(UserError, match=r"model.1.bias is missing \(and 1 more\)"):
        fit_weights(net, missing | {"extra": torch.ones(1)}, "f.pth", "small")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_values_that_would_become_infinite_are_refused() -> None:
    net = Generator(ngf=2, n_blocks=1)
    weights = {name: value.double() for name, value in net.state_dict().items()}
    fit_weights(net, weights, "f.pth", "small")
    weights["model.1.bias"][0] = 1e300
    with pytest.raises(
        UserError, match=r"f.pth: .*: model.1.bias has values that are too large for torch.float32"
    ):
        fit_weights(net, weights, "f.pth", "small")
    assert all(value.isfinite().all() for value in net.state_dict().values())


def test_altered_configurations_are_legal_or_refused_in_a_line_that_names_the_file(tmp_path: Path) -> None:
    good = to_dict(TrainConfig())
    run_files.write_config(tmp_path, TrainConfig())
    assert run_files.read_config(tmp_path) == TrainConfig()
    refused = 0
    for seed in range(200):
        (tmp_path / "config.json").write_bytes(altered_json(random.Random(seed), good))
        message = f"{tmp_path}/config.json: not a valid run configuration: "
        try:
            run_files.read_config(tmp_path)
        except UserError as error:
            refused, message = refused + 1, str(error)
        assert message.startswith(f"{tmp_path}/config.json: not a valid run configuration: "), seed
        assert message.isprintable(), seed
        assert len(message) < len(str(tmp_path)) + 300, seed
    assert 100 < refused < 200


def test_a_configuration_with_two_values_of_a_setting_is_refused(tmp_path: Path) -> None:
    run_files.write_config(tmp_path, TrainConfig())
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"lr":', '"lr": 1.0, "lr":', 1))
    with pytest.raises(UserError, match=r"config.json: not a valid run configuration: 'lr' appears twice"):
        run_files.read_config(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match=r"config.json: not a valid run configuration: it is not a regular"):
        run_files.read_config(tmp_path)


def test_saved_epochs(tmp_path: Path) -> None:
    for name in (
        "10_net_G_A",
        "5_net_G_A",
        "latest_net_G_B",
        "iter_100_net_G_A",
        "5_net_D_A",
        "x",
        "best_net_G",
    ):
        (tmp_path / f"{name}.pth").touch()
    assert saved_epochs(tmp_path) == ["5", "10", "best", "iter_100", "latest"]
