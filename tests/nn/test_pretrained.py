"""Tests of saving generators as safetensors folders with a model card, and of loading them from disk."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelHubMixin
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from fastcyclegan import CycleGAN, Generator, Pix2Pix, UnetGenerator, compat, load_generator
from fastcyclegan.errors import UserError


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    ("net", "kind"),
    [
        (Generator(1, 3, 2, 1, affine=True, use_dropout=True, upsample="resize"), Generator),
        (Generator(ngf=2, n_blocks=1, upsample="antialias", downsample="antialias"), Generator),
        (UnetGenerator(ngf=1, num_downs=5, norm="batch"), UnetGenerator),
        (
            compat.define_G(3, 3, 2, "resnet_6blocks", "instance"),
            Generator,
        ),  # a subclass with another signature is loaded as its base class
    ],
    ids=["resnet", "antialiased", "unet", "compat"],
)
def test_save_and_load_round_trip(
    net: Any, kind: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    net.to(memory_format=torch.channels_last).save_pretrained(tmp_path / "g")
    assert {path.name for path in (tmp_path / "g").iterdir()} == {
        "model.safetensors",
        "config.json",
        "README.md",
    }
    again = type(net).from_pretrained(tmp_path / "g", impl="reference")
    assert type(again) is kind
    assert same(net, again)
    assert (again.training, again.impl, again.arguments) == (False, "reference", net.arguments)
    assert net.training
    assert type(net) is not ModelHubMixin
    assert not isinstance(net, ModelHubMixin)
    assert capfd.readouterr() == ("", "")
    again.save_pretrained(tmp_path / "twice")
    assert same(kind.from_pretrained(str(tmp_path / "twice")), net)
    # If the class is not known, the file is recognised by its keys and shapes, like any other file.
    assert same(load_generator(tmp_path / "g"), net)


def test_architecture_is_in_metadata_and_config(tmp_path: Path) -> None:
    net = Generator(ngf=2, n_blocks=1)
    net.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["fastcyclegan"]) == {"class": "Generator", **net.arguments}
    assert json.loads((tmp_path / "config.json").read_text()) == net.arguments


def test_card_shows_the_training_settings(dataset: Path, tmp_path: Path) -> None:
    tiny = {
        "netG": "resnet_1blocks",
        "ngf": 2,
        "ndf": 2,
        "netD": "n_layers",
        "n_layers_D": 1,
        "load_size": 20,
        "crop_size": (16, 20),
    }
    model = CycleGAN(**tiny, lambda_identity=0.25, device="cpu", loader="folder", num_threads=0)
    model.fit(dataset, max_iters=1)
    model.save(tmp_path / "run")
    G: Any = model.G_AB
    G.save_pretrained(tmp_path / "hub" / "photos2noise", run=tmp_path / "run")
    card = (tmp_path / "hub" / "photos2noise" / "README.md").read_text()
    for line in (
        "library_name: fastcyclegan",
        "pipeline_tag: image-to-image",
        "# photos2noise",
        'G = Generator.from_pretrained("photos2noise")',
        "| pictures | photos, AtoB |",
        "| samples | resize_and_crop, load_size 20, crop_size 16 20 |",
        "| length | 100 epochs and 100 epochs of decay, at most 1 iterations, batch size 1 |",
        "| losses | lsgan, cycle 10 and 10, identity 0.25, image pool 50 |",
        "n_blocks 1, norm instance",
    ):
        assert line in card
    assert str(tmp_path) not in card  # the folder's name, not its path
    assert same(
        load_generator(tmp_path / "run"), Generator.from_pretrained(tmp_path / "hub" / "photos2noise")
    )


def test_the_card_of_another_recipe_names_its_losses(tmp_path: Path) -> None:
    model = Pix2Pix(netG="unet_32", ngf=2, ndf=2, crop_size=32, load_size=32, device="cpu")
    model.save(tmp_path / "run")
    G: Any = model.G
    G.save_pretrained(tmp_path / "hub", run=tmp_path / "run")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "| losses | gan_mode vanilla, lambda_L1 100.0, lambda_gp 10.0 |" in card
    assert "num_downs 5" in card
    assert "cyclegan" not in card.replace("fastcyclegan", "").lower()


def test_converts_back_to_an_official_file(tmp_path: Path) -> None:
    """The official test.py loads a state_dict with these keys, which test_reference_networks.py checks."""
    net = Generator(ngf=2, n_blocks=1)
    net.save_pretrained(tmp_path / "g")
    torch.save(Generator.from_pretrained(tmp_path / "g").state_dict(), tmp_path / "latest_net_G.pth")
    weights = torch.load(tmp_path / "latest_net_G.pth", weights_only=True)
    assert list(weights) == list(net.state_dict())
    assert same(load_generator(tmp_path), net)


def test_upload_contains_the_saved_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is replaced by a stub. The mixin's own code creates the repository and uploads the files."""
    sent: dict[str, Any] = {}

    class Api:
        def __init__(self, **_: Any) -> None:
            pass

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Repo", (), {"repo_id": repo_id})()

        def upload_folder(self, repo_id: str, folder_path: Path, **_: Any) -> str:
            sent.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
            return f"uploaded to {repo_id}"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    net = Generator(ngf=2, n_blocks=1)
    assert net.push_to_hub("me/photos2noise") == "uploaded to me/photos2noise"
    assert sent.keys() == {"model.safetensors", "config.json", "README.md"}
    assert 'Generator.from_pretrained("me/photos2noise")' in sent["README.md"].decode()
    (tmp_path / "model.safetensors").write_bytes(sent["model.safetensors"])
    assert same(load_generator(tmp_path), net)


