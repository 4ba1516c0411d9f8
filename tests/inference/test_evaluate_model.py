"""``evaluate`` of a model in memory: the numbers of its saved files, and mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastcyclegan import CycleGAN, Pix2Pix, UserError, evaluate
from tests.conftest import write_images
from tests.metrics.script_networks import small_network
from tests.models import TINY, tensors

pytest.importorskip("torchmetrics")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    for seed, name in enumerate(("trainA", "trainB", "testA", "testB")):
        write_images(tmp_path / "data" / name, 3, size=(20, 20), seed=seed)
    return tmp_path / "data"


@pytest.mark.parametrize("trained", ["AtoB", "BtoA"])
@pytest.mark.parametrize("direction", [None, "AtoB", "BtoA"])
def test_it_gives_the_numbers_of_the_saved_model(
    dataset: Path, tmp_path: Path, trained: str, direction: str | None
) -> None:
    settings = {"metrics": ("fid", "kid", "l1"), "features": small_network(tmp_path)}
    model = CycleGAN(**TINY, dataroot=dataset, direction=trained)
    before = {name: net.state_dict() for name, net in model.networks.items()}
    weights = {name: {key: value.clone() for key, value in each.items()} for name, each in before.items()}
    random = torch.get_rng_state()
    found = model.evaluate(direction=direction, **settings)
    assert torch.equal(torch.get_rng_state(), random)
    model.save(tmp_path / "kept")
    saved = evaluate(weights=tmp_path / "kept", direction=direction, device="cpu", **settings)
    assert found == saved
    assert found["protocol"]["images"]["resized"] == "to 16x16"
    for name, net in model.networks.items():
        assert all(torch.equal(value, weights[name][key]) for key, value in net.state_dict().items())


def test_another_dataset_another_size_and_a_trained_model(dataset: Path, tmp_path: Path) -> None:
    model = CycleGAN(**TINY)
    model.fit(tensors(3).split(1), tensors(3, 1).split(1), max_iters=2)
    small = model.evaluate(str(dataset), metrics="l1")
    large = model.evaluate(dataset, metrics=["l1"], image_size=32)
    assert small["images"] == large["images"] == {"fake": 3, "real": 3, "pairs": 3}
    assert large["protocol"]["images"]["resized"] == "to 32x32"
    assert small["metrics"] != large["metrics"]
    with pytest.raises(UserError, match="give --dataroot"):
        model.evaluate(metrics="l1")


def test_pairs_and_their_dropout(tmp_path: Path) -> None:
    for name in ("train", "val"):
        write_images(tmp_path / "pairs" / name, 3, size=(64, 32))
    options = {**TINY, "netG": "unet_64", "load_size": 64, "crop_size": 64}
    options.pop("pool_size")
    model = Pix2Pix(**options, dataroot=tmp_path / "pairs")
    as_trained, other_masks, evaluated = (
        model.evaluate(metrics="l1", **settings)["metrics"]["l1"]
        for settings in ({}, {"seed": 5}, {"eval": True})
    )
    assert len({as_trained, other_masks, evaluated}) == 3
    assert model.evaluate(metrics="l1", seed=5)["metrics"]["l1"] == other_masks
    with pytest.raises(UserError, match="direction"):
        model.evaluate(metrics="l1", direction="BtoA")


def test_mistakes(dataset: Path) -> None:
    model = CycleGAN(**TINY, dataroot=dataset)
    with pytest.raises(TypeError, match="a model has no setting 'weights'"):
        model.evaluate(weights="x")
    with pytest.raises(TypeError, match="featurs"):
        model.evaluate(featurs="x")
    with pytest.raises(UserError, match="direction must be AtoB or BtoA, got 'up'"):
        model.evaluate(direction="up")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="there is no metric 'fit'"):
        model.evaluate(metrics="fit")
    with pytest.raises(UserError, match="nowhere: no such folder"):
        model.evaluate("nowhere", metrics="l1")


def test_what_the_model_makes_is_printed_if_asked(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = CycleGAN(**TINY, dataroot=dataset)
    model.evaluate(metrics="l1")
    assert capsys.readouterr().out == ""
    model.evaluate(metrics="l1", verbose=True)
    assert "protocol\n" in capsys.readouterr().out
