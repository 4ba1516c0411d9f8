"""States with a part that is damaged, or not what the engine would save: refused in one line, or legal."""

from __future__ import annotations

import contextlib
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcyclegan import CycleGAN
from fastcyclegan.cli import parse_train
from fastcyclegan.console import QuietConsole
from fastcyclegan.errors import UserError
from fastcyclegan.tensor_files import load_tensors, to_cpu
from fastcyclegan.training.resume import restore_state
from fastcyclegan.training.run import Run
from fastcyclegan.training.start import Overrides, start
from fastcyclegan.training.trainer import Trainer
from tests.conftest import write_images
from tests.files.altered_values import NOT_JSON, PLAIN, altered, nested
from tests.training.runs import arguments, run
from tests.training.test_saved_run import differences

OPTIONS = {
    "everything that keeps a state": "--norm batch --lr_policy plateau --ema 0.9 --batch_size 2".split(),
    "images of several sizes": "--preprocess none".split(),
}


EVALUATIONS = json.dumps(
    {
        "metric": "l1",
        "judge": "eval_l1",
        "protocol": {"AtoB": {"images": {"fake": 2}}},
        "records": [{"iteration": n, "epoch": 1, "eval_l1": 1 / n} for n in (2, 4)],
        "best": {"iteration": 4, "epoch": 1, "eval_l1": 0.25},
    }
)


def _silent(text: str) -> None:
    pass


class Resumable:
    """A run without files, and a good state to restore it from."""

    def __init__(self, dataset: Path, options: list[str]) -> None:
        flags = arguments(dataset, Path("nowhere"), "r", "--max_iters", "4", "--loader", "folder", *options)
        self.run: Run = start(parse_train(flags), _silent, overrides=Overrides(files=False))
        trainer = Trainer(self.run, QuietConsole())
        trainer.train()
        record = {"iteration": 4, "epoch": 1, **dict.fromkeys(trainer.names, 0.5)}
        trainer.unlogged = [{**record, "lr": 2e-4, "it/s": 3.0, "images/s": 3.0}]
        self.run.extra["evaluations"] = EVALUATIONS
        self.state: dict[str, Any] = trainer.state()

    def restore(self, state: Any) -> None:
        restore_state(self.run, state, "state.pt", _silent)

    def require_untouched(self) -> None:
        """Assert that the engine and the run are as ``state`` left them."""
        expected = {name: self.state[name] for name in self.run.engine.state_dict()}
        found = to_cpu(self.run.engine.state_dict())
        # The schedule passes the learning rate to Adam with the next batch.
        rates = [f"/optimizers/{phase}/param_groups/0/lr" for phase in ("G", "D")]
        assert [path for path in differences(found, expected) if path not in rates] == []
        assert (self.run.iteration, self.run.first) == (4, 0)

    def train_on(self) -> None:
        """Train for another iteration. A run that has diverged may end with a message."""
        trainer = Trainer(self.run, QuietConsole())
        if self.run.iteration == 4:
            object.__setattr__(self.run.config.optim, "max_iters", 5)
        with contextlib.suppress(UserError):
            trainer.train()
            trainer.state()
        object.__setattr__(self.run.config.optim, "max_iters", 4)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for folder in ("trainA", "trainB"):
        write_images(root / folder, 3)
        write_images(root / folder / "wide", 2, size=(40, 24))
    return root


@pytest.fixture(scope="module")
def full(images: Path) -> Resumable:
    return Resumable(images, OPTIONS["everything that keeps a state"])


@pytest.fixture(scope="module")
def of_several_sizes(images: Path) -> Resumable:
    return Resumable(images, OPTIONS["images of several sizes"])


@pytest.fixture(params=["full", "of_several_sizes"])
def resumable(request: pytest.FixtureRequest) -> Resumable:
    found: Resumable = request.getfixturevalue(request.param)
    return found


