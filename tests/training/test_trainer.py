"""Whole runs, small: exact resume after any interruption, signals, kills, and what ends a run without losing it."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from fastcyclegan.checkpoints import run_files
from fastcyclegan.cli import parse_train
from fastcyclegan.console import Console
from fastcyclegan.data import dali_loader
from fastcyclegan.errors import UserError
from fastcyclegan.recipes.cyclegan import build_networks
from fastcyclegan.tensor_files import load_tensors
from fastcyclegan.training.intervals import Every
from fastcyclegan.training.run_report import read_stats
from fastcyclegan.training.state_writer import StateWriter
from fastcyclegan.training.trainer import Trainer, train

TRAIN = [sys.executable, str(Path(__file__).parents[2] / "scripts" / "train.py")]
TINY = [
    "--load_size",
    "20",
    "--crop_size",
    "16",
    "--netG",
    "resnet_1blocks",
    "--ngf",
    "2",
    "--ndf",
    "2",
    "--netD",
    "n_layers",
    "--n_layers_D",
    "1",
    "--pool_size",
    "3",
]


def arguments(dataset: Path, runs: Path, name: str, *more: str) -> list[str]:
    return [
        *TINY,
        "--device",
        "cpu",
        "--dataroot",
        str(dataset),
        "--checkpoints_dir",
        str(runs),
        "--name",
        name,
        "--num_threads",
        "0",
        *more,
    ]


def run(dataset: Path, runs: Path, name: str, *more: str) -> Trainer:
    return train(parse_train(arguments(dataset, runs, name, *more)), Console())


def assert_same_state(one: Path, two: Path) -> None:
    """Bit for bit: weights, optimizers, pools, random state, schedule."""
    a, b = (load_tensors(folder / run_files.STATE) for folder in (one, two))

    def compare(x: Any, y: Any, where: str) -> None:
        if isinstance(x, torch.Tensor):
            assert torch.equal(x, y), where
            assert x.stride() == y.stride(), where
        elif isinstance(x, dict):
            assert x.keys() == y.keys(), where
            for key in x:
                compare(x[key], y[key], f"{where}/{key}")
        elif isinstance(x, list):
            assert len(x) == len(y), where
            for n, (p, q) in enumerate(zip(x, y, strict=True)):
                compare(p, q, f"{where}/{n}")
        else:
            assert x == y, where

    for key in ("iteration", "first", "nets", "optimizers", "recipe", "rng", "extra", "ema"):
        compare(a.get(key), b.get(key), key)


@pytest.mark.parametrize("more", [
    pytest.param((), id="the default"),
    pytest.param(
        ("--batch_size", "2", "--use_dropout", "--lr_policy", "plateau", "--norm", "batch", "--num_threads", "2"),
        id="everything with a memory of its own",
    ),
    pytest.param(("--preprocess", "none", "--gan_mode", "vanilla", "--cache", "ram"), id="pictures of several sizes, cached"),
    pytest.param(("--gan_mode", "wgangp", "--epoch_count", "3", "--serial_batches"), id="penalty, a later first epoch"),
    pytest.param(
        ("--batch_size", "3", "--micro_batch", "2", "--ema", "0.9", "--lr_scaling", "sqrt", "--pairing", "on"),
        id="parts of a batch, running averages, pairs",
    ),
])  # fmt: skip
def test_a_resumed_run_equals_the_unbroken_one(dataset: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    if "none" in more:
        from tests.conftest import write_pictures

        write_pictures(dataset / "trainA" / "wide", 3, size=(40, 12))
    whole = run(dataset, tmp_path, "whole", *more, "--max_iters", "13", "--print_freq", "1")
    run(dataset, tmp_path, "broken", *more, "--max_iters", "5", "--print_freq", "1")
    run(dataset, tmp_path, "broken", "--continue_train", "--max_iters", "6")  # in its own configuration
    resumed = run(dataset, tmp_path, "broken", "--continue_train", "--max_iters", "13")
    assert resumed.run.iteration == whole.run.iteration == 13 + whole.run.first
    assert_same_state(tmp_path / "whole", tmp_path / "broken")
    curves = [[{k: v for k, v in r.items() if "/s" not in k} for r in read_stats(tmp_path / name)] for name in ("whole", "broken")]
    assert curves[0] == curves[1]
    assert [record["iteration"] for record in curves[0]] == list(range(1 + whole.run.first, 14 + whole.run.first))


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
    expected = {f"{label}_net_{net}.pth" for label in ("2", "latest", "iter_4", "iter_12") for net in ("G_A", "G_B", "D_A", "D_B")}
    expected |= {"config.json", "stats.jsonl", "state.pt", "index.html", "losses.png", "samples", "tensorboard"}
    assert expected <= names
    record = read_stats(folder)[-1]
    losses = ["G_AB", "G_BA", "D_A", "D_B", "cycle_A", "cycle_B", "idt_A", "idt_B"]
    assert set(record) == {"iteration", "epoch", *losses, "lr", "it/s", "images/s"}
    assert record["lr"] == pytest.approx(2e-4 / 2)  # the last of 2 + 1 epochs
    # The official names: G_A translates A to B, D_A judges pictures of B.
    state = load_tensors(folder / "state.pt")
    for ours, theirs in {"G_AB": "G_A", "G_BA": "G_B", "D_B": "D_A", "D_A": "D_B"}.items():
        weights = torch.load(folder / f"latest_net_{theirs}.pth", weights_only=True)
        assert all(torch.equal(weights[key], value) for key, value in state["nets"][ours].items())
    page = (folder / "index.html").read_text()
    assert all((folder / "samples" / name.name).exists() and name.name in page for name in (folder / "samples").iterdir())
    assert any(path.name.startswith("events") for path in (folder / "tensorboard").iterdir())
    assert not list(folder.glob(".*partial"))


def test_running_averages_are_kept_and_translate(dataset: Path, tmp_path: Path) -> None:
    """One iteration with decay 0.75: a quarter of the way from the first weights to the next."""
    from fastcyclegan.checkpoints.loading import find_weights, load_generator

    trainer = run(dataset, tmp_path, "r", "--ema", "0.75", "--max_iters", "1", "--save_epoch_freq", "1", "--batch_size", "8")
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
    with pytest.raises(UserError, match=r"latest_net_G_A_ema.pth: no such file: .*without was not trained with ema"):
        find_weights(tmp_path / "without", None, "latest", ema=True)
    with pytest.raises(UserError, match="so direction, epoch and ema have nothing to choose"):
        find_weights(folder / "latest_net_G_A.pth", None, "latest", ema=True)
    # Averages begin where a run without them is continued.
    go_on = run(dataset, tmp_path, "without", "--continue_train", "--ema", "0.9", "--max_iters", "2")
    assert go_on.run.engine.average is not None
    assert (tmp_path / "without" / "latest_net_G_A_ema.pth").exists()


def test_what_the_engine_cannot_do_here_is_refused(dataset: Path, tmp_path: Path) -> None:
    for flags, said in (
        (("--graph", "on"), "--graph on needs a CUDA GPU, got --device cpu"),
        (("--nvtx",), "--nvtx needs a CUDA GPU, got --device cpu"),
        (("--overlap", "phases"), "--overlap phases needs a CUDA GPU, got --device cpu"),
        (("--micro_batch", "1", "--norm", "batch"), "--micro_batch would change what batch norm computes"),
        (("--micro_batch", "0"), "micro_batch must be at least 1, got 0"),
        (("--ema", "1"), r"ema must be in \[0, 1\), got 1.0"),
    ):
        with pytest.raises(UserError, match=said):
            run(dataset, tmp_path, "r", *flags, "--max_iters", "1")
        assert not (tmp_path / "r").exists()


def test_the_rate_goes_with_the_root_of_the_batch_if_asked(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = run(dataset, tmp_path, "r", "--batch_size", "4", "--lr", "1e-3", "--lr_scaling", "sqrt", "--max_iters", "1")
    assert trainer.schedule.lr(1) == pytest.approx(2e-3)
    assert "0.002 = 0.001 x sqrt(4) (--lr_scaling sqrt), linear" in capsys.readouterr().out
    assert run(dataset, tmp_path, "s", "--batch_size", "4", "--lr", "1e-3", "--max_iters", "1").schedule.lr(1) == 1e-3
    # Batches of the 5 pictures that there are.
    fewer = run(dataset, tmp_path, "t", "--batch_size", "100", "--lr", "1e-3", "--lr_scaling", "sqrt", "--max_iters", "1")
    assert fewer.schedule.lr(1) == pytest.approx(1e-3 * 5**0.5)
    assert "0.001 x sqrt(5)" in capsys.readouterr().out


def test_stopping_and_going_on_from_official_files_alone(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(dataset, tmp_path, "first", "--max_iters", "3")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for file in (tmp_path / "first").glob("latest_net_*.pth"):
        (theirs / file.name).write_bytes(file.read_bytes())
    trainer = run(dataset, tmp_path, "theirs", "--continue_train", "--max_iters", "1", "--epoch_count", "2")
    assert "with fresh optimizers, pools and epoch 2" in capsys.readouterr().out
    assert (trainer.run.first, trainer.run.iteration) == (5, 6)
    first = torch.load(tmp_path / "first" / "latest_net_G_A.pth", weights_only=True)["model.1.weight"]
    now = torch.load(theirs / "latest_net_G_A.pth", weights_only=True)["model.1.weight"]
    # One Adam step moves each weight by at most about lr.
    assert 0 < (now - first).abs().max().item() < 4e-4


def test_continuing_with_what_does_not_fit(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path, "r", "--max_iters", "2")
    before = (tmp_path / "r" / "state.pt").read_bytes()
    with pytest.raises(
        UserError, match=r"another architecture than resnet_1blocks \(ngf 4, .*: model.1.weight is \[2, 3, 7, 7\] where \[4, 3, 7, 7\]"
    ):
        run(dataset, tmp_path, "r", "--continue_train", "--ngf", "4")
    with pytest.raises(UserError, match="pool_size was 3 and cannot become 5 in the middle of a run"):
        run(dataset, tmp_path, "r", "--continue_train", "--pool_size", "5")
    with pytest.raises(UserError, match=r"7_net_G_A.pth: no such file; weights in .*: latest"):
        run(dataset, tmp_path, "r", "--continue_train", "--epoch", "7")
    # One bit of one weight: torch.load would not notice.
    weight = load_tensors(tmp_path / "r" / "state.pt")["nets"]["G_AB"]["model.18.bias"]
    place = before.index(weight.numpy().tobytes())
    (tmp_path / "r" / "state.pt").write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
    with pytest.raises(UserError, match=r"state.pt: cannot be loaded: it is damaged"):
        run(dataset, tmp_path, "r", "--continue_train")
    (tmp_path / "r" / "state.pt").write_bytes(before[: len(before) // 2])
    with pytest.raises(UserError, match=r"state.pt: cannot be loaded: it is damaged"):
        run(dataset, tmp_path, "r", "--continue_train")


def test_the_state_knows_the_configuration(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path, "r", "--max_iters", "2")
    (tmp_path / "r" / "config.json").unlink()
    again = parse_train(["--name", "r", "--checkpoints_dir", str(tmp_path), "--continue_train", "--max_iters", "3"])
    assert (again.data.dataroot, again.model.netG) == (dataset, "resnet_1blocks")
    assert train(again, Console()).run.iteration == 3


def test_a_run_goes_on_from_another_folder(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pictures were given relative to where it was started, and the run itself was moved since."""
    monkeypatch.chdir(dataset.parent)
    train(parse_train([*TINY, "--dataroot", dataset.name, "--name", "r", "--device", "cpu", "--max_iters", "2"]), Console())
    (dataset.parent / "runs").rename(dataset.parent / "moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    where = str(dataset.parent / "moved")
    trainer = train(parse_train(["--name", "r", "--checkpoints_dir", where, "--continue_train", "--max_iters", "3"]), Console())
    assert trainer.run.iteration == 3
    assert trainer.run.folder == dataset.parent / "moved" / "r"


def test_damaged_side_files_do_not_matter(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path, "r", "--max_iters", "2", "--print_freq", "1")
    with (tmp_path / "r" / "stats.jsonl").open("ab") as file:
        file.write(b'[1]\n{}\n{"iteration": 1}\n\xff\xfe\nnonsense\n')
    with (tmp_path / "r" / "index.html").open("ab") as file:
        file.write(b"<!-- a comment of mine -->\n\xff\n")
    run(dataset, tmp_path, "r", "--continue_train", "--max_iters", "3")
    assert read_stats(tmp_path / "r")[-1]["iteration"] == 3


def test_other_pictures_are_said(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(dataset, tmp_path, "r", "--max_iters", "2")
    (dataset / "trainA" / "000.png").unlink()
    run(dataset, tmp_path, "r", "--continue_train", "--max_iters", "3")
    assert "not the ones that this run began with" in capsys.readouterr().out


def test_a_run_that_is_done_is_left_alone(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path, "r", "--max_iters", "2")
    before = (tmp_path / "r" / "state.pt").stat().st_mtime_ns
    assert run(dataset, tmp_path, "r", "--continue_train").run.iteration == 2
    assert (tmp_path / "r" / "state.pt").stat().st_mtime_ns == before


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_state(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path, "r", "--max_iters", "2")
    before = (tmp_path / "r" / "state.pt").read_bytes()
    with pytest.raises(UserError, match=r"loss \w+ is (nan|inf) at iteration [34]; the state of iteration 2 is kept in"):
        run(dataset, tmp_path, "r", "--continue_train", "--lr", "1e30", "--max_iters", "9")
    assert (tmp_path / "r" / "state.pt").read_bytes() == before
    with pytest.raises(UserError, match="no state was saved yet"):
        run(dataset, tmp_path, "other", "--lr", "1e30")


def test_weights_that_are_not_finite_are_not_saved(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is taken before the update, so the last update may have ruined what a finite loss would let through."""
    from fastcyclegan.engine import Engine

    step = Engine.step

    def ruin(self: Engine, batch: Any, lr: float) -> torch.Tensor:
        losses = step(self, batch, lr)
        with torch.no_grad():
            next(self.nets["G_AB"].parameters()).fill_(float("nan"))
        return losses

    run(dataset, tmp_path, "r", "--max_iters", "1")
    before = (tmp_path / "r" / "state.pt").read_bytes()
    monkeypatch.setattr(Engine, "step", ruin)
    with pytest.raises(UserError, match="weights are not finite after iteration 2; the last good state is of iteration 1"):
        run(dataset, tmp_path, "r", "--continue_train", "--max_iters", "2")
    assert (tmp_path / "r" / "state.pt").read_bytes() == before


@pytest.mark.parametrize("full", ["state", "weights"])
def test_a_full_disk_keeps_the_old_state(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str) -> None:
    run(dataset, tmp_path, "r", "--max_iters", "2")
    files = {path: path.read_bytes() for path in (tmp_path / "r").glob("*.pt*")}
    save = torch.save

    def refuse(value: Any, file: IO[bytes]) -> None:
        """What torch does on a full disk: its own error, raised while the file's was handled."""
        if full == "weights" and "state" in file.name:
            return save(value, file)
        file.write(b"half")
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc]") from None

    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(UserError, match=r"saving failed at iteration 3: No space left on device; the last good state is of iteration [23]"):
        run(dataset, tmp_path, "r", "--continue_train", "--max_iters", "3")
    left = {path: path.read_bytes() for path in (tmp_path / "r").glob("*.pt*")}
    if full == "state":
        assert left == files
    assert left.keys() == files.keys()
    assert not list((tmp_path / "r").glob(".*"))
    assert load_tensors(tmp_path / "r" / "state.pt")["iteration"] == (2 if full == "state" else 3)


# --- From outside: signals and kills ------------------------------------------------------------------------------------------


# What a process inherits, whoever starts the tests: nohup, a terminal, or a script in the background, which ignores SIGINT.
LAUNCHER = """
import os, signal, sys
ignored = sys.argv[1].split(",")
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN if number.name in ignored else signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, [])
os.execv(sys.argv[2], sys.argv[2:])
"""


def start_process(args: list[str], ignored: Iterable[signal.Signals] = ()) -> subprocess.Popen[str]:
    """Start a training in a session of its own, with the signals ``ignored`` and no others ignored from the start."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", LAUNCHER, ",".join(number.name for number in ignored), *TRAIN, *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True)


def iterations_done(folder: Path) -> int:
    records = read_stats(folder)
    return records[-1]["iteration"] if records else 0


def wait_for(process: subprocess.Popen[str], folder: Path, iteration: int) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and iterations_done(folder) < iteration and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.fixture
def unbroken(dataset: Path, tmp_path: Path) -> Path:
    run(dataset, tmp_path, "unbroken", "--max_iters", "150")
    return tmp_path / "unbroken"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_ends(dataset: Path, tmp_path: Path, unbroken: Path, number: signal.Signals) -> None:
    args = arguments(dataset, tmp_path, "r", "--max_iters", "150", "--print_freq", "1", "--num_threads", "2")
    process = start_process(args)
    wait_for(process, tmp_path / "r", 10)
    # To the whole group, as a terminal, timeout and a job queue do: the loader's processes must not fall over it.
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number, output
    assert f"{number.name}: saving after this iteration" in output
    assert "Traceback" not in output
    assert "go on with --continue_train --name r" in output
    done = load_tensors(tmp_path / "r" / "state.pt")["iteration"]
    assert 10 <= done < 150
    run(dataset, tmp_path, "r", "--continue_train")
    assert_same_state(unbroken, tmp_path / "r")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT], ids=["nohup", "in the background of a script"])
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(dataset: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Whoever starts a run so wants it to outlive the terminal, or what is typed into it; SIGTERM ends it all the same."""
    process = start_process(arguments(dataset, tmp_path, "r", "--n_epochs", "1000000", "--print_freq", "1", "--num_threads", "2"), [number])
    wait_for(process, tmp_path / "r", 10)
    os.killpg(process.pid, number)
    later = iterations_done(tmp_path / "r") + 10
    wait_for(process, tmp_path / "r", later)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert number.name not in output
    assert load_tensors(tmp_path / "r" / "state.pt")["iteration"] >= later


def test_a_closed_pipe_does_not_end_the_training(dataset: Path, tmp_path: Path) -> None:
    args = [*TRAIN, *arguments(dataset, tmp_path, "r", "--max_iters", "30", "--print_freq", "1")]
    process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "standard output was closed: going on without printing\n"
    assert process.wait(120) == 0
    assert load_tensors(tmp_path / "r" / "state.pt")["iteration"] == 30


def test_the_end_is_reported_where_a_save_came_first(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A periodic save of the last iteration may be on the disk before the loop ends: the last line, grid and names come too."""
    write = StateWriter.write

    def at_once(self: StateWriter, *args: Any, **kwargs: Any) -> None:
        write(self, *args, **kwargs)
        self.close()

    monkeypatch.setattr(StateWriter, "write", at_once)
    run(dataset, tmp_path, "r", "--max_iters", "4", "--save_latest_freq", "4", "--save_by_iter", "--save_epoch_freq", "0")
    folder = tmp_path / "r"
    assert read_stats(folder)[-1]["iteration"] == 4
    assert {"iter_4_net_G_A.pth", "latest_net_G_A.pth"} <= {path.name for path in folder.iterdir()}
    assert [path.name for path in (folder / "samples").iterdir()] == ["0000004.png"]


def test_images_are_counted_in_a_partial_batch(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(dataset, tmp_path, "r", "--batch_size", "50", "--max_iters", "2", "--print_freq", "1")
    assert "batch_size 50 is more than the 5 pictures there are, so every batch holds 5" in capsys.readouterr().out
    assert all(record["images/s"] == pytest.approx(5 * record["it/s"]) for record in read_stats(tmp_path / "r"))


def test_killed_at_random_moments(dataset: Path, tmp_path: Path, unbroken: Path) -> None:
    """SIGKILL, again and again, with a state being written nearly all the time; then the same bits as the run that nobody killed."""
    rng, kills = random.Random(0), 0
    wanted = int(os.environ.get("FASTCYCLEGAN_KILLS", "3"))
    args = arguments(dataset, tmp_path, "r", "--max_iters", "150", "--print_freq", "1", "--save_latest_freq", "2")
    while kills < wanted:
        process = start_process([*args, "--continue_train"] if (tmp_path / "r" / "state.pt").exists() else [*args, "--overwrite"])
        before, deadline = iterations_done(tmp_path / "r"), time.monotonic() + 120
        while process.poll() is None and iterations_done(tmp_path / "r") <= before and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.25))
        process.kill()
        output, _ = process.communicate()
        assert "error" not in output, output
        kills += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            break
    assert kills >= 3
    run(
        dataset,
        tmp_path,
        "r",
        *(("--continue_train",) if (tmp_path / "r" / "state.pt").exists() else ("--overwrite", "--max_iters", "150")),
    )
    assert_same_state(unbroken, tmp_path / "r")
    stats = [record["iteration"] for record in read_stats(tmp_path / "r")]
    assert stats == sorted(set(stats))  # no iteration is logged twice
    assert not list((tmp_path / "r").glob(".*"))
    for line in (tmp_path / "r" / "stats.jsonl").read_text().splitlines():
        json.loads(line)


def test_every_follows_the_clock_or_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    by_count, by_clock = Every(10, 5.0), Every(None, 5.0, share=0.1)
    assert [by_count.due(4) for _ in range(3)] == [False, False, True]
    by_count.done()
    assert by_count.seen == 2  # what was over counts for the next time
    clock[0] = 5.0
    assert by_clock.due(1)
    by_clock.done(cost=2.0)
    clock[0] = 24.9
    assert not by_clock.due(1)  # it took 2 s, so a tenth of the time is 20 s
    clock[0] = 25.1
    assert by_clock.due(1)


@pytest.mark.parametrize("loader", ["folder", "dali"])
def test_a_picture_that_vanishes_ends_the_run_without_losing_it(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loader: str
) -> None:
    """It is named, the state is saved, and the run goes on when the file is back, to the bits of the unbroken one."""
    picture = dataset / "trainA" / "002.png"
    content, stat = picture.read_bytes(), picture.stat()
    after_step = Trainer._after_step

    def vanishing(self: Trainer, epoch: int, images: int) -> None:
        after_step(self, epoch, images)
        picture.unlink(missing_ok=True)

    monkeypatch.setattr(dali_loader, "BLOCK", 4)  # or all would be read before the file vanishes
    more = ("--loader", loader, "--max_iters", "60")
    whole = run(dataset, tmp_path, "whole", *more)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_after_step", vanishing)
        with pytest.raises(UserError) as caught:
            run(dataset, tmp_path, "broken", *more)
    saved = load_tensors(tmp_path / "broken" / run_files.STATE)["iteration"]
    assert str(caught.value) == (
        f"bad picture {picture}: no such file; --skip_bad_images leaves such pictures out "
        f"(saved after iteration {saved}; --continue_train goes on from there)"
    )
    picture.write_bytes(content)
    os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    run(dataset, tmp_path, "broken", "--continue_train", *more)
    assert whole.run.iteration == 60
    assert_same_state(tmp_path / "whole", tmp_path / "broken")


def test_a_picture_that_vanishes_can_be_left_out(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held-out pictures too: they are read once, at the start."""
    after_step = Trainer._after_step

    def vanishing(self: Trainer, epoch: int, images: int) -> None:
        after_step(self, epoch, images)
        for picture in (dataset / "trainA" / "002.png", dataset / "testA" / "000.png"):
            picture.unlink(missing_ok=True)

    monkeypatch.setattr(Trainer, "_after_step", vanishing)
    monkeypatch.setattr(dali_loader, "BLOCK", 4)
    assert run(dataset, tmp_path, "r", "--max_iters", "60", "--skip_bad_images").run.iteration == 60
    assert capsys.readouterr().out.count("002.png: no such file; the next picture takes its place") == 1


def test_another_loader_on_continuing_is_said(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(dataset, tmp_path, "r", "--max_iters", "2")
    assert re.search(r"loader +dali, 1 thread \(decodes on the CPU\)", capsys.readouterr().out)
    run(dataset, tmp_path, "r", "--continue_train", "--max_iters", "3", "--loader", "folder")
    assert "pictures were read by dali and are now by folder" in capsys.readouterr().out
