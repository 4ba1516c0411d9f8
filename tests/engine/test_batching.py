"""Paired and batched networks give the same outputs and gradients as networks called one by one.

The tests also cover the cases in which networks must be called one by one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcyclegan import reference
from fastcyclegan.devtools.dry_run import dry_run
from fastcyclegan.engine.batching import NetworkCalls, why_not_batched, why_not_paired
from fastcyclegan.nn.networks import Discriminator, Generator, PixelDiscriminator, UnetGenerator, set_impl
from fastcyclegan.testing import assert_parity, relative_error, tf32

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def two(
    build: Callable[..., nn.Module], dtype: torch.dtype = torch.float64, **arguments: Any
) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    nets = {name: reference.init_weights(build(**arguments), gain=0.2).to(dtype) for name in ("one", "other")}
    return {name: net.to(memory_format=torch.channels_last) for name, net in nets.items()}


def images(side: int, count: int = 1, channels: int = 3, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(count, channels, side, side, generator=generator, dtype=dtype).requires_grad_()
        for _ in range(4)
    ]


def results(run: NetworkCalls, xs: list[Tensor]) -> list[Tensor]:
    """Run two images through each network; return the outputs and the gradients of images and parameters."""
    ys = run({"one": xs[:2], "other": xs[2:]})
    outputs = [y for of_net in ys.values() for y in of_net]
    weights = torch.Generator().manual_seed(2)
    loss = sum(
        (y * torch.randn(y.shape, generator=weights, dtype=torch.float64).to(y)).sum() for y in outputs
    )
    parameters = [p for net in run.nets.values() for p in net.parameters() if p.requires_grad]
    return [*outputs, *torch.autograd.grad(loss, [*xs, *parameters])]


NETWORKS: list[tuple[str, Callable[..., nn.Module], dict[str, Any], int]] = [
    ("generator", Generator, {"ngf": 2, "n_blocks": 2}, 12),
    (
        "resize upsampling without norms: biases matter",
        Generator,
        {"ngf": 2, "n_blocks": 1, "upsample": "resize", "norm": "none"},
        8,
    ),
    (
        "antialiased: filters without gradients",
        Generator,
        {"ngf": 2, "n_blocks": 1, "downsample": "antialias", "upsample": "antialias"},
        16,
    ),
    ("PatchGAN: strides, 4x4 kernels, one output channel", Discriminator, {"ndf": 2, "n_layers": 2}, 16),
    ("PatchGAN with 1x1 patches", PixelDiscriminator, {"ndf": 2}, 6),
    ("U-Net: nested chains and skips", UnetGenerator, {"ngf": 2, "num_downs": 5}, 64),
]


@pytest.mark.parametrize(("why", "build", "arguments", "side"), NETWORKS, ids=[row[0] for row in NETWORKS])
def test_batching_and_pairing_equal_separate_calls_in_float64(
    why: str, build: Callable[..., nn.Module], arguments: dict[str, Any], side: int
) -> None:
    nets, xs, logged = two(build, **arguments), images(side, 2), []
    for buffer in nets["other"].buffers():  # a file can have other filters
        nn.init.uniform_(buffer)
    separate = results(NetworkCalls(nets), xs)
    for options in ({"batching": True}, {"pairing": True, "batching": True}, {"pairing": True}):
        together = results(NetworkCalls(nets, log=logged.append, **options), xs)
        for result, expected in zip(together, separate, strict=True):
            assert (result - expected).norm() <= 1e-11 * (1 + expected.norm())
    assert logged == []
    for net in nets.values():
        net.impl = "mine"  # an unknown setting, but the same in both networks
    assert why_not_paired(nets) == ""


@pytest.mark.parametrize(
    ("build", "arguments", "side"),
    [(Generator, {"ngf": 2, "n_blocks": 1}, 16), (Discriminator, {"ndf": 2, "n_layers": 1}, 16)],
)
def test_kernels_with_batching_and_pairing_pass_the_parity_rule(
    build: Callable[..., nn.Module], arguments: dict[str, Any], side: int
) -> None:
    exact = two(build, **arguments)
    ours = {name: copy.deepcopy(net).to(DEVICE, torch.float32) for name, net in exact.items()}
    reference_nets = {name: copy.deepcopy(net).to(DEVICE) for name, net in ours.items()}
    for nets, impl in ((ours, "triton"), (reference_nets, "reference")):
        for net in nets.values():
            set_impl(net, impl)
    truth = results(NetworkCalls(exact), images(side))
    xs = [x.detach().float().to(DEVICE).requires_grad_() for x in images(side)]
    with tf32(False):
        actual, yardstick = (
            results(NetworkCalls(ours, batching=True, pairing=True), xs),
            results(NetworkCalls(reference_nets), xs),
        )
    # The results of both networks at one position are compared together, and no norm is computed over 2 x 2
    # pixels, because the error of a single image would depend on luck.
    half = (len(truth) - 8) // 2
    places = [range(4), range(4, 8), *((n, n + half) for n in range(8, 8 + half))]
    names = ["outputs", "images", *(name for name, _ in exact["one"].named_parameters())]
    for name, place in zip(names, places, strict=True):
        a, b, c = (torch.cat([values[n].flatten() for n in place]) for values in (actual, yardstick, truth))
        if c.norm() > 1e-9:  # cancelled biases have no gradient
            assert_parity(name, a, b, c, torch.float32)


def test_a_pair_takes_as_many_launches_as_one_network() -> None:
    nets = {name: Generator(ngf=8, n_blocks=1, impl="triton") for name in ("one", "other")}
    xs = [x.detach().float() for x in images(16)]
    counts = []
    for pairing in (True, False):
        with dry_run() as dry:
            NetworkCalls(nets, batching=True, pairing=pairing)({"one": xs[:2], "other": xs[2:]})
        counts.append(dry.counts)
    paired, separate = counts
    for kernel in ("_reflect_conv_kernel", "_reflect_conv_contract_kernel", "_instance_norm_apply_kernel"):
        assert 2 * paired.launches[kernel] == separate.launches[kernel] > 0
    # Strided and transposed layers run in PyTorch's library for one network, and in the kernels for two.
    assert paired.launches["_zero_conv_gather_kernel"] + paired.launches["_zero_conv_scatter_kernel"] == 4
    assert (paired.aten["convolution"], separate.aten["convolution"]) == (0, 8)


def _hook(nets: dict[str, nn.Module]) -> None:
    nets["other"].model[1].register_forward_hook(lambda *args: None)


def _replace(nets: dict[str, nn.Module]) -> None:
    nets["other"].model[3] = nn.Hardswish()


def _freeze(nets: dict[str, nn.Module]) -> None:
    nets["other"].model[1].weight.requires_grad_(False)


def _eval(nets: dict[str, nn.Module]) -> None:
    nets["other"].eval()


def _swap(nets: dict[str, nn.Module]) -> None:
    nets["other"] = two(Generator, ngf=2, n_blocks=2)["other"]


def _nothing(nets: dict[str, nn.Module]) -> None:
    pass


# (reason, networks, change to them, expected log line)
UNPAIRED: list[tuple[str, dict[str, Any], Callable[..., None], str]] = [
    ("a hook", {}, _hook, "not batched: other.model.1 has a hook or a custom forward method"),
    (
        "an unknown module",
        {},
        _replace,
        "not batched: other.model.3 is of type Hardswish, which may mix the images of a batch",
    ),
    (
        "a frozen weight",
        {},
        _freeze,
        "not paired: one and other have weights of different shapes or layouts, or different frozen weights",
    ),
    ("one in eval mode", {}, _eval, "not paired: one and other differ in top-level settings (Generator)"),
    ("another architecture", {}, _swap, "not paired: one and other have different architectures"),
    (
        "batch norm",
        {"norm": "batch"},
        _nothing,
        "not batched: one.model.2 is a batch norm, which computes its statistics over the whole batch",
    ),
    (
        "affine norms",
        {"affine": True},
        _nothing,
        "not paired: networks with affine norm layers cannot run as one",
    ),
]


@pytest.mark.parametrize(
    ("why", "arguments", "change", "expected_line"), UNPAIRED, ids=[row[0] for row in UNPAIRED]
)
def test_networks_that_cannot_be_paired_run_separately_and_the_reason_is_logged_once(
    why: str, arguments: dict[str, Any], change: Callable[..., None], expected_line: str
) -> None:
    nets, xs, logged = two(Generator, ngf=2, n_blocks=1, **arguments), images(8), []
    change(nets)
    run = NetworkCalls(nets, batching=True, pairing=True, log=logged.append)
    expected = results(NetworkCalls(copy.deepcopy(nets)), xs)
    for result, value in zip(results(run, xs), expected, strict=True):
        assert (result - value).norm() <= 1e-11 * (1 + value.norm())
    run({"one": xs[:2], "other": xs[2:]})
    assert logged.count(expected_line) == 1
    assert len(logged) == len(set(logged))


def test_images_of_different_sizes_are_not_batched() -> None:
    nets, logged = two(Generator, ngf=2, n_blocks=0), []
    small, large = images(8)[0], images(12)[0]
    run = NetworkCalls(nets, batching=True, pairing=True, log=logged.append)
    ys = run({"one": [small, large], "other": [large, small]})
    for name, xs in (("one", (small, large)), ("other", (large, small))):
        for y, x in zip(ys[name], xs, strict=True):
            assert relative_error(y, nets[name](x)) < 1e-12
    assert "not batched: one gets images of different sizes" in logged
    # Each network gets images of one size, but the two sizes differ.
    run({"one": [small, small], "other": [large, large]})
    assert "not paired: one and other get images of different sizes" in logged


def test_pairs_without_batching_take_one_image_of_each_network_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fastcyclegan.engine import batching

    nets, xs, calls = two(Generator, ngf=2, n_blocks=0), images(8), []
    plain = batching.run_paired
    monkeypatch.setattr(
        batching, "run_paired", lambda nets, x, impl: calls.append(len(x)) or plain(nets, x, impl)
    )
    ys = NetworkCalls(nets, pairing=True)({"one": xs[:2], "other": xs[2:]})
    assert calls == [2, 2]
    for y, x in zip([*ys["one"], *ys["other"]], xs, strict=True):
        assert y.shape == x.shape


def test_why_not_batched_names_modules_that_may_mix_images() -> None:
    assert why_not_batched("G", two(Generator, ngf=2, n_blocks=1)["one"]) == ""
    assert why_not_batched("D", nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True))) == (
        "D.0 is of type InstanceNorm2d, which may mix the images of a batch"
    )
    assert why_not_batched("D", reference.Discriminator(norm="none")) == ""
