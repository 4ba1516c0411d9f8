"""What an engine decides before its first iteration: one pure function of networks, device and options."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from fastcyclegan.config import EngineConfig, LossConfig, ModelConfig
from fastcyclegan.engine.choices import EngineChoices, choose
from fastcyclegan.recipes.cyclegan import CycleGANRecipe
from fastcyclegan.testing import make_engine, seeded_networks

RECIPE = CycleGANRecipe(LossConfig())
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def nets(impl: str) -> dict[str, nn.Module]:
    return seeded_networks(ModelConfig(netG="resnet_1blocks", ngf=2, ndf=2, impl=impl))  # type: ignore[arg-type]


def chosen(
    impl: str, device: torch.device, compiled: bool = False, can_capture: bool | None = None, **options: Any
) -> EngineChoices:
    """Return what is chosen; no device is asked for anything."""
    able = device == GPU if can_capture is None else can_capture
    return choose(RECIPE, nets(impl), device, "bf16", compiled, EngineConfig(**options), able)


def what(choices: EngineChoices) -> set[str]:
    """Return the names of what is on."""
    return {name for name, value in dataclasses.asdict(choices).items() if value is True} - {"compiled"}


PAIRED = {"batching", "pairing"}
ON_A_GPU = {*PAIRED, "compile_ahead"}
CASES = [
    ("PyTorch on a processor batches alone", ("reference", CPU), {}, {"batching"}),
    ("its compiler goes wrong with several images", ("reference", CPU, True), {}, {"singly"}),
    ("kernels pair", ("triton", GPU), {}, ON_A_GPU),
    (
        "a compiled run is captured, and its weight gradients go beside",
        ("triton", GPU, True),
        {},
        {*ON_A_GPU, "graph", "weight_stream"},
    ),
    ("a graph by request", ("triton", GPU), {"graph": "on"}, {*ON_A_GPU, "graph", "weight_stream"}),
    ("no graph by request", ("triton", GPU, True), {"graph": "off"}, ON_A_GPU),
    ("nothing captures", ("triton", GPU, True, False), {}, ON_A_GPU),
    (
        "a stream by request needs no graph",
        ("triton", GPU),
        {"overlap": "wgrad"},
        {*ON_A_GPU, "weight_stream"},
    ),
    (
        "both streams",
        ("triton", GPU),
        {"overlap": "phases"},
        {*ON_A_GPU, "weight_stream", "overlap_phases", "phase_stream"},
    ),
    ("no streams, with a graph", ("triton", GPU, True), {"overlap": "off"}, {*ON_A_GPU, "graph"}),
    (
        "PyTorch's weight gradients stay where they are",
        ("reference", GPU),
        {"overlap": "phases"},
        {"batching", "overlap_phases", "phase_stream"},
    ),
    ("no streams on a processor", ("triton", CPU), {"overlap": "phases"}, {*PAIRED, "overlap_phases"}),
    ("pairs by request", ("reference", CPU), {"pairing": "on"}, PAIRED),
    ("neither", ("triton", GPU), {"pairing": "off", "batching": "off"}, {"compile_ahead"}),
]


@pytest.mark.parametrize(("why", "given", "options", "on"), CASES, ids=[case[0] for case in CASES])
def test_what_is_on(why: str, given: tuple[Any, ...], options: dict[str, str], on: set[str]) -> None:
    assert what(chosen(*given, **options)) == on


def test_what_was_asked_for_stays_in_it() -> None:
    options = EngineConfig(micro_batch=2)
    choices = choose(RECIPE, nets("triton"), GPU, "bf16", True, options, True)
    assert (choices.device, choices.precision, choices.compiled, choices.options) == (
        GPU,
        "bf16",
        True,
        options,
    )
    assert choices.kernel_networks == {"G_AB", "G_BA", "D_A", "D_B"}


def test_networks_that_are_differentiated_twice_are_not_on_kernels() -> None:
    """The engine hands them to PyTorch before it chooses."""
    engine = make_engine(nets("triton"), LossConfig(gan_mode="wgangp"))
    assert engine.choices.kernel_networks == {"G_AB", "G_BA"}
    assert engine.choices == choose(engine.recipe, engine.nets, CPU, "fp32", False, EngineConfig(), False)
