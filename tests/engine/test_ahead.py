"""Compiling kernels ahead: a dry run launches the same kernels as an iteration and changes no state.

The tests also check which kernels are compiled, and what happens if compiling fails.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from triton.tools.tensor_descriptor import TensorDescriptor

from fastcyclegan.config import LossConfig, ModelConfig
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.devtools import compile_ahead as _ahead
from fastcyclegan.devtools import compile_kernels
from fastcyclegan.devtools.dry_run import dry_run
from fastcyclegan.engine import ahead
from fastcyclegan.engine.ahead import Ahead, copy_on_cpu, dry_translation
from fastcyclegan.kernels import _launch
from fastcyclegan.kernels._launch import Chip, Launch
from fastcyclegan.kernels.dispatch import as_on_gpu
from fastcyclegan.recipes.cyclegan import CycleGANRecipe
from fastcyclegan.testing import random_batch, seeded_networks
from tests.engine.kernel_engine import CPU, SMALL, engine

CHOICES = {"conv 1": 3, "conv 2": 97}


def batch(images: int = 1, size: int = 32) -> Batch:
    return random_batch(size, Plan(0, 100, 100, images), 0)


def launches(run: Callable[[], object]) -> Counter[tuple[Any, ...]]:
    """Execute ``run`` as a dry run and count the launches by kernel and arguments."""
    counts: Counter[tuple[Any, ...]] = Counter()

    def kind(a: Any) -> Any:
        if isinstance(a, TensorDescriptor):
            return tuple(a.shape), tuple(a.strides), tuple(a.block_shape), kind(a.base)
        return (tuple(a.shape), a.dtype, a.stride()) if isinstance(a, torch.Tensor) else a

    def record(launch: Launch) -> None:
        kinds = tuple(map(kind, launch.args))
        counts[(launch.kernel, launch.grid, kinds, tuple(launch.keywords.items()))] += 1

    with dry_run(on_launch=record):
        run()
    return counts


CASES = [
    ("the default", SMALL, LossConfig(), {}),
    ("the discriminators run in PyTorch because of a penalty", SMALL, LossConfig(gan_mode="wgangp"), {}),
    ("unpaired networks", SMALL, LossConfig(), {"pairing": "off"}),
    ("parts of a batch", SMALL, LossConfig(lambda_identity=0), {"micro_batch": 1}),
]


@pytest.mark.parametrize(("why", "model", "loss", "options"), CASES, ids=[case[0] for case in CASES])
def test_the_copy_launches_the_same_kernels_as_the_engine(
    why: str, model: ModelConfig, loss: LossConfig, options: dict[str, Any]
) -> None:
    one = engine(model, loss, **options)
    copied = launches(lambda: one.dry_step(batch(2)))
    with as_on_gpu():
        expected = launches(lambda: one.step(batch(2), 1e-4))
    assert copied == expected
    assert copied.total() > 50


def test_frozen_weights_and_hooks_affect_the_copy_too() -> None:
    hook_calls: list[int] = []
    one = engine()
    next(one.nets["G_AB"].parameters()).requires_grad_(False)
    one.nets["D_A"].model[1].register_forward_hook(lambda *_: hook_calls.append(1))
    copied = launches(lambda: one.dry_step(batch()))
    assert hook_calls == []
    assert copied != launches(lambda: engine().dry_step(batch()))
    with as_on_gpu():
        assert copied == launches(lambda: one.step(batch(), 1e-4))
    assert hook_calls != []


def test_a_dry_run_changes_no_state() -> None:
    """Weights, moments, pools, training mode and random numbers stay the same."""
    one = engine()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    before = [p.detach().clone() for net in one.nets.values() for p in net.parameters()]
    with dry_run():
        one.dry_step(batch())
        dry_translation(one.nets["G_AB"], torch.zeros(1, 3, 32, 32), torch.bfloat16)
    assert torch.equal(torch.rand(2), expected)
    assert all(map(torch.equal, before, (p for net in one.nets.values() for p in net.parameters())))
    assert not any(optimizer.state for optimizer in one.optimizers.values())
    assert one.recipe.state_dict() == CycleGANRecipe(LossConfig()).state_dict()
    assert all(net.training for net in one.nets.values())


def test_a_dry_translation_launches_the_same_kernels_as_the_engine() -> None:
    one, image = engine(), torch.zeros(1, 3, 32, 32)
    with as_on_gpu():
        expected = launches(lambda: one.translate("G_AB", image))
    with torch.inference_mode():
        assert launches(lambda: dry_translation(one.nets["G_AB"], image, torch.bfloat16)) == expected
    assert expected.total() > 10


class _Foreign(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that receives the number of kernels that each call would compile ahead.

    Nothing is really compiled. The GPU is named Test, and 20 kernels are missing.
    """
    log: list[int] = []

    def compile_ahead(jobs: list[str], progress: Callable[[int, int], object]) -> _ahead.Outcome:
        log.append(len(jobs))
        progress(0, len(jobs))
        progress(len(jobs), len(jobs))
        return _ahead.Outcome(len(jobs), 2, 1.0)

    monkeypatch.setattr(_launch, "interpreted", lambda: False)
    monkeypatch.setattr(ahead, "chip_of", lambda device: Chip(90, 132, "Test"))
    monkeypatch.setattr(
        compile_kernels,
        "jobs_of",
        lambda run, chip: (run(), compile_kernels.RunJobs(tuple("abcdefghijklmnopqrst"), CHOICES))[1],
    )
    monkeypatch.setattr(_ahead, "missing", list)
    monkeypatch.setattr(_ahead, "compile_ahead", compile_ahead)
    return log


