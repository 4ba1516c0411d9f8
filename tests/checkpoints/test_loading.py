"""Load networks from files and folders: the choice of file and network, and the commands that load them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastcyclegan import cli, reference
from fastcyclegan.checkpoints.loading import find_weights, load_generator, settings_of
from fastcyclegan.checkpoints.run_files import save_weights
from fastcyclegan.cli import parse_train
from fastcyclegan.config import TrainConfig, default_config, to_dict, with_changes
from fastcyclegan.console import Console
from fastcyclegan.errors import UserError
from fastcyclegan.nn.networks import Discriminator, Generator, UnetGenerator
from fastcyclegan.training.trainer import train
from tests.conftest import write_images
from tests.files.altered_values import NOT_JSON, PLAIN, altered


def test_direction_chooses_the_generator_of_a_run(tmp_path: Path) -> None:
    """The letters in a direction are those of the training folders.

    In a run trained with --direction BtoA, the model's A is folder B, so G_A translates images of B to A.
    """
    with pytest.raises(UserError, match="no such file or folder"):
        find_weights(tmp_path / "none", None, "latest")
    for side in "AB":
        (tmp_path / f"latest_net_G_{side}.pth").touch()

    def name(direction: object) -> str:
        return find_weights(tmp_path, direction, "latest").name

    assert [name(d) for d in (None, "AtoB", "BtoA")] == [
        "latest_net_G_A.pth",
        "latest_net_G_A.pth",
        "latest_net_G_B.pth",
    ]
    config = with_changes(TrainConfig(), {"data": {"direction": "BtoA"}})
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    assert [name(d) for d in (None, "AtoB", "BtoA")] == [
        "latest_net_G_A.pth",
        "latest_net_G_B.pth",
        "latest_net_G_A.pth",
    ]
    with pytest.raises(
        UserError, match=r"5_net_G_A.pth: no weights file for generator G_A; epochs saved in .*: latest"
    ):
        find_weights(tmp_path, None, "5")
    with pytest.raises(UserError, match="do not apply"):
        find_weights(tmp_path / "latest_net_G_A.pth", "AtoB", "latest")


@pytest.mark.parametrize(
    "net",
    [
        Generator(ngf=2, n_blocks=2, affine=True),
        Generator(1, 3, 2, 0, "batch"),
        UnetGenerator(ngf=1, num_downs=5),
    ],
    ids=["affine", "batch", "unet"],
)
def test_loads_a_generator_unchanged(net: nn.Module, tmp_path: Path) -> None:
    net.eval()
    torch.save(
        {"epoch": 7, "netG_A2B": {f"module.{k}": v for k, v in net.state_dict().items()}},
        tmp_path / "netG_A2B.pth",
    )
    again = load_generator(str(tmp_path / "netG_A2B.pth"))
    x = torch.randn(1, next(net.parameters()).shape[1], 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x), net(x))
    assert not again.training
    half = load_generator(
        tmp_path / "netG_A2B.pth", dtype=torch.bfloat16, impl="reference", device=torch.device("cpu")
    )
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.impl == "reference"


def test_loaded_weights_match_the_reference(tmp_path: Path) -> None:
    """Weights of another project, whose keys differ from the official ones in one word, load correctly."""
    net = reference.Generator(ngf=2, n_blocks=1)
    torch.save({k.replace("conv_block", "block"): v for k, v in net.state_dict().items()}, tmp_path / "g.pth")
    x = torch.randn(1, 3, 8, 12)
    with torch.no_grad():
        torch.testing.assert_close(load_generator(tmp_path / "g.pth")(x), net(x))


def test_a_file_with_several_generators_needs_a_key(tmp_path: Path) -> None:
    one, other = Generator(ngf=2, n_blocks=1).state_dict(), Generator(ngf=4, n_blocks=1).state_dict()
    torch.save(
        {"nets": {"G_AB": one, "G_BA": other, "D_A": Discriminator(ndf=2).state_dict()}},
        tmp_path / "state.pt",
    )
    with pytest.raises(
        UserError, match=r"state.pt: contains 2 generators; set key to one of nets.G_AB, nets.G_BA"
    ):
        load_generator(tmp_path / "state.pt")
    assert load_generator(tmp_path / "state.pt", key="nets.G_BA").model[1].out_channels == 4
    with pytest.raises(UserError, match=r"no generator at 'G_A'; available: nets.G_AB, nets.G_BA"):
        load_generator(tmp_path / "state.pt", key="G_A")
    torch.save({"models": [one, other]}, tmp_path / "list.pt")
    with pytest.raises(UserError, match=r"list.pt: contains 2 generators; set key to one of models.0, mod"):
        load_generator(tmp_path / "list.pt")
    assert load_generator(tmp_path / "list.pt", key="models.1").model[1].out_channels == 4


def test_loads_official_weights_of_a_single_direction(tmp_path: Path) -> None:
    save_weights(tmp_path / "latest_net_G.pth", Generator(ngf=2, n_blocks=1).state_dict())
    assert load_generator(tmp_path).model[1].out_channels == 2
    with pytest.raises(UserError, match=r"has a single generator: direction cannot be BtoA$"):
        load_generator(tmp_path, direction="BtoA")


def test_reports_an_unknown_impl_and_damaged_weights(tmp_path: Path) -> None:
    save_weights(tmp_path / "g.pth", Generator(ngf=2, n_blocks=1).state_dict())
    with pytest.raises(ValueError, match="impl must be auto, cpp, triton or reference"):
        load_generator(tmp_path / "g.pth", impl="fast")
    state = Generator(ngf=2, n_blocks=1).state_dict()
    del state["model.4.weight"]
    save_weights(tmp_path / "less.pth", state)
    with pytest.raises(
        UserError,
        match=r"less.pth: unknown architecture; the closest is .*, but model.4.weight is missing",
    ):
        load_generator(tmp_path / "less.pth")


# --- The commands -------------------------------------------------------------------------------------------


def write_official_files(folder: Path, **arguments: Any) -> None:
    """Write four official weights files, with DataParallel's keys, of networks with non-default settings."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    nets = {
        "G_A": Generator(**arguments),
        "G_B": Generator(**arguments),
        "D_A": Discriminator(ndf=2, n_layers=1, affine=True),
    }
    for name, net in {**nets, "D_B": nets["D_A"]}.items():
        torch.save(
            {f"module.{key}": value for key, value in net.state_dict().items()},
            folder / f"latest_net_{name}.pth",
        )


