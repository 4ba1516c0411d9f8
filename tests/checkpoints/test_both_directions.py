"""Find the generators of both directions in files and folders of all kinds."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastcyclegan import CycleGAN
from fastcyclegan.checkpoints.both_directions import Found, generators_in
from fastcyclegan.checkpoints.run_files import save_weights
from fastcyclegan.config import Direction
from fastcyclegan.errors import UserError
from fastcyclegan.nn.networks import Discriminator, Generator


def weights(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return Generator(ngf=2, n_blocks=1).state_dict()


def seeds(found: dict[Direction, Found]) -> dict[str, int]:
    """Return the seed of each generator that was found."""
    result: dict[str, int] = {}
    for direction, generator in found.items():
        first = generator.weights["model.1.weight"]
        result[direction] = next(n for n in range(9) if torch.equal(first, weights(n)["model.1.weight"]))
    return result


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_a_file_with_one_generator_is_that_of_the_requested_direction(
    tmp_path: Path, direction: Direction
) -> None:
    """Whatever else the file contains, and however it is wrapped."""
    torch.save(
        {"epoch": 3, "netG": weights(1), "netD": Discriminator(ndf=2).state_dict()}, tmp_path / "one.pth"
    )
    assert seeds(generators_in(tmp_path / "one.pth", direction, "AtoB")) == {direction: 1}


def test_a_folder_is_read_by_the_official_names(tmp_path: Path) -> None:
    """G_A translates in the direction of the saved run, or in that of the new run if it is not known."""
    save_weights(tmp_path / "latest_net_G_A.pth", weights(1))
    assert seeds(generators_in(tmp_path, "AtoB", "AtoB")) == {"AtoB": 1}
    assert seeds(generators_in(tmp_path, "AtoB", "BtoA")) == {"BtoA": 1}
    save_weights(tmp_path / "latest_net_G_B.pth", weights(2))
    assert seeds(generators_in(tmp_path, "AtoB", "AtoB")) == {"AtoB": 1, "BtoA": 2}
    model = CycleGAN(netG="resnet_1blocks", ngf=2, ndf=2, netD="pixel", direction="BtoA", seed=5)
    model.save(tmp_path / "run")
    for run in ("AtoB", "BtoA"):
        found = generators_in(tmp_path / "run", "AtoB", run)  # type: ignore[arg-type]
        assert found["BtoA"].file.name == "latest_net_G_A.pth"
        assert found["AtoB"].file.name == "latest_net_G_B.pth"


def test_other_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        generators_in(tmp_path / "none", "AtoB", "AtoB")
    with pytest.raises(
        UserError, match=r"no latest_net_G_A.pth or latest_net_G_B.pth; epochs saved there: none"
    ):
        generators_in(tmp_path, "AtoB", "AtoB")
    save_weights(tmp_path / "5_net_G_A.pth", weights(1))
    with pytest.raises(UserError, match="epochs saved there: 5"):
        generators_in(tmp_path, "AtoB", "AtoB")
    save_weights(tmp_path / "latest_net_G.pth", weights(3))  # of the official test model
    assert seeds(generators_in(tmp_path, "BtoA", "AtoB")) == {"BtoA": 3}
    torch.manual_seed(4)
    Generator(ngf=2, n_blocks=1).save_pretrained(tmp_path / "pretrained")
    assert seeds(generators_in(tmp_path / "pretrained", "BtoA", "AtoB")) == {"BtoA": 4}


@pytest.mark.parametrize(
    ("forward", "backward"),
    [
        ("netG_A", "netG_B"),
        ("netG_A2B", "netG_B2A"),
        ("G_AB", "G_BA"),
        ("gen_XtoY", "gen_YtoX"),
        ("generator_A_to_B", "generator_B_to_A"),
    ],
)
def test_generators_in_one_file_are_told_apart_by_their_names(
    tmp_path: Path, forward: str, backward: str
) -> None:
    contents = {"models": {backward: weights(2), forward: weights(1)}, "ema": {forward: weights(3)}}
    torch.save(contents, tmp_path / "both.pth")
    assert seeds(generators_in(tmp_path / "both.pth", "AtoB", "AtoB")) == {"AtoB": 1, "BtoA": 2}


def test_the_names_in_a_file_are_those_of_the_model(tmp_path: Path) -> None:
    """As in a folder: of the run whose state it is, or of the new one."""
    nets = {"G_AB": weights(1), "G_BA": weights(2)}
    torch.save(nets, tmp_path / "both.pth")
    assert seeds(generators_in(tmp_path / "both.pth", "AtoB", "BtoA")) == {"BtoA": 1, "AtoB": 2}
    torch.save({"nets": nets, "config": {"data": {"direction": "BtoA"}}}, tmp_path / "state.pt")
    for run in ("AtoB", "BtoA"):
        found = generators_in(tmp_path / "state.pt", "AtoB", run)  # type: ignore[arg-type]
        assert seeds(found) == {"BtoA": 1, "AtoB": 2}


def test_generators_whose_names_do_not_tell_them_apart_are_refused(tmp_path: Path) -> None:
    torch.save({"first": weights(1), "second": weights(2)}, tmp_path / "both.pth")
    with pytest.raises(
        UserError, match=r"contains 2 generators \(first, second\), and their names do not tell"
    ):
        generators_in(tmp_path / "both.pth", "AtoB", "AtoB")
    torch.save(OrderedDict(Discriminator(ndf=2).state_dict()), tmp_path / "D.pth")
    with pytest.raises(UserError, match="expected a generator, got a discriminator"):
        generators_in(tmp_path / "D.pth", "AtoB", "AtoB")