def test_each_kind_of_work_is_prepared_once_up_to_the_limit(compiled: list[int]) -> None:
    runs: list[int] = []
    logged: list[str] = []
    one = Ahead(CPU, logged.append)
    for kind in (1, 1, 2, 1, *range(3, 100)):
        one.prepare(kind, {}, lambda: runs.append(1))
    assert len(runs) == len(compiled) == ahead.MAX_KINDS
    cores = len(os.sched_getaffinity(0))
    seconds = 2 + 0.28 * math.ceil(20 / min(cores, 20))
    line = (
        f"compiling 20 kernels for Test in {min(cores, 20)} processes (about {seconds:.0f} s, only once),"
        " then timing 100 tile sizes (about 1 s, only once)"
    )
    assert logged == [line] * ahead.MAX_KINDS


def test_a_progress_callback_replaces_the_log_line(compiled: list[int]) -> None:
    reports: list[tuple[int, int, str]] = []
    logged: list[str] = []
    Ahead(CPU, logged.append, lambda *progress: reports.append(progress)).prepare(1, {}, lambda: None)
    assert [progress[:2] for progress in reports] == [(0, 20), (20, 20)]
    assert logged == []


def test_a_few_missing_kernels_are_not_compiled_ahead(
    compiled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ahead, "missing", lambda jobs: list(jobs)[: _ahead.MIN_JOBS - 1])
    Ahead(CPU).prepare(1, {}, lambda: None)
    assert compiled == []


def test_interpreted_kernels_are_not_compiled(compiled: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_launch, "interpreted", lambda: True)
    Ahead(CPU, pytest.fail).prepare(1, {}, lambda: pytest.fail("the dry run was executed"))
    assert compiled == []


