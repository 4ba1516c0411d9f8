"""Resuming a run: bit for bit after any interruption, from official files, and with unsuitable settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from fastcyclegan.errors import UserError
from fastcyclegan.tensor_files import load_tensors
from fastcyclegan.training.run_report import read_stats
from tests.training.runs import assert_same_state, run


@pytest.mark.parametrize("more", [
    pytest.param((), id="the default"),
    pytest.param(
        "--batch_size 2 --use_dropout --lr_policy plateau --norm batch --num_threads 2".split(),
        id="everything that keeps a state",
    ),
    pytest.param(
        "--preprocess none --gan_mode vanilla --cache ram".split(), id="images of several sizes, cached"
    ),
    pytest.param(
        "--gan_mode wgangp --epoch_count 3 --serial_batches".split(), id="penalty, a later first epoch"
    ),
    pytest.param(
        "--batch_size 3 --micro_batch 2 --ema 0.9 --lr_scaling sqrt --pairing on".split(),
        id="micro batches, running averages, pairs",
    ),
    pytest.param("--diffaugment cutout,color --batch_size 2".split(), id="augmentation"),
])  # fmt: skip
def test_a_resumed_run_equals_an_uninterrupted_one(
    dataset: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    if "none" in more:
        from tests.conftest import write_images

        write_images(dataset / "trainA" / "wide", 3, size=(40, 12))
    whole = run(dataset, tmp_path, "whole", *more, "--max_iters", "13", "--print_freq", "1")
    run(dataset, tmp_path, "broken", *more, "--max_iters", "5", "--print_freq", "1")
    run(dataset, tmp_path, "broken", "--continue_train", "--max_iters", "6")  # with the saved configuration
    resumed = run(dataset, tmp_path, "broken", "--continue_train", "--max_iters", "13")
    assert resumed.run.iteration == whole.run.iteration == 13 + whole.run.first
    assert_same_state(tmp_path / "whole", tmp_path / "broken")
    curves = [
        [{k: v for k, v in r.items() if "/s" not in k} for r in read_stats(tmp_path / name)]
        for name in ("whole", "broken")
    ]
    assert curves[0] == curves[1]
    assert [record["iteration"] for record in curves[0]] == list(
        range(1 + whole.run.first, 14 + whole.run.first)
    )


def test_augmentation_can_change_when_a_run_is_resumed(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = []
    for iteration, given in enumerate(([], ["cutout,translation"], ["color"], ["None"]), 1):
        flags = [flag for value in given for flag in ("--diffaugment", value)]
        more = ["--continue_train"] if iteration > 1 else []
        run(dataset, tmp_path, "r", *more, *flags, "--max_iters", str(iteration))
        rows += re.findall(r"augmentation +(.*)", capsys.readouterr().out)
    before = "before both discriminators (--diffaugment)"
    assert rows == [f"translation, cutout {before}", f"color {before}"]


def test_starting_from_official_files_only(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(dataset, tmp_path, "first", "--max_iters", "3")
    official = tmp_path / "official"
    official.mkdir()
    for file in (tmp_path / "first").glob("latest_net_*.pth"):
        (official / file.name).write_bytes(file.read_bytes())
    trainer = run(dataset, tmp_path, "official", "--continue_train", "--max_iters", "1", "--epoch_count", "2")
    assert "at epoch 2 and with fresh optimizers, because" in capsys.readouterr().out
    assert (trainer.run.first, trainer.run.iteration) == (5, 6)
    first = torch.load(tmp_path / "first" / "latest_net_G_A.pth", weights_only=True)["model.1.weight"]
    now = torch.load(official / "latest_net_G_A.pth", weights_only=True)["model.1.weight"]
    # One Adam step moves each weight by at most about lr.
    assert 0 < (now - first).abs().max().item() < 4e-4


def test_resuming_with_settings_that_do_not_fit(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path, "r", "--max_iters", "2")
    before = (tmp_path / "r" / "state.pt").read_bytes()
    with pytest.raises(UserError, match=r"state.pt: ngf was 2 and cannot change to 4 in the middle of a run"):
        run(dataset, tmp_path, "r", "--continue_train", "--ngf", "4")
    basic = "--netD basic --crop_size 24 --load_size 24".split()
    with pytest.raises(UserError, match="netD was n_layers and cannot change to basic in the middle"):
        run(dataset, tmp_path, "r", "--continue_train", *basic)
    config = (tmp_path / "r" / "config.json").read_bytes()
    with pytest.raises(UserError, match="crop_size was 16 and cannot change to 20 in the middle of a run"):
        run(dataset, tmp_path, "r", "--continue_train", "--max_iters", "9", "--crop_size", "20")
    assert (tmp_path / "r" / "config.json").read_bytes() == config
    assert (tmp_path / "r" / "state.pt").read_bytes() == before
    with pytest.raises(UserError, match="pool_size was 3 and cannot change to 5 in the middle of a run"):
        run(dataset, tmp_path, "r", "--continue_train", "--pool_size", "5")
    with pytest.raises(UserError, match=r"7_net_G_A.pth: no such file; epochs saved in .*: latest"):
        run(dataset, tmp_path, "r", "--continue_train", "--epoch", "7")
    # A single flipped bit of one weight, which torch.load would not notice.
    weight = load_tensors(tmp_path / "r" / "state.pt")["nets"]["G_AB"]["model.18.bias"]
    place = before.index(weight.numpy().tobytes())
    (tmp_path / "r" / "state.pt").write_bytes(
        before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :]
    )
    with pytest.raises(UserError, match=r"state.pt: cannot be loaded: it is damaged"):
        run(dataset, tmp_path, "r", "--continue_train")
    (tmp_path / "r" / "state.pt").write_bytes(before[: len(before) // 2])
    with pytest.raises(UserError, match=r"state.pt: cannot be loaded: it is damaged"):
        run(dataset, tmp_path, "r", "--continue_train")


def test_changed_images_are_logged(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(dataset, tmp_path, "r", "--max_iters", "2")
    (dataset / "trainA" / "000.png").unlink()
    run(dataset, tmp_path, "r", "--continue_train", "--max_iters", "3")
    assert "the training images have changed since this run started" in capsys.readouterr().out


def test_resuming_with_another_loader_is_logged(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(dataset, tmp_path, "r", "--max_iters", "2")
    assert re.search(r"loader +dali, 1 thread \(decodes on the CPU\)", capsys.readouterr().out)
    run(dataset, tmp_path, "r", "--continue_train", "--max_iters", "3", "--loader", "folder")
    assert "images were previously read by dali and are now read by folder" in capsys.readouterr().out
