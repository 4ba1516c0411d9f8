"""The recipe that CONTRIBUTING.md shows, installed as a plug-in: trained, killed, resumed and used."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastcyclegan import UserError, cli, load_generator, model_class
from fastcyclegan.api import Model
from fastcyclegan.recipes.registry import recipe_class
from fastcyclegan.tensor_files import load_tensors
from tests.recipes.states import assert_same, draw, killed, state_of
from tests.training.runs import TRAIN

PAGE = (Path(__file__).parents[2] / ".github" / "CONTRIBUTING.md").read_text()
(RECIPE,) = (code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "class Sketch" in code)
SMALL = "--model sketch --device cpu --loader folder --num_threads 0 --load_size 20 --crop_size 16 --width 3"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with the plug-in, pairs side by side (pairs/train), and single images (photos)."""
    site = tmp_path / "site"
    info = site / "sketch_recipe-1.dist-info"
    info.mkdir(parents=True)
    (site / "sketch.py").write_text(RECIPE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sketch-recipe\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[fastcyclegan.recipes]\nsketch = sketch:Sketch\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(Path(__file__).parents[2])]))
    monkeypatch.chdir(tmp_path)
    for n in range(6):
        draw(tmp_path / "pairs" / "train" / f"{n}.png", 48, n)
        draw(tmp_path / "photos" / f"{n}.png", 24, 100 + n)
    yield tmp_path
    sys.modules.pop("sketch", None)


def train(*args: str) -> int:
    return cli.train([*SMALL.split(), *args])


def test_the_recipe_is_short() -> None:
    assert len(RECIPE.splitlines()) < 80
    assert len([line for line in RECIPE.splitlines() if line.strip()]) < 60


