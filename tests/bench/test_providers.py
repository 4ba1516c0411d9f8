"""Providers of the training step: their networks, and when they need a compiler."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import compile_costs, providers
from bench.baselines import plain_networks
from bench.compile_costs import code_of, remember_compiled, seconds_to_compile
from bench.generator_providers import generator
from bench.parity import Judge
from bench.providers import PROVIDERS, TrainStep, train_step
from bench.timing import Unavailable
from fastcyclegan.engine import resolve_precision
from fastcyclegan.kernels.cpu.library import why_not_cpp
from fastcyclegan.nn.networks import computed_by
from fastcyclegan.testing import seeded_networks
from tests.bench.small_steps import SMALL

needs_kernels = pytest.mark.skipif(why_not_cpp() != "", reason=f"impl='cpp' {why_not_cpp()}")
STEP, GENERATOR = (code_of(kind, 32, 1, SMALL) for kind in ("step", "generator"))


def test_plain_networks_are_reference_modules_with_our_initial_weights() -> None:
    plain, ours = plain_networks(SMALL, seed=3), seeded_networks(SMALL.model, seed=3)
    assert all(type(net).__module__ == "fastcyclegan.reference" for net in plain.values())
    for name, net in ours.items():
        assert all(
            torch.equal(a, b)
            for a, b in zip(plain[name].state_dict().values(), net.state_dict().values(), strict=True)
        )


def no_compiler(device: torch.device) -> str:
    return "no C++ compiler found"


def made(name: str, judge: Judge) -> TrainStep:
    return train_step(name, judge.nets, "cpu", SMALL)


def computed(step: TrainStep) -> set[str]:
    return {computed_by(net) for net in step.nets.values()}


@needs_kernels
def test_with_kernels_for_the_processor_training_compiles_nothing(
    judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider does not even look for a compiler, and no time is reserved for one."""
    monkeypatch.setattr(providers, "why_not_compiled", no_compiler)
    monkeypatch.setattr(torch, "compile", None)
    monkeypatch.setattr(compile_costs, "compiled_before", lambda name, code: tmp_path / name)
    step = made("ours_compiled", judge)
    step.run(judge.batches[0])
    assert computed(step) == {"cpp"}
    assert step.precision == resolve_precision("auto", torch.device("cpu"), compiled=True)
    assert seconds_to_compile("ours_compiled", STEP, "cpu") == 0
    remember_compiled("ours_compiled", STEP, "cpu")
    assert not list(tmp_path.iterdir())


@needs_kernels
def test_other_steps_and_translations_need_the_compiler(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "why_not_compiled", no_compiler)
    assert seconds_to_compile("official_compiled", STEP, "cpu") > 0
    assert seconds_to_compile("ours_compiled", GENERATOR, "cpu") > 0
    with pytest.raises(Unavailable, match=r"no C\+\+ compiler found"):
        made("official_compiled", judge)
    with pytest.raises(Unavailable, match=r"no C\+\+ compiler found"):
        generator("ours_compiled", judge.nets["G_AB"], "cpu", ngf=8, n_blocks=1)
    monkeypatch.setattr(providers, "replaces_compiler", lambda impl, device: False)
    with pytest.raises(Unavailable, match=r"no C\+\+ compiler found"):
        made("ours_compiled", judge)
    assert seconds_to_compile("ours_compiled", STEP, "cpu") > 0


def test_without_kernels_pytorch_computes_the_networks(judge: Judge) -> None:
    assert computed(made("ours_without_kernels", judge)) == {"reference"}
    with pytest.raises(Unavailable, match="only timed on a CPU"):
        PROVIDERS["ours_without_kernels"].require("cuda")
