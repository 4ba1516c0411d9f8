"""Small complete runs: files, learning rates and records, and errors that end a run but keep its state."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
from pathlib import Path

import pytest
import torch

from fastcyclegan import cli
from fastcyclegan.checkpoints import run_files
from fastcyclegan.checkpoints.weight_sets import read_sets
from fastcyclegan.data import dali_loader
from fastcyclegan.engine import Engine
from fastcyclegan.errors import UserError
from fastcyclegan.recipes.cyclegan import build_networks
from fastcyclegan.tensor_files import load_tensors, to_cpu
from fastcyclegan.training.run_report import read_stats
from fastcyclegan.training.trainer import Trainer
from tests.training.runs import TRAIN, arguments, assert_same_state, run


@pytest.mark.usefixtures("saves_at_once")
def test_files_of_a_run(dataset: Path, tmp_path: Path) -> None:
    trainer = run(
        dataset,
        tmp_path,
        "r",
        "--n_epochs",
        "2",
        "--n_epochs_decay",
        "1",
        "--save_epoch_freq",
        "2",
        "--print_freq",
        "2",
        "--save_latest_freq",
        "4",
        "--save_by_iter",
    )
    folder = tmp_path / "r"
    assert trainer.run.iteration == trainer.run.last == 15
    names = {path.name for path in folder.iterdir()}
    expected = {
        f"{label}_net_{net}.pth"
        for label in ("2", "latest", "iter_4", "iter_8", "iter_12")
        for net in ("G_A", "G_B", "D_A", "D_B")
    }
    expected |= {
        "config.json",
        "stats.jsonl",
        "state.pt",
        "index.html",
        "losses.png",
        "samples",
        "tensorboard",
    }
    assert expected <= names
    record = read_stats(folder)[-1]
    losses = ["G_AB", "G_BA", "D_A", "D_B", "cycle_A", "cycle_B", "idt_A", "idt_B"]
    assert set(record) == {"iteration", "epoch", *losses, "lr", "it/s", "images/s"}
    assert record["lr"] == pytest.approx(2e-4 / 2)  # the rate of the last of 2 + 1 epochs
    # In the official code, G_A translates A to B, and D_A is the discriminator of images of domain B.
    state = load_tensors(folder / "state.pt")
    for ours, official in {"G_AB": "G_A", "G_BA": "G_B", "D_B": "D_A", "D_A": "D_B"}.items():
        weights = torch.load(folder / f"latest_net_{official}.pth", weights_only=True)
        assert all(torch.equal(weights[key], value) for key, value in state["nets"][ours].items())
    page = (folder / "index.html").read_text()
    assert all(
        (folder / "samples" / name.name).exists() and name.name in page
        for name in (folder / "samples").iterdir()
    )
    assert any(path.name.startswith("events") for path in (folder / "tensorboard").iterdir())
    assert not list(folder.glob(".*partial"))


def test_running_averages_are_saved_and_can_translate(dataset: Path, tmp_path: Path) -> None:
    """After one iteration with decay 0.75, the average is a quarter of the way to the new weights."""
    from fastcyclegan.checkpoints.loading import find_weights, load_generator

    trainer = run(
        dataset,
        tmp_path,
        "r",
        "--ema",
        "0.75",
        "--max_iters",
        "1",
        "--save_epoch_freq",
        "1",
        "--batch_size",
        "8",
    )
    folder = tmp_path / "r"
    names = {path.name for path in folder.glob("*_ema.pth")}
    assert names == {f"{label}_net_{net}_ema.pth" for label in ("latest", "1") for net in ("G_A", "G_B")}
    torch.manual_seed(trainer.run.config.run.seed)
    first = build_networks(trainer.run.config.model)["G_AB"].state_dict()
    last = load_tensors(folder / "latest_net_G_A.pth")
    average = load_tensors(find_weights(folder, None, "latest", ema=True))
    assert not torch.equal(first["model.1.weight"], last["model.1.weight"])
    for name, value in average.items():
        torch.testing.assert_close(value, torch.lerp(first[name], last[name], 0.25))
    assert load_generator(folder / "latest_net_G_B_ema.pth")
    run(dataset, tmp_path, "without", "--max_iters", "1")
    with pytest.raises(
        UserError, match=r"latest_net_G_A_ema.pth: no such file: .*without was not trained with ema"
    ):
        find_weights(tmp_path / "without", None, "latest", ema=True)
    with pytest.raises(UserError, match="so direction, epoch and ema do not apply"):
        find_weights(folder / "latest_net_G_A.pth", None, "latest", ema=True)
    # If a run without averages is resumed with --ema, they start then.
    resumed = run(dataset, tmp_path, "without", "--continue_train", "--ema", "0.9", "--max_iters", "2")
    assert resumed.run.engine.average is not None
    assert (tmp_path / "without" / "latest_net_G_A_ema.pth").exists()


def test_lr_scaling_sqrt_multiplies_the_rate_by_the_root_of_the_batch_size(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = run(
        dataset,
        tmp_path,
        "r",
        "--batch_size",
        "4",
        "--lr",
        "1e-3",
        "--lr_scaling",
        "sqrt",
        "--max_iters",
        "1",
    )
    assert trainer.schedule.lr(1) == pytest.approx(2e-3)
    assert "0.002 = 0.001 x sqrt(4) (--lr_scaling sqrt), linear" in capsys.readouterr().out
    assert (
        run(dataset, tmp_path, "s", "--batch_size", "4", "--lr", "1e-3", "--max_iters", "1").schedule.lr(1)
        == 1e-3
    )
    # Batches contain only the 5 available images.
    fewer = run(
        dataset,
        tmp_path,
        "t",
        "--batch_size",
        "100",
        "--lr",
        "1e-3",
        "--lr_scaling",
        "sqrt",
        "--max_iters",
        "1",
    )
    assert fewer.schedule.lr(1) == pytest.approx(1e-3 * 5**0.5)
    assert "0.001 x sqrt(5)" in capsys.readouterr().out


def test_a_finished_run_is_not_changed(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path, "r", "--max_iters", "2")
    before = (tmp_path / "r" / "state.pt").stat().st_mtime_ns
    assert run(dataset, tmp_path, "r", "--continue_train").run.iteration == 2
    assert (tmp_path / "r" / "state.pt").stat().st_mtime_ns == before


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_state(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path, "r", "--max_iters", "2")
    before = (tmp_path / "r" / "state.pt").read_bytes()
    with pytest.raises(
        UserError, match=r"loss \w+ is (nan|inf) at iteration [34]; the state of iteration 2 is kept in"
    ):
        run(dataset, tmp_path, "r", "--continue_train", "--lr", "1e30", "--max_iters", "9")
    assert (tmp_path / "r" / "state.pt").read_bytes() == before
    with pytest.raises(UserError, match="no state was saved yet"):
        run(dataset, tmp_path, "other", "--lr", "1e30")


def test_samples_that_are_no_numbers_are_not_drawn_black(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line says so, and the run goes on: its losses are finite."""
    translate, calls = Engine.translate, itertools.count()

    def overflowing(self: Engine, name: str, images: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        return translate(self, name, images, keys) * (math.nan if next(calls) == 0 else 1)

    monkeypatch.setattr(Engine, "translate", overflowing)
    run(dataset, tmp_path, "r", "--max_iters", "2", "--display_freq", "1")
    line = "the networks give no numbers for the sample images after iteration 1, so no grid was drawn"
    assert capsys.readouterr().out.count(line) == 1
    assert [file.name for file in (tmp_path / "r" / "samples").iterdir()] == ["0000002.png"]


def test_samples_of_a_run_that_diverged_end_it(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"loss \w+ is (nan|inf) at iteration"):
        run(dataset, tmp_path, "r", "--lr", "1e38", "--display_freq", "1", "--print_freq", "100")
    assert [file.name for file in (tmp_path / "r" / "samples").iterdir()] == []


def test_a_state_that_is_not_finite_is_not_resumed(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path, "r", "--max_iters", "2")
    state = to_cpu(load_tensors(tmp_path / "r" / "state.pt"))
    state["optimizers"]["D"]["state"][0]["exp_avg_sq"].fill_(math.inf)
    torch.save(state, tmp_path / "r" / "state.pt")
    before = (tmp_path / "r" / "state.pt").read_bytes()
    with pytest.raises(
        UserError, match=r"optimizers\.D\.state\.0\.exp_avg_sq contains values that are not finite"
    ):
        run(dataset, tmp_path, "r", "--continue_train", "--max_iters", "4")
    assert (tmp_path / "r" / "state.pt").read_bytes() == before
    with pytest.raises(UserError, match=r"^the initial weights cannot be trained: nets\..* contains -?inf"):
        run(dataset, tmp_path, "new", "--init_gain", "1e39")
    assert not (tmp_path / "new").exists()


LOGGED = ("--print_freq", "1", "--display_freq", "2", "--save_epoch_freq", "1", "--n_epochs", "3")


def logged(folder: Path) -> list[int]:
    return [record["iteration"] for record in read_stats(folder)]


def test_going_back_keeps_the_records_of_later_iterations(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five iterations are an epoch. The weights of epoch 1 have no count of iterations."""
    run(dataset, tmp_path, "r", *LOGGED, "--max_iters", "10")
    before = (tmp_path / "r" / "stats.jsonl").read_bytes()
    grids = {file.name: file.read_bytes() for file in (tmp_path / "r" / "samples").iterdir()}
    weights = {file.name: file.read_bytes() for file in (tmp_path / "r").glob("[12]_net_*.pth")}
    assert len(weights) == 8
    capsys.readouterr()
    run(dataset, tmp_path, "r", "--continue_train", "--epoch", "1", "--max_iters", "2")
    kept = tmp_path / "r" / "replaced-after-iteration-0"
    assert (kept / "stats.jsonl").read_bytes() == before
    assert {file.name: file.read_bytes() for file in (kept / "samples").iterdir()} == grids
    assert {file.name: file.read_bytes() for file in kept.glob("*.pth")} == weights
    assert read_sets(tmp_path / "r").keys() == {"latest"}
    line = (
        "the run goes back to iteration 0; what came after it (log records: 10, sample grids:"
        f" {len(grids)}, sets of weights: 2) is now in {kept}; its epochs are counted from 1:"
        " --epoch_count 2 continues the count"
    )
    assert capsys.readouterr().out.count(line) == 1
    assert logged(tmp_path / "r") == [1, 2]
    run(dataset, tmp_path, "r", "--continue_train", "--max_iters", "4")  # from the last state
    assert "goes back" not in capsys.readouterr().out
    assert logged(tmp_path / "r") == [1, 2, 3, 4]
    run(dataset, tmp_path, "r", *LOGGED, "--overwrite", "--max_iters", "1")
    assert not list((tmp_path / "r").glob("replaced*"))


@pytest.mark.usefixtures("saves_at_once")
def test_going_back_to_the_previous_state_or_counting_on_keeps_earlier_records(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(dataset, tmp_path, "r", *LOGGED, "--max_iters", "10", "--save_latest_freq", "4")
    assert logged(tmp_path / "r") == list(range(1, 11))
    run(dataset, tmp_path, "r", "--continue_train", "--epoch", "previous", "--max_iters", "9")
    assert logged(tmp_path / "r" / "replaced-after-iteration-8") == [9, 10]
    assert logged(tmp_path / "r") == list(range(1, 10))
    capsys.readouterr()
    more = ("--epoch", "1", "--epoch_count", "2", "--max_iters", "1")
    run(dataset, tmp_path, "r", "--continue_train", *more)
    assert "counted from 1" not in capsys.readouterr().out
    assert logged(tmp_path / "r") == [1, 2, 3, 4, 5, 6]
    assert logged(tmp_path / "r" / "replaced-after-iteration-5") == [6, 7, 8, 9]
    assert (tmp_path / "r" / "1_net_G_A.pth").exists()


def test_the_images_of_a_resumed_run_can_be_given_in_the_other_way(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without held-out images, they are the same ones, and so is the run. Others are reported."""
    changed = "the training images have changed since this run started"
    run(dataset, tmp_path, "r", "--max_iters", "2")
    run(dataset, tmp_path, "whole", "--max_iters", "4")
    folders = ("--data_A", str(dataset / "trainA"), "--data_B", str(dataset / "trainB"))
    common = ("--continue_train", "--name", "r", "--checkpoints_dir", str(tmp_path))
    assert cli.train([*common, *folders, "--holdout", "0", "--max_iters", "4"]) == 0
    assert changed not in capsys.readouterr().out
    assert_same_state(tmp_path / "r", tmp_path / "whole")
    assert cli.train([*common, "--dataroot", str(dataset), "--max_iters", "5"]) == 0
    assert changed not in capsys.readouterr().out
    (dataset / "trainA" / "000.png").rename(dataset / "trainA" / "new.png")
    assert cli.train([*common, *folders, "--holdout", "0", "--max_iters", "6"]) == 0
    assert changed in capsys.readouterr().out


def test_a_closed_pipe_does_not_end_the_training(dataset: Path, tmp_path: Path) -> None:
    args = [*TRAIN, *arguments(dataset, tmp_path, "r", "--max_iters", "30", "--print_freq", "1")]
    process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "standard output was closed: continuing without output\n"
    assert process.wait(120) == 0
    assert load_tensors(tmp_path / "r" / "state.pt")["iteration"] == 30


@pytest.mark.usefixtures("saves_at_once")
def test_the_end_is_reported_after_a_periodic_save(dataset: Path, tmp_path: Path) -> None:
    """A periodic save of the last iteration may be on the disk before the loop ends.

    The last log line, the last sample grid and the weights under the name latest must still be written.
    """
    run(
        dataset,
        tmp_path,
        "r",
        "--max_iters",
        "4",
        "--save_latest_freq",
        "4",
        "--save_by_iter",
        "--save_epoch_freq",
        "0",
    )
    folder = tmp_path / "r"
    assert read_stats(folder)[-1]["iteration"] == 4
    assert {"iter_4_net_G_A.pth", "latest_net_G_A.pth"} <= {path.name for path in folder.iterdir()}
    assert [path.name for path in (folder / "samples").iterdir()] == ["0000004.png"]


def test_images_are_counted_in_a_partial_batch(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(dataset, tmp_path, "r", "--batch_size", "50", "--max_iters", "2", "--print_freq", "1")
    assert (
        "batch_size 50 is more than the 5 available images, so every batch contains 5 images"
        in capsys.readouterr().out
    )
    assert all(
        record["images/s"] == pytest.approx(5 * record["it/s"]) for record in read_stats(tmp_path / "r")
    )


@pytest.mark.parametrize("loader", ["folder", "dali"])
def test_an_image_that_disappears_ends_the_run_without_losing_it(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loader: str
) -> None:
    """The error names the image, and the state is saved.

    Once the file is back, the resumed run equals an uninterrupted one bit for bit.
    """
    image = dataset / "trainA" / "002.png"
    content, stat = image.read_bytes(), image.stat()
    after_step = Trainer._after_step

    def vanishing(self: Trainer, epoch: int, images: int) -> None:
        after_step(self, epoch, images)
        image.unlink(missing_ok=True)

    # Otherwise every file would be read before this one disappears.
    monkeypatch.setattr(dali_loader, "BLOCK", 4)
    more = ("--loader", loader, "--max_iters", "60")
    whole = run(dataset, tmp_path, "whole", *more)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_after_step", vanishing)
        with pytest.raises(UserError) as caught:
            run(dataset, tmp_path, "broken", *more)
    saved = load_tensors(tmp_path / "broken" / run_files.STATE)["iteration"]
    assert str(caught.value) == (
        f"bad image {image}: no such file; pass --skip_bad_images to skip such images "
        f"(saved after iteration {saved}; --continue_train --name broken --checkpoints_dir {tmp_path} resumes"
        " from there)"
    )
    image.write_bytes(content)
    os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    run(dataset, tmp_path, "broken", "--continue_train", *more)
    assert whole.run.iteration == 60
    assert_same_state(tmp_path / "whole", tmp_path / "broken")


def test_an_image_that_disappears_can_be_skipped(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held-out images can disappear too, because they are read only once, at the start."""
    after_step = Trainer._after_step

    def vanishing(self: Trainer, epoch: int, images: int) -> None:
        after_step(self, epoch, images)
        for image in (dataset / "trainA" / "002.png", dataset / "testA" / "000.png"):
            image.unlink(missing_ok=True)

    monkeypatch.setattr(Trainer, "_after_step", vanishing)
    monkeypatch.setattr(dali_loader, "BLOCK", 4)
    assert run(dataset, tmp_path, "r", "--max_iters", "60", "--skip_bad_images").run.iteration == 60
    assert capsys.readouterr().out.count("002.png: no such file; the next image takes its place") == 1


def test_weights_that_do_not_belong_together_are_not_started_from(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path, "r", *LOGGED, "--max_iters", "10")
    folder = tmp_path / "r"
    (folder / "1_net_G_A.pth").write_bytes((folder / "2_net_G_A.pth").read_bytes())
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    with pytest.raises(UserError, match=r"1_net_\*\.pth are not all of the same iteration"):
        run(dataset, tmp_path, "r", "--continue_train", "--epoch", "1")
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} == before
