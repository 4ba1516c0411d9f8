"""Whole runs of pix2pix: training, resuming, translating, and loading official files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fastcyclegan import (
    CycleGAN,
    Pix2Pix,
    UnetGenerator,
    UserError,
    cli,
    load_generator,
    model_class,
    reference,
)
from fastcyclegan.config import default_config
from fastcyclegan.nn.as_trained import as_trained, mask_keys, masks_from
from fastcyclegan.tensor_files import load_tensors, save_tensors
from tests.recipes.states import assert_same, draw, killed, state_of
from tests.training.runs import TRAIN

SMALL = (
    "--model pix2pix --netG unet_64 --ngf 2 --netD n_layers --n_layers_D 1 --ndf 2 --load_size 70"
    " --crop_size 64 --device cpu --loader folder --num_threads 0".split()
)
SETTINGS: dict[str, Any] = {
    "netG": "unet_64",
    "ngf": 2,
    "netD": "n_layers",
    "n_layers_D": 1,
    "ndf": 2,
    "load_size": 70,
    "crop_size": 64,
    "device": "cpu",
    "loader": "folder",
    "num_threads": 0,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with pairs side by side (pairs/train), and images of A (A)."""
    monkeypatch.chdir(tmp_path)
    for n in range(6):
        draw(tmp_path / "pairs" / "train" / f"{n}.png", 128, n)
    for n in range(9):
        draw(tmp_path / "A" / f"{n}.png", 64, 100 + n)
    return tmp_path


def train(*args: str) -> int:
    return cli.train([*SMALL, *args])


def pixels_in(folder: str) -> dict[str, Any]:
    return {file.name: np.asarray(Image.open(file)) for file in sorted(Path(folder).iterdir())}


# --- Settings -----------------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_official_code() -> None:
    config = default_config("pix2pix")
    model: Any = config.model
    loss: Any = config.loss
    data, optim = config.data, config.optim
    assert (model.netG, model.norm, model.netD, model.ngf, model.ndf) == (
        "unet_256",
        "batch",
        "basic",
        64,
        64,
    )
    assert model.has_dropout
    assert (loss.gan_mode, loss.lambda_L1) == ("vanilla", 100.0)
    assert not hasattr(loss, "pool_size")
    assert not hasattr(loss, "lambda_identity")
    assert (data.dataset_mode, data.load_size, data.crop_size, data.batch_size) == ("aligned", 286, 256, 1)
    assert (optim.lr, optim.beta1, optim.n_epochs, optim.n_epochs_decay) == (2e-4, 0.5, 100, 100)


def test_the_networks_have_the_official_numbers_of_weights() -> None:
    with torch.device("meta"):
        nets = default_config("pix2pix").make_recipe().build_networks()
        instance = Pix2Pix(norm="instance").config.make_recipe().build_networks()
    counts = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
    assert counts == {"G": 54_413_955, "D": 2_768_705}
    assert {name: len(net.state_dict()) for name, net in nets.items()} == {"G": 82, "D": 22}
    assert len(instance["G"].state_dict()) == 32
    assert sum(isinstance(module, nn.Dropout) for module in nets["G"].modules()) == 3


@pytest.mark.parametrize(
    ("model", "flags", "expected"),
    [
        (Pix2Pix, {}, True),
        (Pix2Pix, {"no_dropout": True}, False),
        (Pix2Pix, {"use_dropout": True}, True),
        (CycleGAN, {}, False),
        (CycleGAN, {"no_dropout": True}, False),
        (CycleGAN, {"use_dropout": True}, True),
    ],
)
def test_each_recipe_has_its_default_for_dropout(model: Any, flags: dict[str, Any], expected: bool) -> None:
    config = model(netG="resnet_1blocks", ngf=2, **flags).config
    assert config.model.has_dropout is expected
    with torch.device("meta"):
        nets = config.make_recipe().build_networks()
    generator = nets[config.recipe.generators[0]]
    assert any(isinstance(module, nn.Dropout) for module in generator.modules()) is expected


