"""The choices made before the first iteration depend only on the networks, the device and the options."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from fastcyclegan.config import EngineConfig, LossConfig, ModelConfig
from fastcyclegan.engine.choices import EngineChoices, choose, may_be_miscompiled
from fastcyclegan.recipes.cyclegan import CycleGANRecipe
from fastcyclegan.recipes.pix2pix import Pix2PixModel, Pix2PixRecipe
from fastcyclegan.testing import make_engine, seeded_networks

RECIPE = CycleGANRecipe(LossConfig())
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def nets(impl: str) -> dict[str, nn.Module]:
    return seeded_networks(ModelConfig(netG="resnet_1blocks", ngf=2, ndf=2, impl=impl))  # type: ignore[arg-type]


def chosen(
    impl: str, device: torch.device, compiled: bool = False, can_capture: bool | None = None, **options: Any
) -> EngineChoices:
    """Return the choices of an engine on ``device``, without using that device."""
    able = device == GPU if can_capture is None else can_capture
    return choose(RECIPE, nets(impl), device, "bf16", compiled, EngineConfig(**options), able)


def enabled(choices: EngineChoices) -> set[str]:
    """Return the names of the enabled choices."""
    return {name for name, value in dataclasses.asdict(choices).items() if value is True} - {"compiled"}


PAIRED = {"batching", "pairing"}
ON_A_GPU = {*PAIRED, "compile_ahead"}
CASES = [
    ("PyTorch on a CPU only batches", ("reference", CPU), {}, {"batching"}),
    ("so do the C++ kernels, which do not pair", ("cpp", CPU, True), {}, {"batching"}),
    ("kernels pair networks", ("triton", GPU), {}, ON_A_GPU),
    (
        "a compiled run is captured, with weight gradients on their own stream",
        ("triton", GPU, True),
        {},
        {*ON_A_GPU, "graph", "weight_stream"},
    ),
    ("a requested graph", ("triton", GPU), {"graph": "on"}, {*ON_A_GPU, "graph", "weight_stream"}),
    ("a graph that is switched off", ("triton", GPU, True), {"graph": "off"}, ON_A_GPU),
    ("no capture available", ("triton", GPU, True, False), {}, ON_A_GPU),
    (
        "a requested stream needs no graph",
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
    ("a graph without streams", ("triton", GPU, True), {"overlap": "off"}, {*ON_A_GPU, "graph"}),
    (
        "PyTorch's weight gradients stay on the main stream",
        ("reference", GPU),
        {"overlap": "phases"},
        {"batching", "overlap_phases", "phase_stream"},
    ),
    ("no streams on a CPU", ("triton", CPU), {"overlap": "phases"}, {*PAIRED, "overlap_phases"}),
    ("requested pairs", ("reference", CPU), {"pairing": "on"}, PAIRED),
    ("neither", ("triton", GPU), {"pairing": "off", "batching": "off"}, {"compile_ahead"}),
]


@pytest.mark.parametrize(("why", "arguments", "options", "expected"), CASES, ids=[case[0] for case in CASES])
def test_enabled_choices(
    why: str, arguments: tuple[Any, ...], options: dict[str, str], expected: set[str]
) -> None:
    assert enabled(chosen(*arguments, **options)) == expected


@pytest.mark.parametrize("amx", [False, True])
def test_torch_compile_takes_single_images_where_it_may_compute_wrong_gradients(
    amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has computed NaN for two images at once on a processor with AMX, and not on others."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert enabled(chosen("reference", CPU, True)) == {"singly" if amx else "batching"}
    assert may_be_miscompiled(CPU, "bf16") == amx
    assert not may_be_miscompiled(CPU, "fp32")
    assert not may_be_miscompiled(GPU, "bf16")
    # The C++ kernels compute the networks, so nothing is compiled.
    choices = chosen("cpp", CPU, True)
    assert enabled(choices) == {"batching"}
    assert not any(choices.compiles(name) for name in choices.cpp_networks)
    assert choices.cpp_networks == {"G_AB", "G_BA", "D_A", "D_B"}


def test_choices_contain_the_requested_settings() -> None:
    options = EngineConfig(micro_batch=2)
    choices = choose(RECIPE, nets("triton"), GPU, "bf16", True, options, True)
    assert (choices.device, choices.precision, choices.compiled, choices.options) == (
        GPU,
        "bf16",
        True,
        options,
    )
    assert choices.kernel_networks == {"G_AB", "G_BA", "D_A", "D_B"}


def test_networks_that_are_differentiated_twice_do_not_use_the_kernels() -> None:
    """The engine makes PyTorch compute such networks before it makes its choices."""
    engine = make_engine(nets("triton"), LossConfig(gan_mode="wgangp"))
    assert engine.choices.kernel_networks == {"G_AB", "G_BA"}
    assert engine.choices == choose(engine.recipe, engine.nets, CPU, "fp32", False, EngineConfig(), False)


def test_networks_of_which_triton_computes_no_layer_are_compiled() -> None:
    """U-Nets with batch norm have neither instance norms nor reflection-padded convolutions."""
    settings = Pix2PixModel(netG="unet_32", ngf=2, ndf=2, impl="triton")
    for norm, kernels in (("batch", set[str]()), ("instance", {"G", "D"})):
        recipe = Pix2PixRecipe(model=dataclasses.replace(settings, norm=norm))  # type: ignore[arg-type]
        networks = recipe.build_networks()
        choices = choose(recipe, networks, GPU, "bf16", True, EngineConfig(), True)
        assert choices.kernel_networks == kernels
        assert {name for name in networks if choices.compiles(name)} == {"G", "D"} - kernels