def survives(resumable: Resumable, seed: int) -> str:
    """Restore and use a state with one alteration. Return the message if it is refused, otherwise ""."""
    state, path = altered(random.Random(seed), resumable.state, (*PLAIN, *NOT_JSON))
    try:
        resumable.restore(state)
    except UserError as error:
        message = str(error)
        assert message.startswith("state.pt: "), (seed, path, message)
        assert message.isprintable(), (seed, path, message)
        assert len(message) < 400, (seed, path, message)
        resumable.require_untouched()
        return message
    resumable.train_on()
    resumable.restore(resumable.state)
    return ""


def test_altered_states_are_refused_or_legal(resumable: Resumable) -> None:
    resumable.restore(resumable.state)
    refused = sum(survives(resumable, seed) != "" for seed in range(60))
    assert 30 < refused < 60


# --- Faults of each part ------------------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], object]


def _set(*path: Any) -> Change:
    """Return a function that replaces the value at ``path[:-1]`` of a state by ``path[-1]``."""

    def change(state: dict[str, Any]) -> None:
        *keys, last, value = path
        for key in keys:
            state = state[key]
        state[last] = value(state[last]) if callable(value) else value

    return change


def _remove(*path: Any) -> Change:
    def change(state: dict[str, Any]) -> None:
        *keys, last = path
        for key in keys:
            state = state[key]
        del state[last]

    return change