def test_restores_settings_that_keys_do_not_show(tmp_path: Path) -> None:
    """The blocks' padding and a U-Net's dropout come from the file's metadata, with or without the class."""
    G, x = Generator(ngf=2, n_blocks=1, padding_type="replicate").eval(), torch.randn(1, 3, 8, 8)
    G.save_pretrained(tmp_path / "g")
    U = UnetGenerator(ngf=1, num_downs=6, use_dropout=True)
    U.save_pretrained(tmp_path / "u")
    for again in (Generator.from_pretrained(tmp_path / "g"), load_generator(tmp_path / "g")):
        torch.testing.assert_close(again(x), G(x))
    for unet in (
        UnetGenerator.from_pretrained(tmp_path / "u"),
        load_generator(tmp_path / "u" / "model.safetensors"),
    ):
        assert sum(isinstance(module, nn.Dropout) for module in unet.modules()) == 1


@pytest.mark.parametrize("layer", [3, 0])
def test_rejects_changed_layers_without_weights(layer: int, tmp_path: Path) -> None:
    net = Generator(ngf=2, n_blocks=1)
    net.model[layer] = {3: nn.SiLU(), 0: nn.ZeroPad2d(3)}[layer]
    with pytest.raises(ValueError, match="a network built from its arguments gives a different output"):
        net.save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"config.json: cannot be read"),
        ("[]", r"config.json: must be a JSON object with a network's arguments, got a list"),
        ('{"ngf": "two"}', r"not valid arguments for Generator: ngf must be of type int, got 'two'"),
        ('{"n_blocks": true}', r"Generator: n_blocks must be of type int, got True"),
        ('{"recompute": "no"}', r"Generator: recompute must be of type bool, got 'no'"),
        ('{"use_dropout": null}', r"Generator: use_dropout must be of type bool, got None"),
        ('{"ngf": 1000000000}', r"config.json: not valid arguments for Generator: .*memory"),
    ],
)
def test_rejects_a_broken_config(text: str, message: str, tmp_path: Path) -> None:
    Generator(ngf=2, n_blocks=1).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        Generator.from_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"got a file; use load_generator for files"):
        Generator.from_pretrained(tmp_path / "config.json")


