"""Tests of the command line: flags in both spellings, output, and errors in one line with exit code 2."""

from __future__ import annotations

import ast
import importlib
import itertools
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastcyclegan import cli
from fastcyclegan.checkpoints import run_files
from fastcyclegan.cli import parse_train
from fastcyclegan.config import TrainConfig, with_changes
from fastcyclegan.errors import UserError
from fastcyclegan.inference.translate_folder import TranslateConfig
from fastcyclegan.nn.networks import Generator
from fastcyclegan.settings.tiles import TileSettings
from tests.commands import TINY, fails


def test_official_flags_in_both_spellings() -> None:
    args = """--dataroot x --name n --direction BtoA --batch_size 2 --load_size 300 --crop_size 128
        --preprocess scale_width_and_crop --no_flip --ngf 32 --ndf 16 --netG resnet_6blocks --netD
        n_layers --n_layers_D 4 --norm batch --init_type xavier --init_gain 0.1 --no_dropout
        --input_nc 1 --output_nc 3 --gan_mode vanilla --pool_size 10 --lambda_A 5 --lambda_B 6
        --lambda_identity 0 --lr 0.001 --beta1 0.9 --lr_policy step --lr_decay_iters 20 --n_epochs
        3 --n_epochs_decay 4 --epoch_count 2 --continue_train --epoch 7 --max_dataset_size 9
        --checkpoints_dir c --save_epoch_freq 2 --print_freq 10 --display_freq 20 --num_threads 1
        --serial_batches --save_latest_freq 30 --save_by_iter --model cycle_gan --dataset_mode
        unaligned --gpu_ids -1""".split()
    config = parse_train(args)
    assert config == parse_train([arg.replace("_", "-") if arg.startswith("--") else arg for arg in args])
    flat = {name: value for group in vars(config).values() for name, value in vars(group).items()}
    assert flat["lambda_B"] == 6.0
    assert flat["netG"] == "resnet_6blocks"
    assert (flat["no_flip"], flat["serial_batches"], flat["save_by_iter"]) == (True, True, True)
    assert (flat["gpu_ids"], flat["epoch"], flat["dataroot"]) == ("-1", "7", Path("x"))
    switches = {"no_flip", "no_dropout", "continue_train", "serial_batches", "save_by_iter"}
    for name, value in flat.items():  # every flag was parsed: no given value equals its default
        if name in {arg[2:] for arg in args if arg.startswith("--")} - switches - {
            "model",
            "dataset_mode",
            "output_nc",
        }:
            assert (
                value
                != {k: v for group in vars(TrainConfig()).values() for k, v in vars(group).items()}[name]
            ), name


def test_a_crop_is_one_number_or_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_train(["--dataroot", "x", "--crop-size", "96", "160"]).data.crop == (96, 160)
    assert parse_train(["--crop_size", "96", "160", "--dataroot", "x"]).data.crop == (96, 160)
    assert parse_train(["--dataroot", "x", "--crop_size=128"]).data.crop_size == 128
    for given in ("96 160 7", "96x160", "-8 16"):
        assert "crop_size must be" in fails(capsys, "--dataroot", "x", "--crop_size", *given.split())
    with pytest.raises(SystemExit):
        parse_train(["--help"])
    assert "--crop_size SIDE|HEIGHT WIDTH" in capsys.readouterr().out


