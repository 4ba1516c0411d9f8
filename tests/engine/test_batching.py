"""Networks that run as one against networks that run one by one: outputs and every gradient; and when they
must not.
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
    """Return outputs, and gradients of images and parameters, for two images through each network."""
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
        "resized and without norms: biases that count",
        Generator,
        {"ngf": 2, "n_blocks": 1, "upsample": "resize", "norm": "none"},
        8,
    ),
    ("PatchGAN: strides, 4x4, one channel out", Discriminator, {"ndf": 2, "n_layers": 2}, 16),
    ("PatchGAN of 1x1", PixelDiscriminator, {"ndf": 2}, 6),
    ("U-Net: chains in chains, skips", UnetGenerator, {"ngf": 2, "num_downs": 5}, 64),
]


@pytest.mark.parametrize(("why", "build", "arguments", "side"), NETWORKS, ids=[row[0] for row in NETWORKS])
def test_together_as_apart_in_float64(
    why: str, build: Callable[..., nn.Module], arguments: dict[str, Any], side: int
) -> None:
    nets, xs, logged = two(build, **arguments), images(side, 2), []
    apart = results(NetworkCalls(nets), xs)
    for options in ({"batching": True}, {"pairing": True, "batching": True}, {"pairing": True}):
        together = results(NetworkCalls(nets, log=logged.append, **options), xs)
        for found, expected in zip(together, apart, strict=True):
            assert (found - expected).norm() <= 1e-11 * (1 + expected.norm())
    assert logged == []
    for net in nets.values():
        net.impl = "mine"  # what is asked of one network does not count for two
    assert why_not_paired(nets) == ""


@pytest.mark.parametrize(
    ("build", "arguments", "side"),
    [(Generator, {"ngf": 2, "n_blocks": 1}, 16), (Discriminator, {"ndf": 2, "n_layers": 1}, 16)],
)
def test_together_on_the_kernels_by_the_parity_rule(
    build: Callable[..., nn.Module], arguments: dict[str, Any], side: int
) -> None:
    exact = two(build, **arguments)
    ours = {name: copy.deepcopy(net).to(DEVICE, torch.float32) for name, net in exact.items()}
    theirs = {name: copy.deepcopy(net).to(DEVICE) for name, net in ours.items()}
    for nets, impl in ((ours, "triton"), (theirs, "reference")):
        for net in nets.values():
            set_impl(net, impl)
    truth = results(NetworkCalls(exact), images(side))
    xs = [x.detach().float().to(DEVICE).requires_grad_() for x in images(side)]
    with tf32(False):
        found, yardstick = (
            results(NetworkCalls(ours, batching=True, pairing=True), xs),
            results(NetworkCalls(theirs), xs),
        )
    # Both networks' results at a place go together, and no norm is of 2 x 2: one image's error alone is a
    # matter of luck.
    half = (len(truth) - 8) // 2
    places = [range(4), range(4, 8), *((n, n + half) for n in range(8, 8 + half))]
    names = ["outputs", "images", *(name for name, _ in exact["one"].named_parameters())]
    for name, place in zip(names, places, strict=True):
        a, b, c = (torch.cat([values[n].flatten() for n in place]) for values in (found, yardstick, truth))
        if c.norm() > 1e-9:  # biases that cancel have no gradient
            assert_parity(name, a, b, c, torch.float32)


def test_two_networks_take_the_launches_of_one() -> None:
    nets = {name: Generator(ngf=8, n_blocks=1, impl="triton") for name in ("one", "other")}
    xs = [x.detach().float() for x in images(16)]
    counts = []
    for pairing in (True, False):
        with dry_run() as dry:
            NetworkCalls(nets, batching=True, pairing=pairing)({"one": xs[:2], "other": xs[2:]})
        counts.append(dry.counts)
    paired, apart = counts
    for kernel in ("_reflect_conv_kernel", "_reflect_conv_contract_kernel", "_instance_norm_apply_kernel"):
        assert 2 * paired.launches[kernel] == apart.launches[kernel] > 0
    # Strided and transposed layers are PyTorch's library's for one network, and the kernels' for two.
    assert paired.launches["_zero_conv_gather_kernel"] + paired.launches["_zero_conv_scatter_kernel"] == 4
    assert (paired.aten["convolution"], apart.aten["convolution"]) == (0, 8)


def _hook(nets: dict[str, nn.Module]) -> None:
    nets["other"].model[1].register_forward_hook(lambda *args: None)


def _replace(nets: dict[str, nn.Module]) -> None:
    nets["other"].model[3] = nn.GELU()


def _freeze(nets: dict[str, nn.Module]) -> None:
    nets["other"].model[1].weight.requires_grad_(False)


def _eval(nets: dict[str, nn.Module]) -> None:
    nets["other"].eval()


def _swap(nets: dict[str, nn.Module]) -> None:
    nets["other"] = two(Generator, ngf=2, n_blocks=2)["other"]


def _nothing(nets: dict[str, nn.Module]) -> None:
    pass


# (why, networks, what is done to them, what is said)
APART: list[tuple[str, dict[str, Any], Callable[..., None], str]] = [
    ("a hook", {}, _hook, "not batched: other.model.1 has a hook, or a forward of its own"),
    (
        "a member that is not known",
        {},
        _replace,
        "not batched: other.model.3 is a GELU, which may look at all images of a batch",
    ),
    (
        "a frozen member",
        {},
        _freeze,
        "not paired: one and other have weights of different shapes or layouts, or others that are frozen",
    ),
    ("one in eval mode", {}, _eval, "not paired: one and other differ in themselves (Generator)"),
    ("another architecture", {}, _swap, "not paired: one and other are of different architectures"),
    (
        "batch norm",
        {"norm": "batch"},
        _nothing,
        "not batched: one.model.2 is a batch norm, which looks at all images of a batch",
    ),
    ("norms with weights", {"affine": True}, _nothing, "not paired: their norms have weights"),
]


@pytest.mark.parametrize(("why", "arguments", "change", "said"), APART, ids=[row[0] for row in APART])
def test_pairs_fall_apart_once_said(
    why: str, arguments: dict[str, Any], change: Callable[..., None], logged: str
) -> None:
    nets, xs, heard = two(Generator, ngf=2, n_blocks=1, **arguments), images(8), []
    change(nets)
    run = NetworkCalls(nets, batching=True, pairing=True, log=heard.append)
    expected = results(NetworkCalls(copy.deepcopy(nets)), xs)
    for found, value in zip(results(run, xs), expected, strict=True):
        assert (found - value).norm() <= 1e-11 * (1 + value.norm())
    run({"one": xs[:2], "other": xs[2:]})
    assert heard.count(logged) == 1
    assert len(heard) == len(set(heard))


def test_images_of_different_sizes_go_one_by_one() -> None:
    nets, heard = two(Generator, ngf=2, n_blocks=0), []
    small, large = images(8)[0], images(12)[0]
    run = NetworkCalls(nets, batching=True, pairing=True, log=heard.append)
    ys = run({"one": [small, large], "other": [large, small]})
    for name, xs in (("one", (small, large)), ("other", (large, small))):
        for y, x in zip(ys[name], xs, strict=True):
            assert relative_error(y, nets[name](x)) < 1e-12
    assert "not batched: one gets images of different sizes" in heard
    # Sizes that differ between the networks alone.
    run({"one": [small, small], "other": [large, large]})
    assert "not paired: one and other get images of different sizes" in heard


def test_pairs_without_batches_take_a_image_of_each_network_at_a_time(
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


def test_what_looks_at_all_images_of_a_batch() -> None:
    assert why_not_batched("G", two(Generator, ngf=2, n_blocks=1)["one"]) == ""
    assert why_not_batched("D", nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True))) == (
        "D.0 is a InstanceNorm2d, which may look at all images of a batch"
    )
    assert why_not_batched("D", reference.Discriminator(norm="none")) == ""
