"""New runs that start from generators in files: their weights, what they report, and what they refuse."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastcyclegan import CycleGAN, cli
from fastcyclegan.checkpoints.run_files import save_weights
from fastcyclegan.cli import parse_train
from fastcyclegan.errors import UserError
from fastcyclegan.nn.networks import Generator, UnetGenerator
from fastcyclegan.training.initial_weights import described
from tests.models import TINY, same, tensors
from tests.training.runs import arguments, run


def generator_file(path: Path, seed: int = 1, **options: Any) -> Path:
    torch.manual_seed(seed)
    save_weights(path, Generator(**{"ngf": 2, "n_blocks": 1, **options}).state_dict())
    return path


def is_from(net: nn.Module, file: Path) -> bool:
    weights = torch.load(file, weights_only=True)
    state = net.state_dict()
    return state.keys() == weights.keys() and all(torch.equal(state[key], weights[key]) for key in weights)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return generator_file(tmp_path / "ab.pth", 1), generator_file(tmp_path / "ba.pth", 2)


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--init_from", "ab"), {"AtoB": "ab"}),
        (("--init_from", "ab", "ba"), {"AtoB": "ab", "BtoA": "ba"}),
        (("--init_from_B", "ba"), {"BtoA": "ba"}),
        (("--init_from", "ab", "--init_from_B", "ba"), {"AtoB": "ab", "BtoA": "ba"}),
    ],
)
def test_files_are_for_directions_between_the_training_folders(
    dataset: Path,
    tmp_path: Path,
    files: tuple[Path, Path],
    flags: tuple[str, ...],
    expected: dict[str, str],
    direction: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also under --direction BtoA, where the model's G_AB translates folder B to folder A."""
    given = [str(tmp_path / f"{flag}.pth") if flag in ("ab", "ba") else flag for flag in flags]
    nets = run(
        dataset, tmp_path, "r", *given, "--direction", direction, "--lr", "0", "--max_iters", "1"
    ).run.engine.nets
    names = {direction: "G_AB", {"AtoB": "BtoA", "BtoA": "AtoB"}[direction]: "G_BA"}
    printed = capsys.readouterr().out
    for each, name in names.items():
        for file in ("ab", "ba"):
            assert is_from(nets[name], tmp_path / f"{file}.pth") == (expected.get(each) == file), (each, file)
        if each in expected:
            assert f"{name}: from {tmp_path / expected[each]}.pth, 16 tensors" in printed
    fresh = [name for each, name in names.items() if each not in expected]
    assert f"{', '.join([*fresh, 'D_A', 'D_B'])}: fresh" in printed


def test_a_folder_is_a_source_as_well(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path, "first", "--max_iters", "1", "--seed", "3")
    nets = run(
        dataset, tmp_path, "r", "--init_from", str(tmp_path / "first"), "--lr", "0", "--max_iters", "1"
    )
    for name, file in (("G_AB", "G_A"), ("G_BA", "G_B")):
        assert is_from(nets.run.engine.nets[name], tmp_path / "first" / f"latest_net_{file}.pth")
    for name, file in (("D_B", "D_A"), ("D_A", "D_B")):
        assert not is_from(nets.run.engine.nets[name], tmp_path / "first" / f"latest_net_{file}.pth")


def test_settings_that_are_not_given_are_those_of_the_file(tmp_path: Path) -> None:
    file = generator_file(tmp_path / "affine.pth", affine=True, ngf=3, n_blocks=2, use_dropout=True)
    model = parse_train(["--init_from", str(file), "--dataroot", "x"]).model
    assert (model.netG, model.ngf, model.affine, model.use_dropout) == ("resnet_2blocks", 3, True, True)
    assert CycleGAN(init_from=file).config.model == model
    assert parse_train(["--init_from", str(file)]).model.netD == "n_layers"  # that of the built-in images
    for flag in ("--no_dropout", "--no_use_dropout"):
        assert not parse_train(["--init_from", str(file), flag]).model.use_dropout
    gray = generator_file(tmp_path / "gray.pth", input_nc=1, output_nc=3)
    for flags, expected in (
        (["--init_from", str(gray)], (1, 3)),
        (["--init_from_B", str(gray)], (3, 1)),
        (["--init_from", str(gray), "--direction", "BtoA"], (3, 1)),
    ):
        model = parse_train([*flags, "--lambda_identity", "0"]).model
        assert (model.input_nc, model.output_nc) == expected