def _nan(t: Tensor) -> Tensor:
    return t.masked_fill(torch.arange(t.numel()).view(t.shape) == t.numel() // 2, math.nan)


def _with_float_keys(state: dict[int, Any]) -> dict[float, Any]:
    return {float(n): moments for n, moments in state.items()}


def _minus_1(t: Tensor) -> Tensor:
    return torch.full_like(t, -1.0)


WEIGHT = ("nets", "G_AB", "model.1.weight")
GROUP = ("optimizers", "G", "param_groups", 0)
MOMENTS = ("optimizers", "G", "state", 0)
FAULTS: list[tuple[str, Change]] = [
    ("iteration must be from 0 to 9007199254740992, got -1", _set("iteration", -1)),
    ("iteration must be an integer, got True", _set("iteration", True)),
    ("iteration must be from .*, got an integer of 1329 bits", _set("iteration", 10**400)),
    ("iteration is 1000000, but Adam took only 8 steps after iteration 0", _set("iteration", 10**6)),
    ("optimizers.G.state.0.step has values from 4 to 4, but", _set("first", 3)),
    ("first must be from 0 to 4, got 5", _set("first", 5)),
    ("pictures must have 2 entries, got 1", _set("pictures", ["x"])),
    ("loader must be one of dali, folder, the caller, got 'x'", _set("loader", "x")),
    ("new is unexpected", lambda state: state.update(new=1)),
    ("its configuration is not valid: engine must be a group", _set("config", "engine", None)),
    ("its configuration is not valid: ngf must be int, got nan", _set("config", "model", "ngf", math.nan)),
    ("seed was 7 and cannot change to 0", _set("config", "run", "seed", 7)),
    ("nets.G_AB.model.1.weight has the shape", _set(*WEIGHT, lambda t: t[:1])),
    ("nets.G_AB.model.1.weight has the dtype float64 instead of float32", _set(*WEIGHT, Tensor.double)),
    ("nets.G_AB.model.1.weight contains values that are not finite", _set(*WEIGHT, _nan)),
    ("nets.G_AB.model.1.weight is not a plain tensor", _set(*WEIGHT, Tensor.to_sparse)),
    ("nets.G_AB.model.1.weight must be a tensor, got a list", _set(*WEIGHT, Tensor.tolist)),
    ("nets.G_AB.model.1.weight is missing", _remove(*WEIGHT)),
    ("optimizers.D is missing", _remove("optimizers", "D")),
    (r"optimizers.G.state.0.exp_avg_sq has the shape \[1\]", _set(*MOMENTS, "exp_avg_sq", torch.zeros(1))),
    ("optimizers.G.state.0.exp_avg has the dtype float16", _set(*MOMENTS, "exp_avg", Tensor.half)),
    ("optimizers.G.state.0.exp_avg_sq has values from -1 to -1", _set(*MOMENTS, "exp_avg_sq", _minus_1)),
    ("optimizers.G.state.0.step has values from 5 to 5", _set(*MOMENTS, "step", torch.tensor(5.0))),
    ("optimizers.G.state.0.step must be a whole number", _set(*MOMENTS, "step", torch.tensor(1.5))),
    ("optimizers.G.state.0.exp_avg is missing", _remove(*MOMENTS, "exp_avg")),
    ("optimizers.G.state.0 is missing", _remove(*MOMENTS)),
    ("optimizers.G.state.99 is unexpected", _set("optimizers", "G", "state", lambda s: {**s, 99: s[0]})),
    ("optimizers.G.state.0.0 is unexpected", _set("optimizers", "G", "state", _with_float_keys)),
    ("optimizers.G.param_groups.0.params must", _set(*GROUP, "params", torch.ones(3))),
    ("optimizers.G.param_groups must have 1 entries", _set("optimizers", "G", "param_groups", [])),
    ("optimizers.G.param_groups.0.params must be", _set("optimizers", "G", "param_groups", 0, "params", [0])),
    ("recipe.A.filled must be from 0 to 3, got 4", _set("recipe", "A", "filled", 4)),
    ("recipe.A.filled does not match slots", _set("recipe", "A", "filled", 0)),
    ("recipe.A.slots contains values", _set("recipe", "A", "slots", _nan)),
    ("recipe.A.slots has the shape", _set("recipe", "A", "slots", lambda t: t[:2])),
    ("rng.cpu has the shape", _set("rng", "cpu", lambda t: t[:-1])),
    ("rng.cpu has the dtype float32", _set("rng", "cpu", Tensor.float)),
    ("rng.cpu is not a state of torch's random generator", _set("rng", "cpu", lambda t: t * 0)),
    ("rng.cuda has the shape", _set("rng", "cuda", torch.zeros(3, dtype=torch.uint8))),
    ("rng.cuda is not a state", _set("rng", "cuda", torch.ones(16, dtype=torch.uint8))),
    ("ema is missing", _remove("ema")),
    ("ema.G_AB.model.1.weight has the shape", _set("ema", *WEIGHT[1:], lambda t: t[:1])),
    ("extra.schedule.best must be a number, got nan", _set("extra", "schedule", "best", math.nan)),
    ("extra.schedule.factor is missing", _remove("extra", "schedule", "factor")),
    ("extra.epoch_loss must be a number, got None", _set("extra", "epoch_loss", None)),
    ("extra.losses.1 must be from 0 to 4, got 5", _set("extra", "losses", [0.0, 5])),
    ("extra.evaluations must be text, got 3", _set("extra", "evaluations", 3)),
    ("extra.evaluations is not JSON", _set("extra", "evaluations", "{")),
    ("extra.evaluations.metric is missing", _set("extra", "evaluations", "{}")),
    (
        "extra.evaluations.records must be from 0 to 4, got 5",
        _set("extra", "evaluations", EVALUATIONS.replace('"iteration": 4', '"iteration": 5')),
    ),
    ("extra.unlogged.0.lr is missing", _remove("extra", "unlogged", 0, "lr")),
]  # fmt: skip


@pytest.mark.parametrize(("message", "change"), FAULTS, ids=[row[0] for row in FAULTS])
def test_a_fault_is_named_and_nothing_is_restored(message: str, change: Change, full: Resumable) -> None:
    state = to_cpu(full.state)
    change(state)
    full.restore(full.state)
    with pytest.raises(UserError, match=f"^state.pt: {message}"):
        full.restore(state)
    full.require_untouched()


def test_the_layout_of_moments_and_images_does_not_matter(full: Resumable) -> None:
    """Fused Adam ignores the strides of the moments, so they must get those of the weights."""
    outcomes = []
    for change in (Tensor.clone, lambda t: t.contiguous().clone(), lambda t: t.mT.contiguous().mT):
        state = to_cpu(full.state)
        for phase in state["optimizers"].values():
            for moments in phase["state"].values():
                moments |= {name: change(value) for name, value in moments.items() if value.dim() == 4}
        full.restore(state)
        full.train_on()
        outcomes.append(to_cpu(full.run.engine.state_dict()))
    assert differences(outcomes[1], outcomes[0]) == differences(outcomes[2], outcomes[0]) == []


def test_a_state_of_another_precision_can_be_used(full: Resumable) -> None:
    state = to_cpu(full.state)
    for pool in state["recipe"].values():
        pool["slots"] = pool["slots"].to(torch.bfloat16)
    full.restore(state)
    full.train_on()
    assert full.run.engine.state_dict()["recipe"]["A"]["slots"].dtype == torch.float32


# --- Files --------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_refused_file_leaves_the_folder_as_it_was(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path, "r", "--max_iters", "2", "--save_latest_freq", "1")
    state = to_cpu(load_tensors(tmp_path / "r" / "state.pt"))
    state["optimizers"]["G"]["state"][0]["exp_avg_sq"] = torch.zeros(1)
    torch.save(state, tmp_path / "r" / "state.pt")
    before = contents(tmp_path / "r")
    message = r"r/state.pt: optimizers.G.state.0.exp_avg_sq has the shape \[1\] instead of \[2, 3, 7, 7\]"
    with pytest.raises(UserError, match=f"{message}; to resume from the state before it: .*--epoch previous"):
        run(dataset, tmp_path, "r", "--continue_train", "--max_iters", "9")
    with pytest.raises(UserError, match=message):
        CycleGAN.load(tmp_path / "r")
    assert contents(tmp_path / "r") == before


def test_a_state_that_is_nested_too_deeply_is_refused(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path, "r", "--max_iters", "1")
    state = to_cpu(load_tensors(tmp_path / "r" / "state.pt"))
    torch.save({**state, "extra": nested(100)}, tmp_path / "r" / "state.pt")
    with pytest.raises(UserError, match=r"state.pt: extra must be a dict, got a list"):
        run(dataset, tmp_path, "r", "--continue_train")


def test_frozen_parameters_have_no_moments(dataset: Path, tmp_path: Path) -> None:
    """Their absence is recorded, so that it differs from a loss."""
    model = CycleGAN(parse_train(arguments(dataset, tmp_path, "r", "--loader", "folder")))
    model.G_AB.model[1].requires_grad_(False)
    model.fit(max_iters=2)
    model.save(tmp_path / "saved")
    assert load_tensors(tmp_path / "saved" / "state.pt")["optimizers"]["G"]["untrained"] == [0, 1]
    again = CycleGAN.load(tmp_path / "saved")
    again.fit(max_iters=3)
    assert again.iteration == 3
    assert "untrained" not in again._trainer.state()["optimizers"]["G"]


def test_pools_of_another_size_are_refused(dataset: Path, tmp_path: Path) -> None:
    """Also if the images come from the caller's loaders, unless they can be mixed."""

    def batches(side: int, count: int) -> list[dict[str, Tensor]]:
        return [{"A": torch.rand(count, 3, side, side), "B": torch.rand(count, 3, side, side)}] * 4

    model = CycleGAN(parse_train(arguments(dataset, tmp_path, "r", "--loader", "folder")))
    model.fit(batches(16, 2), max_iters=2)
    with pytest.raises(
        UserError, match=r"recipe.A.slots has the shape \[3, 3, 16, 16\] instead of \[3, 3, 20, 20"
    ):
        model.fit(batches(20, 2), max_iters=4)
    model.fit(batches(20, 1), max_iters=4)
    assert model.iteration == 4


def test_the_schema_knows_every_part_of_a_state(resumable: Resumable) -> None:
    resumable.restore(resumable.state)
    assert Trainer(resumable.run, QuietConsole()).state().keys() == resumable.state.keys()
    resumable.require_untouched()


@pytest.mark.slow
def test_many_altered_states_are_refused_or_legal(resumable: Resumable) -> None:
    resumable.restore(resumable.state)
    refused = sum(survives(resumable, seed) != "" for seed in range(1000, 3000))
    print(f"{refused} of 2000 altered states were refused")
    assert 1000 < refused < 2000