def test_dropout_can_be_turned_off_and_on_when_a_run_is_resumed(folder: Path) -> None:
    assert train("--dataroot", "pairs", "--max_iters", "2", "--name", "run") == 0
    for n, (flag, expected) in enumerate((("--no_dropout", False), ("--use_dropout", True))):
        length = str(3 + n)
        assert cli.train(["--continue_train", "--name", "run", flag, "--max_iters", length]) == 0
        assert Pix2Pix.load("runs/run").config.model.has_dropout is expected


# --- Training -----------------------------------------------------------------------------------------------


@pytest.mark.slow  # a run of another recipe for pairs is killed in test_plug_in.py
def test_it_resumes_bit_for_bit_after_a_kill(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    length = ["--dataroot", "pairs", "--max_iters", "150", "--ema", "0.9"]
    assert train(*length, "--name", "unbroken") == 0
    runs = folder / "runs"
    killed(
        [*TRAIN, *SMALL, *length, "--name", "killed", "--save_latest_freq", "5"], runs / "killed" / "state.pt"
    )
    capsys.readouterr()
    assert cli.train(["--continue_train", "--name", "killed"]) == 0
    resumed = re.search(r"resuming runs/killed after iteration (\d+)", capsys.readouterr().out)
    assert resumed is not None
    assert int(resumed[1]) < 150
    assert_same(state_of(runs / "unbroken"), state_of(runs / "killed"))
    assert sorted(file.name for file in (runs / "killed").glob("latest*.pth")) == [
        "latest_net_D.pth",
        "latest_net_G.pth",
        "latest_net_G_ema.pth",
    ]
    records = [json.loads(line) for line in (runs / "killed" / "stats.jsonl").read_text().splitlines()]
    assert {"G_GAN", "G_L1", "D_real", "D_fake"} <= records[-1].keys()
    assert (runs / "killed" / "samples" / "0000150.png").exists()


@pytest.mark.parametrize(
    "flags",
    [
        "--norm instance --batch_size 3 --micro_batch 2 --gan_mode lsgan",
        "--batch_size 3 --no_dropout --direction BtoA",
        "--norm instance --gan_mode wgangp",
        "--netG resnet_1blocks --netD pixel --lr_policy plateau",
    ],
)
def test_it_resumes_bit_for_bit_with_other_settings(folder: Path, flags: str) -> None:
    args = ["--dataroot", "pairs", *flags.split(), "--n_epochs", "2", "--n_epochs_decay", "2"]
    assert train(*args, "--name", "unbroken") == 0
    assert train(*args, "--name", "stopped", "--max_iters", "3") == 0
    assert cli.train(["--continue_train", "--name", "stopped", "--max_iters", "100"]) == 0
    runs = folder / "runs"
    assert_same(state_of(runs / "unbroken"), state_of(runs / "stopped"))


def test_it_trains_in_python_on_folders_and_loaders(folder: Path) -> None:
    model = Pix2Pix(**SETTINGS, max_iters=4)
    model.fit("pairs")
    assert train("--dataroot", "pairs", "--max_iters", "4", "--name", "run") == 0
    expected = load_tensors(folder / "runs" / "run" / "latest_net_G.pth")
    assert_same(expected, dict(model.G.state_dict()))
    two = {side: folder / side for side in ("left", "right")}
    for file in sorted((folder / "pairs" / "train").iterdir()):
        image = Image.open(file)
        for side, box in (("left", (0, 0, 64, 24)), ("right", (64, 0, 128, 24))):
            two[side].mkdir(exist_ok=True)
            image.crop(box).save(two[side] / file.name)
    other = Pix2Pix(**SETTINGS, max_iters=4)
    other.fit(two["left"], two["right"], holdout=0.0)
    assert_same(expected, dict(other.G.state_dict()))
    images = [torch.rand(2, 3, 64, 64) * 2 - 1 for _ in range(3)]
    model.fit([(image, image.flip(3)) for image in images], max_iters=7)
    assert model.iteration == 7
    assert repr(model) == "Pix2Pix(netG=unet_64, ngf=2, norm=batch, netD=n_layers, ndf=2, iteration=7)"
    assert model_class("pix2pix") is Pix2Pix


def test_direction_swaps_the_images_and_their_channels(folder: Path) -> None:
    for file in (folder / "pairs" / "train").iterdir():
        image = Image.open(file)
        flipped = Image.new("RGB", image.size)
        flipped.paste(image.crop((64, 0, 128, 24)), (0, 0))
        flipped.paste(image.crop((0, 0, 64, 24)), (64, 0))
        (folder / "swapped" / "train").mkdir(parents=True, exist_ok=True)
        flipped.save(folder / "swapped" / "train" / file.name)
    assert train("--dataroot", "pairs", "--direction", "BtoA", "--max_iters", "3", "--name", "one") == 0
    assert train("--dataroot", "swapped", "--max_iters", "3", "--name", "other") == 0
    one, other = (load_tensors(folder / "runs" / name / "latest_net_G.pth") for name in ("one", "other"))
    assert_same(one, other)
    translate = ["--input", "A", "--output", "out", "--device", "cpu"]
    assert cli.translate(["--weights", "runs/one", *translate]) == 0
    assert cli.translate(["--weights", "runs/one", *translate, "--direction", "BtoA"]) == 0
    assert cli.translate(["--weights", "runs/one", *translate, "--direction", "AtoB"]) == 2


def test_the_built_in_pairs_show_one_scene(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--ngf 2 --ndf 2 --device cpu --max_iters 2 --name run --netG unet_32".split()
    assert cli.train(["--model", "pix2pix", *flags]) == 0
    output = capsys.readouterr().out
    assert "200 pairs for training, 32 held out" in output
    assert re.search(
        r"L1 ratio: .* \d\.\d\d times that of the untranslated images, and \d\.\d\d times", output
    )
    for split, count in (("train", 200), ("test", 32)):
        files = sorted((folder / "runs" / "run" / "dataset" / split).iterdir())
        assert len(files) == count
        pixels = np.asarray(Image.open(files[0]))
        ground = (226, 221, 208)
        left, right = (np.any(half != ground, axis=2) for half in np.split(pixels, 2, axis=1))
        assert left.any()
        assert np.array_equal(left, right)


def test_the_built_in_images_fit_the_u_net(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--ngf 1 --ndf 1 --device cpu --max_iters 1 --netG unet_128".split()
    assert cli.train(["--model", "pix2pix", *flags, "--name", "run"]) == 0
    assert "from 128 to 128 pixels" in capsys.readouterr().out
    assert cli.train(["--norm", "batch", *flags, "--name", "cycle"]) == 0
    assert cli.train(["--model", "pix2pix", *flags, "--name", "gray", "--input_nc", "1"]) == 2
    assert capsys.readouterr().err == (
        "error: no images given, and the built-in ones are in colour, got input_nc 1, output_nc 3\n"
    )


# --- Translating --------------------------------------------------------------------------------------------


def official_test(weights: dict[str, Tensor], image: Tensor, name: str, seed: int = 0) -> Tensor:
    """Translate ``image`` [3, H, W] with a plain U-Net in training mode, and the masks of ``name``."""
    net = reference.UnetGenerator(num_downs=6, ngf=2, norm="batch", use_dropout=True).double()
    net.load_state_dict(weights)
    (dropout,) = (module for module in as_trained(net).modules() if type(module).__name__ == "KeyedDropout")
    (place,) = (path for path, module in net.named_modules() if isinstance(module, nn.Dropout))
    net.set_submodule(place, dropout)
    with torch.no_grad(), masks_from(mask_keys(seed, [name])):
        return net.train()(image[None].double())[0]


def test_an_image_is_translated_as_by_the_official_test(folder: Path) -> None:
    assert train("--dataroot", "pairs", "--max_iters", "3", "--name", "run") == 0
    image = np.asarray(Image.open("A/3.png").resize((64, 64)))
    Image.fromarray(image).save("A/3.png")
    args = "--weights runs/run --device cpu --precision fp32 --seed 5".split()
    assert cli.translate([*args, "--input", "A/3.png", "--output", "out"]) == 0
    weights = load_tensors(folder / "runs" / "run" / "latest_net_G.pth")
    x = torch.tensor(image).permute(2, 0, 1) / 127.5 - 1
    expected = ((official_test(weights, x, "3.png", 5) + 1) * 127.5).permute(1, 2, 0)
    found = torch.tensor(np.asarray(Image.open("out/3.png"))).double()
    assert (found - expected).abs().max() < 0.51  # rounded


def test_an_image_does_not_depend_on_its_neighbours(folder: Path) -> None:
    assert train("--dataroot", "pairs", "--max_iters", "3", "--name", "run") == 0
    args = "--weights runs/run --input A --device cpu --precision fp32".split()
    results = {}
    for size in ("1", "8"):
        assert cli.translate([*args, "--output", f"out{size}", "--batch_size", size]) == 0
        results[size] = pixels_in(f"out{size}")
    assert len(results["1"]) == 9
    for name, pixels in results["1"].items():
        # Rounding in fp32 can move a value across the border between two steps.
        assert np.abs(pixels.astype(int) - results["8"][name]).max() <= 1
    assert cli.translate([*args, "--output", "again"]) == 0
    assert all(np.array_equal(pixels, results["8"][name]) for name, pixels in pixels_in("again").items())
    seen = {pixels.tobytes() for pixels in pixels_in("again").values()}
    for flags in (["--eval"], ["--no_dropout"], ["--seed", "1"]):
        assert cli.translate([*args, "--output", f"out{flags[0]}", *flags]) == 0
        assert seen.isdisjoint({pixels.tobytes() for pixels in pixels_in(f"out{flags[0]}").values()})


def test_eval_is_the_evaluation_mode(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--dataroot", "pairs", "--max_iters", "3", "--name", "run") == 0
    args = "--weights runs/run --input A --output out --device cpu --precision fp32".split()
    capsys.readouterr()
    assert cli.translate(args) == 0
    assert "with batch statistics of each image and dropout (--eval without)" in capsys.readouterr().out
    assert cli.translate([*args, "--eval"]) == 0
    assert "batch statistics" not in capsys.readouterr().out
    model = Pix2Pix.load("runs/run", precision="fp32")
    image = Image.open("A/0.png")
    expected = np.asarray(model.translate(image, evaluate=True))
    assert np.array_equal(np.asarray(Image.open("out/0.png")), expected)
    net = load_generator("runs/run")
    assert not net.training
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        assert (net(x) - model.translate(x, evaluate=True)).abs().max() < 1e-5


def test_python_translates_like_the_command_line(folder: Path) -> None:
    assert train("--dataroot", "pairs", "--max_iters", "3", "--name", "run", "--seed", "7") == 0
    args = "--weights runs/run --input A --output out --device cpu --precision fp32 --seed 7".split()
    assert cli.translate(args) == 0
    model = Pix2Pix.load("runs/run", precision="fp32")
    paths = sorted(Path("A").iterdir())
    for path, result in zip(paths, model.translate(paths), strict=True):
        assert np.abs(np.asarray(result).astype(int) - np.asarray(Image.open(f"out/{path.name}"))).max() <= 1
    # Without a name, an image has its position.
    images = [Image.open(path) for path in paths]
    assert not np.array_equal(np.asarray(model.translate(images)[3]), np.asarray(Image.open("out/3.png")))
    first = model.translate(images)
    assert all(np.array_equal(a, b) for a, b in zip(first, model.translate(images), strict=True))
    before = {key: value.clone() for key, value in model.G.state_dict().items()}
    model.translate(images)
    assert all(torch.equal(value, before[key]) for key, value in model.G.state_dict().items())
    # The weights of later training are used, and the network that is trained is not in evaluation mode.
    model.fit("pairs", max_iters=5)
    assert model.G.training
    assert not all(np.array_equal(a, b) for a, b in zip(first, model.translate(images), strict=True))


def test_samples_are_translated_in_the_same_way(folder: Path) -> None:
    for n in range(2):
        draw(folder / "pairs" / "val" / f"{n}.png", 128, 50 + n)
    assert train("--dataroot", "pairs", "--max_iters", "3", "--name", "run") == 0
    grid = np.asarray(Image.open("runs/run/samples/0000003.png"))
    for n in range(2):
        image = (
            Image.open(f"pairs/val/{n}.png").crop((0, 0, 64, 24)).resize((70, 70), Image.Resampling.BICUBIC)
        )
        image.crop((3, 3, 67, 67)).save(f"{n}.png")
    results = Pix2Pix.load("runs/run", precision="fp32").translate(["0.png", "1.png"])
    for result in results:
        assert _contains(grid, np.asarray(result))


def _contains(grid: Any, image: Any) -> bool:
    """Return whether ``image`` is in ``grid``, except for rounding."""
    height, width = image.shape[:2]
    for top in range(grid.shape[0] - height + 1):
        for left in range(grid.shape[1] - width + 1):
            part = grid[top : top + height, left : left + width].astype(int)
            if np.abs(part[0] - image[0]).max() <= 1 and np.abs(part - image).max() <= 1:
                return True
    return False


# --- Official files -----------------------------------------------------------------------------------------


def official_folder(root: Path, **model: Any) -> Path:
    """Write the files of an official run: weights alone, with the official names."""
    folder = root / "checkpoints" / "facades"
    folder.mkdir(parents=True)
    torch.manual_seed(3)
    options: dict[str, Any] = {"norm": "batch", **model}
    G = reference.UnetGenerator(num_downs=6, ngf=2, use_dropout=True, **options)
    D = reference.Discriminator(6, ndf=2, n_layers=1, **options)
    for name, net in (("G", G), ("D", D)):
        save_tensors(folder / f"latest_net_{name}.pth", dict(net.state_dict()))
    return folder


def test_official_files_load_by_themselves(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = official_folder(folder)
    weights = load_tensors(source / "latest_net_G.pth")
    model = Pix2Pix.load(source)
    assert_same(weights, dict(model.G.state_dict()))
    settings: Any = model.config.model
    assert (settings.netG, settings.norm, settings.ndf, settings.n_layers_D) == ("unet_64", "batch", 2, 1)
    for each in (source, source / "latest_net_G.pth"):
        assert_same(weights, dict(load_generator(each).state_dict()))
    args = "--input A --output out --device cpu".split()
    assert cli.translate(["--weights", str(source), *args]) == 0
    assert "with batch statistics of each image and dropout" in capsys.readouterr().out
    # A copy under any name is recognised as well: a U-Net with batch norm is one of pix2pix.
    (folder / "label2photo.pth").write_bytes((source / "latest_net_G.pth").read_bytes())
    assert cli.translate(["--weights", "label2photo.pth", *args]) == 0
    assert "with batch statistics of each image and dropout" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["--model", "pix2pix"], []])
def test_training_continues_from_official_files(
    folder: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    source = official_folder(folder)
    weights = load_tensors(source / "latest_net_G.pth")
    args = "--checkpoints_dir checkpoints --name facades --continue_train --dataroot pairs --lr 0".split()
    more = "--load_size 64 --crop_size 64 --device cpu --loader folder --num_threads 0 --max_iters 1".split()
    assert cli.train([*flags, *args, *more]) == 0
    assert "starting from the weights in checkpoints/facades/latest_net_*.pth" in capsys.readouterr().out
    trained = load_tensors(source / "latest_net_G.pth")
    for key, value in weights.items():
        if "running" not in key and "num_batches" not in key:
            assert torch.equal(value, trained[key])


def test_files_of_before_the_counts_of_batches_load(folder: Path) -> None:
    source = official_folder(folder)
    for name in ("G", "D"):
        file = source / f"latest_net_{name}.pth"
        weights = {key: value for key, value in load_tensors(file).items() if "num_batches" not in key}
        save_tensors(file, weights)
    assert Pix2Pix.load(source).config.model.norm == "batch"  # type: ignore[attr-defined]
    assert (
        cli.translate(["--weights", str(source), "--input", "A", "--output", "out", "--device", "cpu"]) == 0
    )


def test_u_nets_of_cyclegan_are_not_taken_for_those_of_pix2pix(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = reference.UnetGenerator(num_downs=6, ngf=2, norm="batch")
    for name in ("A", "B"):
        save_tensors(folder / f"latest_net_G_{name}.pth", dict(net.state_dict()))
    save_tensors(folder / "both.pth", {"G_AB": dict(net.state_dict()), "G_BA": dict(net.state_dict())})
    args = "--input A --output out --device cpu".split()
    for weights in ("latest_net_G_A.pth", "latest_net_G_B.pth", "both.pth"):
        key = ["--key", "G_AB"] if weights == "both.pth" else []
        assert cli.translate(["--weights", weights, *args, *key]) == 0
        assert "with batch statistics" not in capsys.readouterr().out


def test_every_file_of_a_run_translates_like_the_run(folder: Path) -> None:
    assert train("--dataroot", "pairs", "--max_iters", "3", "--name", "run", "--seed", "5") == 0
    model = Pix2Pix.load("runs/run")
    G: Any = model.G
    G.save_pretrained("kept")
    args = "--input A --device cpu --precision fp32".split()
    expected = None
    for n, source in enumerate(("runs/run", "runs/run/latest_net_G.pth", "runs/run/state.pt", "kept")):
        seed = ["--seed", "5"] if source == "kept" else []  # otherwise that of the run
        assert cli.translate(["--weights", source, *args, "--output", f"out{n}", *seed]) == 0
        found = pixels_in(f"out{n}")
        expected = found if expected is None else expected
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
    images = sorted(Path("A").iterdir())
    in_python = model.translate(images)
    assert expected is not None
    for path, image in zip(images, in_python, strict=True):
        assert np.abs(np.asarray(image).astype(int) - expected[path.name]).max() <= 1


def test_instance_norm_and_dropout_survive_save_pretrained(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--dataroot", "pairs", "--max_iters", "1", "--name", "run", "--norm", "instance") == 0
    load_generator("runs/run").save_pretrained("kept", run="runs/run")  # type: ignore[operator]
    again: Any = UnetGenerator.from_pretrained("kept")
    again.save_pretrained("again")
    capsys.readouterr()
    for source in ("kept", "again"):
        assert cli.translate(["--weights", source, "--input", "A", "--output", "out", "--device", "cpu"]) == 0
        assert "with dropout (--eval without)" in capsys.readouterr().out


def test_tensors_in_a_list_have_the_masks_of_their_places() -> None:
    model = Pix2Pix(**SETTINGS)
    image = torch.rand(3, 64, 64) * 2 - 1
    alone = model.translate([image, image, image])
    together = model.translate(image.expand(3, 3, 64, 64))
    assert not torch.equal(alone[0], alone[1])
    for one, other in zip(alone, together, strict=True):
        assert (one - other).abs().max() < 1e-4


def test_changed_weights_are_saved_and_trained_on(folder: Path) -> None:
    assert train("--dataroot", "pairs", "--max_iters", "2", "--name", "run") == 0
    model = Pix2Pix.load("runs/run")
    with torch.no_grad():
        for p in model.G.parameters():
            p.mul_(0.5)
    model.save("kept")
    expected = dict(model.G.state_dict())
    assert_same(expected, dict(Pix2Pix.load("kept").G.state_dict()))
    assert_same(expected, load_tensors(folder / "kept" / "latest_net_G.pth"))
    model.fit(max_iters=3, lr=0.0)
    assert all(torch.equal(p, expected[name]) for name, p in model.G.named_parameters())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--init_from runs/run --direction BtoA", "from A to B, but this run trains a generator from B to A"),
        ("--init_from_B runs/run", "--init_from_B: Pix2Pix has one generator, which --init_from names"),
        ("--init_from none", "none: no such file or folder"),
    ],
)
def test_a_generator_that_cannot_start_a_run_is_named(
    folder: Path, args: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--dataroot", "pairs", "--max_iters", "1", "--name", "run") == 0
    capsys.readouterr()
    assert train("--dataroot", "pairs", *args.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_folder_of_another_recipe_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = official_folder(folder)
    with pytest.raises(UserError, match=r"has the files of --model pix2pix, which CycleGAN cannot load"):
        CycleGAN.load(source)
    args = "--input A --output out --device cpu".split()
    assert cli.translate(["--weights", str(source), *args, "--epoch", "5"]) == 2
    assert "5_net_G.pth: no weights file for generator G; epochs saved" in capsys.readouterr().err
    assert cli.translate(["--weights", str(source), *args, "--direction", "AtoB"]) == 0
    assert cli.translate(["--weights", str(source), *args, "--direction", "BtoA"]) == 2
    assert "has a single generator: direction cannot be BtoA" in capsys.readouterr().err


def test_cyclegan_ends_with_its_scores_on_built_in_pairs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--dataset_mode aligned --ngf 2 --ndf 2 --max_iters 1 --device cpu --name pairs".split()
    assert cli.train(flags) == 0
    assert "A to B: the translations close" in capsys.readouterr().out


def test_training_starts_from_a_generator(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = official_folder(folder, norm="instance") / "latest_net_G.pth"
    weights = load_tensors(file)
    args = ["--model", "pix2pix", "--init_from", str(file), "--dataroot", "pairs", "--max_iters", "1"]
    more = "--lr 0 --netD pixel --ndf 2 --load_size 64 --crop_size 64 --device cpu --num_threads 0".split()
    for direction in ("AtoB", "BtoA"):
        assert cli.train([*args, *more, "--direction", direction, "--name", direction]) == 0
        assert_same(weights, load_tensors(folder / "runs" / direction / "latest_net_G.pth"))
        assert "D: fresh" in capsys.readouterr().out
    assert cli.train(["--model", "pix2pix", *more, "--init_from", str(file), str(file)]) == 2
    assert "Pix2Pix has one generator, got 2 files" in capsys.readouterr().err


def test_a_resnet_without_dropout_starts_a_run_without_dropout(folder: Path) -> None:
    torch.manual_seed(0)
    save_tensors(folder / "g.pth", dict(reference.Generator(ngf=2, n_blocks=1, norm="batch").state_dict()))
    model = Pix2Pix(init_from="g.pth", ndf=2)
    settings: Any = model.config.model
    assert (settings.netG, settings.has_dropout) == ("resnet_1blocks", False)
    with pytest.raises(
        UserError, match=r"G is a generator resnet_1blocks \(.*dropout\), but the file contains"
    ):
        _ = Pix2Pix(init_from="g.pth", ndf=2, use_dropout=True).G


def test_a_run_cannot_continue_with_another_norm(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--dataroot", "pairs", "--max_iters", "2", "--name", "run") == 0
    before = {file.name: file.read_bytes() for file in (folder / "runs" / "run").glob("*.pt*")}
    capsys.readouterr()
    assert cli.train("--continue_train --name run --norm instance --max_iters 3".split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "norm" in error
    assert {file.name: file.read_bytes() for file in (folder / "runs" / "run").glob("*.pt*")} == before