def test_the_prefixes_of_foreign_files_are_removed(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = torch.load(generator_file(tmp_path / "plain.pth"), weights_only=True)
    torch.save({"netG": {f"module.{key}": value for key, value in weights.items()}}, tmp_path / "f.pth")
    nets = run(
        dataset, tmp_path, "r", "--init_from", str(tmp_path / "f.pth"), "--lr", "0", "--max_iters", "1"
    )
    assert is_from(nets.run.engine.nets["G_AB"], tmp_path / "plain.pth")
    assert 'f.pth, 16 tensors (removed the prefix "module.")' in capsys.readouterr().out


BAD = [
    (["--init_from", "{ab}", "{ab}", "{ab}"], "--init_from takes a folder, one file"),
    (["--init_from", "{ab}", "{ba}", "--init_from_B", "{ba}"], "the generator from B to A is given twice"),
    (["--init_from", "{run}", "{ba}"], "the generator from B to A is given twice: "),
    (["--init_from", "none.pth"], "none.pth: no such file or folder"),
    (["--init_from", "{broken}"], "broken.pth: cannot be loaded"),
    (["--init_from", "{ab}", "{wide}"], r"G_BA is a generator resnet_1blocks \(ngf 2, .* contains a .*ngf 3"),
    (["--init_from", "{wide}", "--ngf", "2"], "ngf 3, .*: 1[0-9] tensors differ"),
    (
        ["--init_from", "{gray}", "--input_nc", "3"],
        r"model.1.weight has the shape \[2, 1, 7, 7\] instead of \[2, 3, 7, 7\]",
    ),
    (["--init_from", "{zero}"], "only reflection-padded blocks can be trained"),
    (["--init_from", "{unet}"], "crop_size 16 is not a multiple of 128: unet_128"),
    (["--init_from", "{ab}", "--continue_train"], "--init_from starts a new run"),
    (["--init_from", "{ab}", "--init_from", "{ba}"], "--init_from is given twice"),
    (["--init_from", "{big}"], r"big.pth: .* contains numbers up to 1e\+300, but float32 ends at"),
    (["--init_from", "{ab}", "--ngf", "3", "--dry_run"], r"ab.pth: G_AB is a generator .*\(ngf 3"),
]


@pytest.mark.parametrize(("flags", "message"), BAD)
def test_what_cannot_be_used_is_refused_in_one_line_before_anything_is_written(
    dataset: Path, tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    generator_file(tmp_path / "ab.pth")
    generator_file(tmp_path / "ba.pth")
    generator_file(tmp_path / "wide.pth", ngf=3)
    generator_file(tmp_path / "gray.pth", input_nc=1)
    generator_file(tmp_path / "zero.pth", padding_type="zero")
    save_weights(tmp_path / "unet.pth", UnetGenerator(num_downs=7, ngf=2).state_dict())
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    wide = torch.load(tmp_path / "ab.pth", weights_only=True)
    torch.save(
        {key: torch.full_like(value.double(), 1e300) for key, value in wide.items()}, tmp_path / "big.pth"
    )
    (tmp_path / "run").mkdir()
    for name in ("G_A", "G_B"):
        generator_file(tmp_path / "run" / f"latest_net_{name}.pth")
    places = {name: tmp_path / f"{name}.pth" for name in "ab ba wide gray zero unet broken big".split()}
    given = [flag.format(run=tmp_path / "run", **places) for flag in flags]
    tiny = arguments(dataset, runs, "r")
    for setting in ("--netG", "--ngf"):  # taken from the file, unless given
        at = tiny.index(setting)
        del tiny[at : at + 2]
    assert cli.train([*tiny, *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert not runs.exists()


def test_a_run_that_is_stopped_before_its_first_save_starts_from_the_files_again(
    dataset: Path, tmp_path: Path, files: tuple[Path, Path]
) -> None:
    """Its configuration names them. Once it has weights of its own, it does not need them any more."""
    given = ("--init_from", str(files[0]), "--lr", "0")
    run(dataset, tmp_path, "r", *given, "--max_iters", "1")
    for file in (tmp_path / "r").glob("*.p*t*"):
        file.unlink()
    again = run(dataset, tmp_path, "r", "--continue_train", "--max_iters", "1").run
    assert is_from(again.engine.nets["G_AB"], files[0])
    assert "ab.pth" in again.origins["G_AB"]
    files[0].unlink()
    resumed = run(dataset, tmp_path, "r", "--continue_train", "--max_iters", "2").run
    assert resumed.iteration == 2
    assert not resumed.origins
    assert resumed.config.finetune.init_from == (files[0],)


def test_a_run_does_not_replace_what_it_starts_from(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path, "r", "--max_iters", "1")
    before = sorted((tmp_path / "r").rglob("*"))
    for source in (tmp_path / "r", tmp_path / "r" / "latest_net_G_A.pth"):
        with pytest.raises(UserError, match="--overwrite would delete the weights to start from"):
            run(dataset, tmp_path, "r", "--overwrite", "--init_from", str(source))
    assert sorted((tmp_path / "r").rglob("*")) == before


def test_in_python(tmp_path: Path, files: tuple[Path, Path]) -> None:
    settings = {name: value for name, value in TINY.items() if name not in ("netG", "ngf")}
    model = CycleGAN(**settings, init_from=str(files[0]), init_from_B=files[1])
    assert is_from(model.G_AB, files[0])
    assert is_from(model.G_BA, files[1])
    plain = CycleGAN(**settings, netG="resnet_1blocks", ngf=2)
    for one, other in ((model.D_A, plain.D_A), (model.D_B, plain.D_B)):  # fresh, from the same seed
        assert torch.equal(next(one.parameters()), next(other.parameters()))
    assert same(CycleGAN(**settings, init_from=list(files)), model)
    model.fit([tensors(1)], [tensors(1)], folder=tmp_path / "r")
    for file in files:
        file.unlink()
    loaded = CycleGAN.load(tmp_path / "r")  # does not need the files
    assert same(loaded, model)
    with pytest.raises(UserError, match="init_from cannot change"):
        model.fit([tensors(1)], [tensors(1)], init_from="other.pth")
    with pytest.raises(UserError, match="does not apply to a loaded one"):
        CycleGAN.load(tmp_path / "r", init_from="other.pth")
    with pytest.raises(UserError, match="no such file or folder"):
        CycleGAN(init_from=tmp_path / "none.pth")
    for wrong in (5, [5], [None], b"x", "", [[files[0]]]):
        with pytest.raises(UserError, match="init_from must be a path or a list of one or two, got"):
            CycleGAN(init_from=wrong)
    with pytest.raises(UserError, match="init_from_B must be a path, got ''"):
        CycleGAN(init_from_B="")


def test_networks_of_one_origin_are_described_together() -> None:
    origins = {"G_AB": "from a.pth, 94 tensors", "G_BA": "fresh", "D_A": "fresh"}
    assert described(origins) == "G_AB: from a.pth, 94 tensors; G_BA, D_A: fresh"