def test_processes_that_start_together_compile_once(
    compiled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process waits, and then finds the first one's kernels in the cache."""
    answers = [list("abcdefghijklmnopqrst"), ["a"]]

    def missing(jobs: object) -> list[str]:
        if len(answers) == 1:
            with _ahead.lock_file().open("w") as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return answers.pop(0)

    monkeypatch.setattr(_ahead, "missing", missing)
    Ahead(CPU, pytest.fail, lambda *_: None).prepare(1, {}, lambda: None)
    assert compiled == [1]
    with _ahead.lock_file().open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_networks_of_other_packages_get_no_dry_run(compiled: list[int]) -> None:
    Ahead(CPU).prepare(1, {"G_AB": _Foreign()}, lambda: pytest.fail("the dry run was executed"))
    assert compiled == []


def test_failures_are_logged_and_do_not_end_the_run(
    compiled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []

    def fail() -> None:
        raise RuntimeError("a lock cannot be copied\nmore")

    Ahead(CPU, logged.append).prepare(1, {}, fail)
    assert logged == [
        "kernels cannot be compiled ahead (RuntimeError: a lock cannot be copied);"
        " each one will be compiled at its first launch"
    ]
    logged.clear()
    failed = _ahead.Outcome(18, 2, 1.0, (("_fold_kernel", "PTXASError: no"), ("", "killed")))
    monkeypatch.setattr(_ahead, "compile_ahead", lambda jobs, progress: failed)
    Ahead(CPU, logged.append).prepare(1, {}, lambda: None)
    assert logged == ["2 kernels could not be compiled ahead; the first is _fold_kernel: PTXASError: no"]


def test_each_batch_size_is_prepared_before_its_first_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[Any] = []
    one = engine()
    one.ahead = Ahead(CPU)
    monkeypatch.setattr(one.ahead, "prepare", lambda kind, nets, run: order.append(kind))
    monkeypatch.setattr(one, "_iterate", lambda inputs: order.append("iteration") or torch.zeros(8))
    one.step(batch(), 1e-4)
    one.step(batch(2), 1e-4)
    one.frozen.set(["G_AB"])  # then the kernels of some gradients are not needed
    one.step(batch(), 1e-4)
    sizes = [tuple((side, torch.Size([n, 3, 32, 32])) for side in "AB") for n in (1, 2)]
    kinds = [(sizes[0], ()), (sizes[1], ()), (sizes[0], ("G_AB",))]
    assert order == [each for kind in kinds for each in (kind, "iteration")]


def test_a_copy_shares_no_weights() -> None:
    net = seeded_networks(SMALL)["G_AB"]
    other = copy_on_cpu(net)
    original, copied = ({p.data_ptr() for p in one.parameters()} for one in (net, other))
    assert not original & copied
    assert list(net.state_dict()) == list(other.state_dict())
    assert repr(net) == repr(other)


FIRST_ITERATION = """
import json, time
import torch, triton
from fastcyclegan.config import ModelConfig
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.testing import make_engine, random_batch, seeded_networks
import dataclasses

logged = []
nets = seeded_networks(ModelConfig(netG="resnet_1blocks"))
engine = make_engine(nets, device="cuda", precision="bf16", log=logged.append)
batch = random_batch(64, Plan(0, 100, 100, 1), 0)
batch = batch.with_images(torch.Tensor.cuda)
engine.ahead.prepare((batch.A.shape, batch.B.shape), engine.nets, lambda: engine.dry_step(batch))
compiled = []
def record(src, cache_hit, **_):
    if not cache_hit:
        compiled.append(src.name)
triton.knobs.compilation.listener = record
losses = engine.step(batch, 1e-4)
print(json.dumps([logged, compiled, bool(losses.isfinite().all())]))
"""


@pytest.mark.gpu
def test_the_first_iteration_finds_every_kernel_compiled(tmp_path: Path) -> None:
    """Every kernel that is timed or launched has been compiled ahead.

    The test starts with an empty Triton cache and without tuned tile sizes.
    """
    environment = {
        **os.environ,
        "TRITON_CACHE_DIR": str(tmp_path / "triton"),
        "XDG_CACHE_HOME": str(tmp_path / "xdg"),
    }
    command = [sys.executable, "-c", FIRST_ITERATION]
    completed = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=Path(__file__).parents[2]
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    logged, compiled, finite = json.loads(completed.stdout.splitlines()[-1])
    assert compiled == []
    assert logged[0].startswith("compiling ")
    assert finite