def test_it_trains_on_pairs_and_resumes_bit_for_bit_after_a_kill(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    length = ["--dataroot", "pairs", "--max_iters", "400", "--ema", "0.9"]
    assert train(*length, "--name", "unbroken") == 0
    assert "6 pairs for training, 0 held out" in capsys.readouterr().out
    command = [*TRAIN, *SMALL.split(), *length, "--name", "killed", "--save_latest_freq", "5"]
    killed(command, folder / "runs" / "killed" / "state.pt")
    assert cli.train(["--continue_train", "--name", "killed"]) == 0
    resumed = re.search(r"resuming runs/killed after iteration (\d+)", capsys.readouterr().out)
    assert resumed is not None
    assert int(resumed[1]) < 400
    runs = folder / "runs"
    assert_same(state_of(runs / "unbroken"), state_of(runs / "killed"))
    assert (runs / "killed" / "index.html").exists()
    assert (runs / "killed" / "samples" / "0000400.png").exists()
    assert sorted(file.name for file in (runs / "killed").glob("*.pth")) == [
        "latest_net_D.pth",
        "latest_net_G.pth",
        "latest_net_G_ema.pth",
    ]
    records = [json.loads(line) for line in (runs / "killed" / "stats.jsonl").read_text().splitlines()]
    assert {"D", "G_GAN", "G_L1"} <= records[-1].keys()


def test_it_translates_on_the_command_line_and_in_python(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--dataroot", "pairs", "--max_iters", "3", "--name", "run") == 0
    args = "--weights runs/run --input photos --output out --device cpu --loader folder".split()
    assert cli.translate(args) == 0
    model = model_class("sketch").from_run("runs/run")
    assert repr(model) == "Sketch(iteration=3)"
    image = Image.open("photos/0.png")
    expected = np.asarray(model.translate(image))
    assert np.array_equal(np.asarray(Image.open("out/0.png")), expected)
    # A file of the run alone, too: its recipe is that of the configuration beside it.
    for source in ("runs/run", "runs/run/latest_net_G.pth"):
        net = load_generator(source)
        assert torch.equal(net[0].weight, model.networks["G"][0].weight)
    with pytest.raises(UserError, match=r"^Sketch only translates in one direction: that in"):
        model.translate(image, direction="BtoA")
    with pytest.raises(UserError, match=r"^Sketch makes no images from noise"):
        model.sample()
    assert cli.translate([*args, "--direction", "BtoA"]) == 2
    assert capsys.readouterr().err == (
        "error: runs/run has a single generator, which translates AtoB: direction cannot be BtoA\n"
    )


def test_its_weights_files_are_read_without_a_state(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--dataroot pairs --n_epochs 2 --n_epochs_decay 0 --save_epoch_freq 1 --name run"
    assert train(*flags.split()) == 0
    first = load_tensors(folder / "runs" / "run" / "1_net_G.pth")
    assert_same(first, dict(model_class("sketch").from_run("runs/run", "1").networks["G"].state_dict()))
    capsys.readouterr()
    assert cli.inspect_checkpoint(["runs/run/1_net_G.pth"]) == 0
    assert re.search(r"G of the recipe sketch: 4 tensors, [\d,]+ values, float32", capsys.readouterr().out)
    assert cli.train("--continue_train --name run --epoch 1 --n_epochs 3".split()) == 0
    assert "starting from the weights in runs/run/1_net_*.pth" in capsys.readouterr().out
    (folder / "runs" / "run" / "1_net_G.pth").write_bytes(
        (folder / "runs" / "run" / "latest_net_D.pth").read_bytes()
    )
    with pytest.raises(UserError, match=r"1_net_G.pth.*does not match the networks of Sketch"):
        load_generator("runs/run/1_net_G.pth")


def test_a_run_starts_from_the_networks_of_another(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--dataroot", "pairs", "--max_iters", "3", "--name", "first", "--width", "5") == 0
    without_width, runs = SMALL.replace(" --width 3", "").split(), folder / "runs"
    for n, source in enumerate(("runs/first", "runs/first/latest_net_G.pth")):
        args = ["--dataroot", "pairs", "--max_iters", "1", "--lr", "0", "--init_from", source]
        assert cli.train([*without_width, *args, "--name", f"second{n}"]) == 0
        second = load_tensors(runs / f"second{n}" / "latest_net_G.pth")
        assert_same(load_tensors(runs / "first" / "latest_net_G.pth"), second)
    assert "D: fresh" in capsys.readouterr().out
    for source in ("runs/first/latest_net_D.pth", "runs/first/latest_net_G.pth"):
        assert train("--dataroot", "pairs", "--max_iters", "1", "--init_from", source, "--width", "4") == 2
        error = capsys.readouterr().err
        assert re.search("expected a generator, got D|G is a Sequential, but the file contains", error)
    assert cli.translate("--weights runs/first/latest_net_D.pth --input photos --output o".split()) == 2
    message = "runs/first/latest_net_D.pth: expected a generator, got D of the recipe sketch"
    assert message in capsys.readouterr().err


def test_it_trains_on_single_images_and_in_python(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--data", "photos", "--max_iters", "4", "--name", "single", "--holdout", "0.3") == 0
    assert re.search(r"images +\d for training, \d held out", capsys.readouterr().out)
    sketch = model_class("sketch")
    assert issubclass(sketch, Model)
    settings = {"width": 3, "load_size": 20, "crop_size": 16, "device": "cpu", "max_iters": 4}
    settings |= {"loader": "folder", "num_threads": 0}
    models = [sketch(**settings), sketch(**settings)]
    models[0].fit("photos", dataset_mode="single", holdout=0.3)
    assert models[0].iteration == 4
    expected = load_tensors(folder / "runs" / "single" / "latest_net_G.pth")
    assert_same(expected, dict(models[0].networks["G"].state_dict()))
    # Loaders: of single images, and of pairs.
    images = [torch.rand(2, 3, 16, 16) * 2 - 1 for _ in range(3)]
    models[1].fit(images, dataset_mode="single")
    sketch(**settings).fit([(image, image.flip(3)) for image in images])
    models[0].save("saved")
    loaded = sketch.from_run("saved")
    assert_same(dict(loaded.networks["G"].state_dict()), dict(models[0].networks["G"].state_dict()))
    loaded.fit(max_iters=6, dataset_mode="single")
    assert loaded.iteration == 6


def test_help_shows_the_flags_of_the_recipe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model, shown, hidden in (("sketch", "--width", "--lambda_B"), ("cycle_gan", "--lambda_B", "--width")):
        with pytest.raises(SystemExit):
            cli.train(["--help", "--model", model])
        output = capsys.readouterr().out
        assert f" {shown} " in output
        assert f" {hidden} " not in output
        assert "cycle_gan, pix2pix, sketch" in " ".join(output.split())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--data photos --lambda_B 3", "--lambda_B is a flag of --model cycle_gan; --help lists all flags"),
        ("", "no images given: Sketch needs images in the layout aligned (pairs: --dataroot with train, or"),
        ("--data photos --direction BtoA", "--direction BtoA swaps A and B, but single images have no B"),
        ("--data photos --dataset_mode aligned", "--data is a folder of single images, but this run"),
        ("--dataroot pairs --dataset_mode unaligned", "--model sketch cannot train on images in the layout"),
        ("--dataroot pairs --freeze H", "--freeze: there is no network 'H'; the networks are G, D"),
        ("--dataroot pairs --init_from photos", "photos: contains no latest_net_G.pth"),
        ("--data_A photos", "--data_A and --data_B must be given together"),
        ("--data photos --dataroot pairs", "give either --data, or --dataroot, or --data_A and --data_B"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, args: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*args.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not (folder / "runs").exists()


def test_a_state_cannot_be_continued_as_that_of_another_recipe(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--data", "photos", "--max_iters", "2", "--name", "run") == 0
    files = {file: file.read_bytes() for file in (folder / "runs" / "run").rglob("*") if file.is_file()}
    capsys.readouterr()
    assert cli.train("--continue_train --name run --model cycle_gan --max_iters 9".split()) == 2
    refused = "error: runs/run is a run of --model sketch, which cannot be continued with --model cycle_gan\n"
    assert capsys.readouterr().err == refused
    assert cli.train("--continue_train --name run --dataset_mode aligned --dataroot pairs".split()) == 2
    assert "dataset_mode was single and cannot change to aligned" in capsys.readouterr().err
    with pytest.raises(UserError, match=r'^runs/run is a run of --model sketch.*model_class\("sketch"\)'):
        model_class("cycle_gan").load("runs/run")
    # The state of another recipe, put into a folder of this one.
    config = json.loads((folder / "runs" / "run" / "config.json").read_text())
    config["model"] = {"model": "cycle_gan", "netD": "pixel"}
    config["loss"], config["data"]["dataset_mode"] = {}, "unaligned"
    config["data"]["data"], config["data"]["dataroot"] = None, "pairs"
    (folder / "runs" / "run" / "config.json").write_text(json.dumps(config))
    flags = "--netG resnet_0blocks --ngf 2 --netD pixel --ndf 2 --data_A photos --data_B pairs/train".split()
    assert cli.train(["--continue_train", "--name", "run", "--max_iters", "9", *flags]) == 2
    assert "this is a state of --model sketch, which cannot be continued" in capsys.readouterr().err
    for file, content in files.items():
        if file.name != "config.json":
            assert file.read_bytes() == content


def test_a_run_whose_recipe_is_gone_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--data", "photos", "--max_iters", "2", "--name", "run") == 0
    shutil.rmtree(folder / "site" / "sketch_recipe-1.dist-info")
    with pytest.raises(UserError, match="there is no recipe 'sketch'"):
        recipe_class("sketch")
    capsys.readouterr()
    for command in (
        lambda: cli.train("--continue_train --name run --max_iters 9".split()),
        lambda: cli.translate("--weights runs/run --input photos --output out".split()),
    ):
        assert command() == 2
        assert "there is no recipe 'sketch'; the recipes are cycle_gan" in capsys.readouterr().err
    assert not (folder / "out").exists()