def test_training_resumes_from_official_files_without_network_flags(dataset: Path, tmp_path: Path) -> None:
    write_official_files(tmp_path / "official", ngf=2, n_blocks=1, affine=True, upsample="resize")
    flags = [
        "--dataroot",
        str(dataset),
        "--checkpoints_dir",
        str(tmp_path),
        "--name",
        "official",
        "--continue_train",
    ]
    config = parse_train(
        [*flags, "--max_iters", "1", "--load_size", "20", "--crop_size", "16", "--device", "cpu"]
    )
    model = config.model
    assert (model.netG, model.ngf, model.affine, model.upsample) == ("resnet_1blocks", 2, True, "resize")
    assert (model.netD, model.n_layers_D, model.ndf) == ("n_layers", 1, 2)
    assert train(config, Console()).run.iteration == 1
    assert (
        parse_train([*flags, "--ngf", "4"]).model.ngf == 4
    )  # flags take precedence, and training reports the weights that do not fit


def test_reports_networks_that_cannot_be_trained(tmp_path: Path) -> None:
    write_official_files(tmp_path / "official", ngf=2, n_blocks=1, padding_type="zero")
    with pytest.raises(
        UserError,
        match=r"latest_net_G_A.pth: generator .*zero-padded blocks\): only reflection-padded blocks can be",
    ):
        settings_of(tmp_path / "official", "latest", default_config().make_recipe())