def test_errors_when_saving_and_loading(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="norm was passed as a function, which cannot be saved; pass its name instead"
    ):
        Generator(ngf=2, n_blocks=1, norm=lambda channels: nn.GroupNorm(1, channels)).save_pretrained(
            tmp_path / "x"
        )
    changed = Generator(ngf=2, n_blocks=1)
    changed.model[1] = nn.Conv2d(3, 4, 7)
    with pytest.raises(
        ValueError, match="a network built from its arguments has different weight names or shapes"
    ):
        changed.save_pretrained(tmp_path / "x")
    with pytest.raises(UserError, match=r"missing: not a run folder: it contains neither config.json nor"):
        Generator(ngf=2, n_blocks=1).save_pretrained(tmp_path / "x", run=tmp_path / "missing")
    assert not (tmp_path / "x").exists()
    with pytest.raises(
        UserError, match=r"has no model.safetensors; for runs and official files use load_generator"
    ):
        Generator.from_pretrained(tmp_path)
    Generator(ngf=2, n_blocks=1).save_pretrained(tmp_path / "g")
    (tmp_path / "g" / "config.json").write_text('{"ngf": 3, "n_blocks": 1}')
    with pytest.raises(
        UserError, match=r"model.safetensors: the weights do not match config.json: size mismatch"
    ):
        Generator.from_pretrained(tmp_path / "g")


def test_missing_extra_is_named_with_its_install_command() -> None:
    code = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'huggingface_hub' else find(name, *a)\n"
        "from fastcyclegan import Generator\n"
        "assert 'huggingface_hub' not in sys.modules\n"
        "Generator(ngf=2, n_blocks=1).save_pretrained('x')"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (
        completed.stderr.splitlines()[-1]
        == "ImportError: saving and loading pretrained generators needs huggingface_hub: run pip install"
        " 'fastcyclegan[hub]'"
    )


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    """What was saved before stays."""
    net = Generator(ngf=2, n_blocks=1)
    net.save_pretrained(tmp_path / "g")
    before = {file.name: file.read_bytes() for file in (tmp_path / "g").iterdir()}
    with torch.no_grad():
        net.model[7].weight[0, 0, 0, 0] = math.nan
    with pytest.raises(UserError, match=r"^Generator: model\.7\.weight contains nan, so it cannot be saved$"):
        net.save_pretrained(tmp_path / "g")
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "g").iterdir()}
    with pytest.raises(UserError, match="contains nan"):
        net.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_network_whose_output_overflows_can_be_saved(tmp_path: Path) -> None:
    """Its weights are finite, and it computes what a network rebuilt from its arguments does."""
    net = Generator(ngf=2, n_blocks=1)
    with torch.no_grad():
        net.model[7].weight.fill_(3e38)
    net.save_pretrained(tmp_path / "g")
    assert same(Generator.from_pretrained(tmp_path / "g"), net)


def test_weights_that_overflow_are_refused_on_loading(tmp_path: Path) -> None:
    net = Generator(ngf=2, n_blocks=1).double()
    net.save_pretrained(tmp_path / "g")
    assert {value.dtype for value in Generator.from_pretrained(tmp_path / "g").parameters()} == {
        torch.float32
    }
    with torch.no_grad():
        net.model[7].weight[0, 0, 0, 0] = 1e300
    net.save_pretrained(tmp_path / "g")
    with pytest.raises(UserError, match=r"model.safetensors: model.7.weight .* but float32 ends at"):
        Generator.from_pretrained(tmp_path / "g")


def test_weights_that_are_integers_are_refused(tmp_path: Path) -> None:
    Generator(ngf=2, n_blocks=1).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    whole = {key: value.to(torch.int32) for key, value in weights.items()}
    save_file(whole, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.1\.\w+ has the dtype torch.int32 instead of floating point"):
        Generator.from_pretrained(tmp_path)