def test_a_saved_crop_of_two_sides_is_resumed(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    crop = {"data": {**SAVED["data"], "crop_size": (96, 160)}}
    run_files.write_config(tmp_path / "r", with_changes(TrainConfig(), {**SAVED, **crop}))
    args = ["--continue_train", "--name", "r", "--checkpoints_dir", str(tmp_path)]
    assert parse_train(args).data.crop == (96, 160)
    assert parse_train([*args, "--crop_size", "64"]).data.crop == (64, 64)


def test_flags_override_the_builtin_preset() -> None:
    assert parse_train([]).model.netG == "resnet_2blocks"
    assert parse_train(["--ngf", "8"]).model.ngf == 8
    assert parse_train(["--dataroot=x"]).model.netG == "resnet_9blocks"
    assert parse_train(["--data-A", "x", "--data-B", "y"]).data.load_size == 286


SAVED = {
    "data": {"data_A": Path("a"), "data_B": Path("b"), "holdout": 0.2, "no_flip": True},
    "model": {"use_dropout": True},
    "loss": {"gan_mode": "wgangp", "lambda_gp": 5.0},
    "run": {"compile": True, "gpu_ids": "-1", "save_by_iter": True, "name": "r"},
}


def resumed(tmp_path: Path, *args: str) -> TrainConfig:
    """Return the configuration of a run with the settings ``SAVED`` that is resumed with ``args``."""
    (tmp_path / "r").mkdir(exist_ok=True)
    run_files.write_config(tmp_path / "r", with_changes(TrainConfig(), SAVED))
    (tmp_path / "r" / "state.pt").touch()
    return parse_train(["--continue_train", "--name", "r", "--checkpoints_dir", str(tmp_path), *args])


def test_a_resumed_run_keeps_its_settings_except_those_given_and_what_they_exclude(tmp_path: Path) -> None:
    config = resumed(tmp_path)
    start = {"continue_train": True, "checkpoints_dir": tmp_path}
    assert config == with_changes(TrainConfig(), {**SAVED, "run": {**SAVED["run"], **start}})
    config = resumed(tmp_path, "--dataroot", "x", "--device=cpu", "--gan-mode", "lsgan", "--no_dropout")
    assert (config.data.dataroot, config.data.data_A, config.data.data_B) == (Path("x"), None, None)
    assert (config.run.device, config.run.gpu_ids) == ("cpu", None)
    assert (config.model.use_dropout, config.model.no_dropout) == (False, True)
    assert config.loss.gan_mode == "lsgan"
    assert (config.data.no_flip, config.run.compile) == (True, True)
    assert resumed(tmp_path, "--data-A", "c").data.data_B == Path("b")
    with pytest.raises(UserError, match="give either --dataroot, or --data_A and --data_B, but not both"):
        resumed(tmp_path, "--dataroot", "x", "--data_A", "c", "--data_B", "d")
    with pytest.raises(UserError, match="--holdout only applies to --data_A and --data_B"):
        resumed(tmp_path, "--dataroot", "x", "--holdout", "0.1")


def test_a_switch_of_a_saved_run_can_be_turned_off(tmp_path: Path) -> None:
    config = resumed(tmp_path, "--no_compile", "--flip", "--no-save-by-iter", "--no_use_dropout")
    assert not config.run.compile
    assert not config.data.no_flip
    assert not config.run.save_by_iter
    assert not config.model.use_dropout
    for args in (("--compile", "--no_compile"), ("--flip", "--no-flip")):
        with pytest.raises(UserError, match=f"^{args[0]} and {args[1]} contradict each other"):
            resumed(tmp_path, *args)


def test_dropout_is_not_turned_on_by_a_flag_that_turns_a_switch_off(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "unknown flag --dropout; did you mean" in fails(capsys, "--dropout")


def test_dry_run_prints_the_resolved_configuration_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.train(["--dry_run", "--checkpoints_dir", str(tmp_path / "runs"), "--lr", "0.5"]) == 0
    output = capsys.readouterr().out
    assert "resnet_2blocks" in output
    assert "0.5" in output
    assert not (tmp_path / "runs").exists()


def test_help_lists_every_flag_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.train(["--help"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    for group in vars(TrainConfig()).values():
        for name in vars(group):
            assert f"--{name}" in output, name
    assert "0.0002" in output


def test_unknown_choices_and_flags_are_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    for flag, value in (("--lr_policy", "exponential"), ("--norm", "group")):
        assert f"{flag} must be one of" in fails(capsys, flag, value)
    assert "unknown flag --colour; --help lists all flags" in fails(capsys, "--colour", "red")
    assert cli.download_dataset(["maps", "--outptu", "x"]) == 2
    assert capsys.readouterr().err == "error: unknown flag --outptu; did you mean --output?\n"


def test_mistakes_are_reported_in_one_line(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = ("--checkpoints_dir", str(tmp_path / "runs"))
    assert "no such folder" in fails(capsys, "--dataroot", str(tmp_path / "none"), *runs)
    assert "contains neither trainA and trainB" in fails(capsys, "--dataroot", str(tmp_path), *runs)
    assert "--netD basic needs at least 24 pixels" in fails(capsys, "--netD", "basic", *runs)
    assert "crop_size 16 is larger than load_size 8" in fails(capsys, "--load_size", "8", *runs)
    assert "diffaugment lists color more than once" in fails(capsys, "--diffaugment", "color,color", *runs)
    assert "--continue_train needs --name" in fails(capsys, "--continue_train", *runs)
    assert "no run to resume" in fails(
        capsys, "--continue_train", "--name", "x", "--dataroot", str(dataset), *runs
    )
    if not torch.cuda.is_available():
        assert "sees no CUDA GPU" in fails(capsys, "--device", "cuda", *runs)
    assert not (tmp_path / "runs").exists()  # a run that cannot start leaves no files


def test_unsupported_kernels_are_rejected_before_anything_is_written(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "fastcyclegan.kernels.dispatch.why_not_triton", lambda *device: "needs an NVIDIA GPU, got cpu"
    )
    message = "impl='triton' needs an NVIDIA GPU, got cpu; use impl='auto' or impl='reference'"
    for more in ((), ("--dry_run",)):
        assert message in fails(
            capsys,
            "--impl",
            "triton",
            "--dataroot",
            str(dataset),
            "--checkpoints_dir",
            str(tmp_path / "runs"),
            *more,
        )
    assert not (tmp_path / "runs").exists()


def test_trains_and_translates_with_the_kernels(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Train and translate with --impl triton. Without a GPU, the kernels run in Triton's interpreter."""
    args = "--impl triton --load_size 8 --crop_size 8 --max_iters 1 --name r --checkpoints_dir".split()
    assert cli.train([*TINY, "--dataroot", str(dataset), *args, str(tmp_path)]) == 0
    assert re.search(r"^ *impl +triton$", capsys.readouterr().out, re.MULTILINE)
    options = ["--resize", "8", "--device", "cpu", "--output"]
    for impl in ("triton", "reference"):
        folder = str(tmp_path / impl)
        command = [
            "--weights",
            str(tmp_path / "r"),
            "--input",
            str(dataset / "testA"),
            *options,
            folder,
            "--impl",
            impl,
        ]
        assert cli.translate(command) == 0
    images = [sorted((tmp_path / impl).rglob("*.png")) for impl in ("triton", "reference")]
    assert len(images[0]) == 2
    for ours, reference in zip(*images, strict=True):
        difference = np.asarray(Image.open(ours), np.int16) - np.asarray(Image.open(reference), np.int16)
        assert abs(difference).max() <= 1


def test_empty_values_are_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--data_A: the value is empty" in fails(capsys, "--data_A", "", "--data_B", "x")
    assert "--checkpoints_dir: the value is empty" in fails(capsys, "--checkpoints_dir=")
    assert cli.translate(["--weights", "w", "--input", "i", "--output", ""]) == 2
    assert capsys.readouterr().err == "error: --output: the value is empty\n"


def test_resuming_a_run_without_recorded_images_is_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "official").mkdir()
    (tmp_path / "official" / "latest_net_G_A.pth").touch()
    flags = ("--checkpoints_dir", str(tmp_path), "--name", "official", "--continue_train")
    assert "does not record its training images: give --dataroot" in fails(capsys, *flags)
    assert [path.name for path in (tmp_path / "official").iterdir()] == ["latest_net_G_A.pth"]
    for text in (
        "{}",
        "[]",
        "not json",
        '{"data": {}, "model": {"ngf": 4.5}, "loss": {}, "optim": {}, "run": {}}',
    ):
        (tmp_path / "official" / "config.json").write_text(text)
        assert "config.json: not a valid run configuration" in fails(capsys, *flags)
    (tmp_path / "official" / "config.json").unlink()
    torch.save({"config": {"data": {}}}, tmp_path / "official" / "state.pt")
    assert "state.pt: not a valid run configuration: it lacks" in fails(capsys, *flags)


def test_training_on_the_builtin_dataset_prints_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.train(["--checkpoints_dir", str(tmp_path), "--max_iters", "2", "--device", "cpu"]) == 0
    output = capsys.readouterr().out
    assert "built-in dataset (32 held-out images per domain, small networks made for it)" in output
    for direction in ("A to B", "B to A"):
        assert f"{direction}: " in output
    assert (tmp_path / "shapes_1" / "dataset" / "trainA" / "000.png").exists()


def test_flags_of_tiles(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In both spellings. Mistakes are one line, before anything is loaded."""
    seen: list[TranslateConfig] = []

    def work(config: TranslateConfig, console: object) -> list[str]:
        seen.append(config)
        return []

    monkeypatch.setattr(cli, "translate_folder", work)
    given = ["--weights", "w", "--input", "i", "--output", "o"]
    for args, expected in (
        ("", TileSettings()),
        ("--tile 512", TileSettings(512)),
        ("--tile auto --tile-storage disk", TileSettings("auto", tile_storage="disk")),
        ("--tile None", TileSettings(None)),
        ("--tile=96 --tile_mode independent --overlap 8", TileSettings(96, "independent", 8)),
    ):
        assert cli.translate([*given, *args.split()]) == 0
        assert TileSettings.of(seen[-1]) == expected
    for args, message in (
        ("--tile 0", "tile must be an integer of at least 1, auto or None, got 0"),
        ("--tile large", "--tile must be an integer or auto, got 'large'"),
        ("--tile_mode fast", "--tile_mode must be one of exact, independent, got 'fast'"),
        ("--tile None --tile_storage disk", "--tile_storage has no effect with --tile None"),
        ("--overlap 8", "--overlap has no effect without --tile_mode independent"),
    ):
        assert cli.translate([*given, *args.split()]) == 2
        assert capsys.readouterr().err == f"error: {message}\n"
    with pytest.raises(SystemExit):
        cli.translate(["--help"])
    shown = capsys.readouterr().out
    for flag in (
        "--tile ",
        "--tile_mode {exact,independent}",
        "--overlap INT",
        "--tile_storage {memory,disk}",
    ):
        assert flag in shown


def test_translate_script(tmp_path: Path, dataset: Path) -> None:
    run_files.save_weights(tmp_path / "latest_net_G.pth", Generator(ngf=2, n_blocks=0).state_dict())
    script = str(Path(__file__).parents[1] / "scripts" / "translate.py")

    def command(weights: str, *more: str) -> subprocess.CompletedProcess[str]:
        args = [
            sys.executable,
            script,
            "--weights",
            weights,
            "--input",
            str(dataset / "testA"),
            "--output",
            "out",
            "--device",
            "cpu",
            *more,
        ]
        return subprocess.run(args, cwd=tmp_path, capture_output=True, text=True, check=False)

    process = command("latest_net_G.pth", "--grid")
    assert process.returncode == 0, process.stderr
    assert "wrote 2 images to out" in process.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"000.png", "001.png", "before_after.png"}
    process = command("nothing.pth")
    assert (process.returncode, process.stderr) == (2, "error: nothing.pth: no such file or folder\n")


def test_kernel_warnings_are_printed_as_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kernel warnings are printed without their source location. Warnings from other code are unchanged."""

    def work(*_: object) -> None:
        warnings.warn_explicit(
            "kernel _k does not compile",
            RuntimeWarning,
            "/site-packages/fastcyclegan/kernels/_operator.py",
            31,
        )
        warnings.warn_explicit("something else", RuntimeWarning, "/site-packages/other/module.py", 1)

    shown: list[str] = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: shown.append(str(message)))
    monkeypatch.setattr(cli, "translate_folder", work)
    assert cli.translate("--weights w --input i --output o".split()) == 0
    assert capsys.readouterr().out == "warning: kernel _k does not compile\n"
    assert shown == ["something else"]


@pytest.mark.parametrize(
    "module", ["config", "cli", "inference.translate_folder", "checkpoints.describe", "data.dataset_report"]
)
def test_help_texts_are_single_paragraphs(module: str) -> None:
    """tyro joins the lines of a comment above a field, except lines that do not begin with a letter. It never
    joins the lines of a string below a field.
    """
    text = Path(str(importlib.import_module(f"fastcyclegan.{module}").__file__)).read_text()
    lines = [line.strip() for line in text.splitlines()]
    for line, following in itertools.pairwise(lines):
        if line.startswith("#: ") and following.startswith("#: "):
            assert following[3].isalpha(), following
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
            strings = [part for part in node.body[1:] if isinstance(part, ast.Expr)]
            assert not strings, f"{node.name}: line {strings[0].lineno}"
