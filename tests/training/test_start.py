"""Starting a run: everything that can fail fails before anything is created, replaced or deleted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastcyclegan import cli
from fastcyclegan.cli import parse_train
from fastcyclegan.errors import UserError
from fastcyclegan.training.start import start
from tests.commands import TINY, fails
from tests.conftest import write_images
from tests.training.runs import arguments, run


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("--load_size 20 --crop_size 16", "resize_and_crop, from 20 to 16 pixels"),
        ("--load_size 28 --crop_size 16 24", "resize_and_crop, from 28 to 24x16 pixels"),
        ("--preprocess crop --crop_size 16 20", "crop, 20x16 pixels"),
        (
            "--preprocess scale_width_and_crop --load_size 28 --crop_size 16 24",
            "scale_width_and_crop, from width 28 to 24x16 pixels",
        ),
        ("--preprocess scale_width --load_size 28", "scale_width, width 28"),
        ("--preprocess none", "none, original size"),
    ],
)
def test_the_table_shows_the_sizes_of_images(dataset: Path, tmp_path: Path, flags: str, text: str) -> None:
    started = start(parse_train(arguments(dataset, tmp_path, "r", *flags.split())), print)
    assert started.table["samples"].startswith(f"{text}, batch size 1")


def test_the_table_counts_pairs(tmp_path: Path) -> None:
    write_images(tmp_path / "pairs" / "train", 2, size=(40, 20))
    for most, text in ((1, "1 pair for training, 0 held out"), (2, "2 pairs for training, 0 held out")):
        flags = f"--dataset_mode aligned --max_dataset_size {most}".split()
        started = start(parse_train(arguments(tmp_path / "pairs", tmp_path, f"r{most}", *flags)), print)
        assert started.table["images"] == text


def test_unsupported_engine_options_raise(dataset: Path, tmp_path: Path) -> None:
    for flags, message in (
        (("--graph", "on"), "--graph on needs a CUDA GPU, but this run uses the device cpu"),
        (("--nvtx",), "--nvtx needs a CUDA GPU, but this run uses the device cpu"),
        (("--overlap", "phases"), "--overlap phases needs a CUDA GPU, but this run uses the device cpu"),
        (
            ("--micro_batch", "1", "--norm", "batch"),
            "--micro_batch would change the result: G_AB.* is a batch norm",
        ),
        (("--micro_batch", "0"), "micro_batch must be at least 1, got 0"),
        (("--ema", "1"), r"ema must be in \[0, 1\), got 1.0"),
    ):
        with pytest.raises(UserError, match=message):
            run(dataset, tmp_path, "r", *flags, "--max_iters", "1")
        assert not (tmp_path / "r").exists()


def test_overwrite_keeps_the_old_run_if_the_new_one_cannot_start(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("--dataroot", str(dataset), "--checkpoints_dir", str(tmp_path), "--name", "r", "--max_iters", "1")
    assert cli.train([*TINY, *args]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "r").glob("*.p*")}
    capsys.readouterr()
    for mistake in (("--init_gain", "nan"), ("--seed", str(2**64)), ("--lr", "inf"), ("--crop_size", "400")):
        fails(capsys, *args, "--overwrite", *mistake)
    (dataset / "trainA" / "000.png").write_bytes(b"broken")
    fails(capsys, *args, "--overwrite")
    assert {path: path.read_bytes() for path in (tmp_path / "r").glob("*.p*")} == before


def test_overwrite_does_not_delete_its_training_images(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("--checkpoints_dir", str(tmp_path), "--name", "r", "--max_iters", "1")
    assert cli.train([*TINY, "--dataroot", str(dataset), *args]) == 0
    before = sorted(path for path in (tmp_path / "r").rglob("*"))
    capsys.readouterr()
    data = ("--data_A", str(tmp_path / "r" / "samples"), "--data_B", str(dataset / "trainB"))
    assert "--overwrite would delete the training images" in fails(capsys, *args, *data, "--overwrite")
    assert sorted(path for path in (tmp_path / "r").rglob("*")) == before


@pytest.mark.parametrize("flag", ["--ngf", "--ndf"])
def test_networks_that_do_not_fit_in_memory(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    error = fails(
        capsys,
        "--dataroot",
        str(dataset),
        "--checkpoints_dir",
        str(tmp_path / "runs"),
        "--netD",
        "n_layers",
        "--n_layers_D",
        "1",
        flag,
        "999999999",
    )
    assert f"{flag[2:]} 999999999" in error
    assert not (tmp_path / "runs").exists()


def test_compile_compiles_nothing_where_the_cpp_kernels_compute_the_networks(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flag then only selects bf16, on processors that have instructions for it. PyTorch's compiler, whose
    import takes seconds, is not even looked for.
    """
    monkeypatch.setattr(
        "fastcyclegan.training.start.why_not_compiled", lambda device: pytest.fail("looked for")
    )
    arguments = [*TINY, "--dataroot", str(dataset), "--checkpoints_dir", str(tmp_path), "--max_iters", "1"]
    for has_bf16 in (False, True):
        monkeypatch.setattr("fastcyclegan.engine.devices.has_bf16", lambda device, has=has_bf16: has)
        assert cli.train([*arguments, "--compile", "--name", str(has_bf16)]) == 0
        output = capsys.readouterr().out
        assert "--compile: nothing is compiled, because the C++ kernels are faster on a CPU" in output
        assert re.search(rf"precision +{'bf16' if has_bf16 else 'fp32'}\b", output)


def test_a_missing_compiler_is_reported_and_training_continues(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import cpp_builder, exc

    def fail() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", fail)
    assert (
        cli.train(
            [
                *TINY,
                "--dataroot",
                str(dataset),
                "--checkpoints_dir",
                str(tmp_path),
                "--compile",
                "--impl",
                "reference",
                "--max_iters",
                "1",
            ]
        )
        == 0
    )
    output = capsys.readouterr().out
    assert (
        "--compile: no C++ compiler found (on Debian or Ubuntu: apt-get install g++); training continues"
        " uncompiled" in output
    )
    assert "compiled       no" in output
