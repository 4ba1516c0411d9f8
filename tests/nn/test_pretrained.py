"""Generators to safetensors folders and back, with a card that says how they were trained; nothing is reached
but local folders.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelHubMixin
from safetensors import safe_open
from torch import nn

from fastcyclegan import CycleGAN, Generator, UnetGenerator, compat, load_generator
from fastcyclegan.errors import UserError


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    ("net", "kind"),
    [
        (Generator(1, 3, 2, 1, affine=True, use_dropout=True, upsample="resize"), Generator),
        (UnetGenerator(ngf=1, num_downs=5, norm="batch"), UnetGenerator),
        (
            compat.define_G(3, 3, 2, "resnet_6blocks", "instance"),
            Generator,
        ),  # of its own signature: it comes back as what it is made of
    ],
    ids=["resnet", "unet", "compat"],
)
def test_there_and_back(net: Any, kind: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
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
    # Without the class: by keys and shapes, as any other file.
    assert same(load_generator(tmp_path / "g"), net)


def test_the_architecture_is_in_the_metadata_and_in_the_configuration(tmp_path: Path) -> None:
    net = Generator(ngf=2, n_blocks=1)
    net.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["fastcyclegan"]) == {"class": "Generator", **net.arguments}
    assert json.loads((tmp_path / "config.json").read_text()) == net.arguments


def test_the_card_tells_how_it_was_trained(dataset: Path, tmp_path: Path) -> None:
    tiny = {
        "netG": "resnet_1blocks",
        "ngf": 2,
        "ndf": 2,
        "netD": "n_layers",
        "n_layers_D": 1,
        "load_size": 20,
        "crop_size": 16,
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
        "| images | photos, AtoB |",
        "| length | 100 epochs and 100 of decay, at most 1 iterations, batch 1 |",
        "| losses | lsgan, cycle 10 and 10, identity 0.25, pool 50 |",
        "n_blocks 1, norm instance",
    ):
        assert line in card
    assert str(tmp_path) not in card  # a folder's name, not where it lies
    assert same(
        load_generator(tmp_path / "run"), Generator.from_pretrained(tmp_path / "hub" / "photos2noise")
    )


def test_back_to_a_file_of_the_official_code(tmp_path: Path) -> None:
    """The official test.py reads a plain state_dict by these keys (their order and number are held in
    test_reference).
    """
    net = Generator(ngf=2, n_blocks=1)
    net.save_pretrained(tmp_path / "g")
    torch.save(Generator.from_pretrained(tmp_path / "g").state_dict(), tmp_path / "latest_net_G.pth")
    weights = torch.load(tmp_path / "latest_net_G.pth", weights_only=True)
    assert list(weights) == list(net.state_dict())
    assert same(load_generator(tmp_path), net)


def test_what_goes_up_is_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mixin's own upload, with the hub in the place of the network: it makes the repository, and sends
    the folder's files.
    """
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


def test_what_keys_do_not_tell_comes_back(tmp_path: Path) -> None:
    """How blocks are padded and a U-Net's dropout: from the file's own word, with the class and without."""
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
def test_layers_without_weights_that_were_changed(layer: int, tmp_path: Path) -> None:
    net = Generator(ngf=2, n_blocks=1)
    net.model[layer] = {3: nn.SiLU(), 0: nn.ZeroPad2d(3)}[layer]
    with pytest.raises(
        ValueError, match="its layers were changed, so that its arguments make another function"
    ):
        net.save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"config.json: cannot be read"),
        ("[]", r"config.json: not the arguments of a network, but a list"),
        ('{"ngf": "two"}', r"config.json: no arguments of Generator"),
    ],
)
def test_a_broken_configuration(text: str, message: str, tmp_path: Path) -> None:
    Generator(ngf=2, n_blocks=1).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        Generator.from_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"a file; load_generator takes files"):
        Generator.from_pretrained(tmp_path / "config.json")


def test_what_cannot_be_kept_or_found(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="norm was given as a function, which no file can keep; give its name"
    ):
        Generator(ngf=2, n_blocks=1, norm=lambda channels: nn.GroupNorm(1, channels)).save_pretrained(
            tmp_path / "x"
        )
    changed = Generator(ngf=2, n_blocks=1)
    changed.model[1] = nn.Conv2d(3, 4, 7)
    with pytest.raises(
        ValueError, match="its layers were changed, so that its arguments do not make it any more"
    ):
        changed.save_pretrained(tmp_path / "x")
    with pytest.raises(UserError, match="none: not a run's folder with a configuration"):
        Generator(ngf=2, n_blocks=1).save_pretrained(tmp_path / "x", run=tmp_path / "none")
    assert not (tmp_path / "x").exists()
    with pytest.raises(
        UserError, match=r"no model.safetensors in it; load_generator takes runs and official files"
    ):
        Generator.from_pretrained(tmp_path)
    Generator(ngf=2, n_blocks=1).save_pretrained(tmp_path / "g")
    (tmp_path / "g" / "config.json").write_text('{"ngf": 3, "n_blocks": 1}')
    with pytest.raises(UserError, match=r"model.safetensors: does not fit its config.json: size mismatch"):
        Generator.from_pretrained(tmp_path / "g")


def test_without_the_extra_it_says_what_to_install() -> None:
    code = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'huggingface_hub' else find(name, *a)\n"
        "from fastcyclegan import Generator\n"
        "assert 'huggingface_hub' not in sys.modules\n"
        "Generator(ngf=2, n_blocks=1).save_pretrained('x')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (
        done.stderr.splitlines()[-1]
        == "ImportError: this needs huggingface_hub: pip install 'fastcyclegan[hub]'"
    )