def test_translates_with_the_generator_at_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "in", 1, size=(8, 8))
    net = Generator(ngf=2, n_blocks=1)
    torch.save(
        {"G_A2B": net.state_dict(), "G_B2A": Generator(ngf=2, n_blocks=0).state_dict()},
        tmp_path / "both.ckpt",
    )
    flags = [
        "--weights",
        str(tmp_path / "both.ckpt"),
        "--input",
        str(tmp_path / "in"),
        "--output",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    assert cli.translate(flags) == 2
    assert "contains 2 generators; set key to one of G_A2B, G_B2A" in capsys.readouterr().err
    assert cli.translate([*flags, "--key", "G_A2B"]) == 0
    assert np.asarray(Image.open(tmp_path / "out" / "000.png")).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("value", "dtype"), [(1e5, torch.float16), (3.4e38, torch.bfloat16)], ids=["half", "bfloat16"]
)
def test_weights_that_overflow_in_the_dtype_are_refused(
    tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    state = Generator(ngf=2, n_blocks=1).state_dict()
    state["model.7.weight"][0, 0, 0, 0] = value
    torch.save(state, tmp_path / "g.pth")
    assert load_generator(tmp_path / "g.pth").state_dict()["model.7.weight"].max() == torch.tensor(value)
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(UserError, match=rf"g\.pth: model\.7\.weight .* but {kind} ends at"):
        load_generator(tmp_path / "g.pth", dtype=dtype)


def test_weights_beyond_float32_are_loaded_in_float64(tmp_path: Path) -> None:
    state = Generator(ngf=2, n_blocks=1).double().state_dict()
    state["model.7.weight"][0, 0, 0, 0] = 1e300
    torch.save(state, tmp_path / "g.pth")
    loaded = load_generator(tmp_path / "g.pth", dtype=torch.float64).state_dict()
    assert loaded["model.7.weight"].max().item() == 1e300
    with pytest.raises(UserError, match=r"g\.pth: model\.7\.weight .* but float32 ends at"):
        load_generator(tmp_path / "g.pth")


def test_weights_in_float64_keep_their_bits(tmp_path: Path) -> None:
    state = Generator(ngf=2, n_blocks=1).double().state_dict()
    state["model.7.weight"] += 1e-12
    torch.save(state, tmp_path / "g.pth")
    loaded = load_generator(tmp_path / "g.pth", dtype=torch.float64).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": "fp16"}, TypeError, "dtype must be a torch.dtype such as torch.float16, got 'fp16'"),
        ({"dtype": torch.int8}, ValueError, "dtype must be float32, .* got torch.int8"),
        ({"device": "gpu"}, ValueError, "device must be a name such as cpu or cuda:0, got 'gpu'"),
        ({"device": 1.5}, TypeError, "device must be a name such as cpu or cuda:0, got 1.5"),
        ({"direction": "x"}, ValueError, "direction must be AtoB or BtoA, got 'x'"),
    ],
)
def test_invalid_options_are_named(tmp_path: Path, options: Any, error: Any, message: str) -> None:
    torch.save(Generator(ngf=2, n_blocks=1).state_dict(), tmp_path / "g.pth")
    with pytest.raises(error, match=f"^load_generator: {message}"):
        load_generator(tmp_path / "g.pth", **options)


@pytest.mark.parametrize("count", [150, pytest.param(4000, marks=pytest.mark.slow)])
def test_altered_weights_are_refused_in_a_line_or_loaded_as_they_are(count: int, tmp_path: Path) -> None:
    """What is loaded has the values of the file, in fp32, and can be computed with."""
    good = Generator(ngf=2, n_blocks=1).state_dict()
    file, x, refused = tmp_path / "g.pth", torch.zeros(1, 3, 8, 8), 0
    for seed in range(count):
        weights, path = altered(random.Random(seed), dict(good), (*PLAIN, *NOT_JSON))
        try:
            torch.save(weights, file)
        except (TypeError, AttributeError, RuntimeError, RecursionError, NotImplementedError):
            continue  # it cannot be written
        try:
            net = load_generator(file)
        except UserError as error:
            message = str(error)
            assert message.startswith(str(file)), f"{seed} {path}"
            refused += 1
            continue
        for name, value in net.state_dict().items():
            assert torch.equal(value, weights[name].float()), f"{seed} {path}"
        assert net(x).shape == x.shape, f"{seed} {path}"  # a huge weight can give no numbers
    assert count / 2 < refused < count
