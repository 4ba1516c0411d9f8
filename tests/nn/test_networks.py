"""Tests of the drop-in networks: same function and keys as the reference, choice of impl, builders."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastcyclegan import InstanceNormAct
from fastcyclegan import reference as ref
from fastcyclegan.config import ModelConfig
from fastcyclegan.nn.networks import (
    Discriminator,
    Generator,
    PixelDiscriminator,
    UnetGenerator,
    build_discriminator,
    build_generator,
    set_impl,
)
from fastcyclegan.testing import assert_parity, is_cancelled_bias
from tests.nn.triples import DEVICE

pytestmark = pytest.mark.usefixtures("no_tf32")


KEEP = {"recompute": False}

PAIRS: list[tuple[type[nn.Module], type[nn.Module], dict[str, Any]]] = [
    (Generator, ref.Generator, {"ngf": 4, "n_blocks": 2}),
    (UnetGenerator, ref.UnetGenerator, {"ngf": 2, "num_downs": 5}),
    (Discriminator, ref.Discriminator, {"ndf": 4}),
    (PixelDiscriminator, ref.PixelDiscriminator, {"ndf": 4}),
]


@pytest.mark.parametrize(("ours", "reference", "arguments"), PAIRS)
def test_without_kernels_equals_the_reference_bit_for_bit(
    ours: type[nn.Module], reference: type[nn.Module], arguments: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    a, b = ours(**arguments).double(), reference(**arguments).double()
    b.load_state_dict(a.state_dict())
    x, y = (
        torch.randn(
            2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        ).requires_grad_()
        for _ in range(2)
    )
    out_a, out_b = a(x), b(y)
    grad = torch.randn_like(out_a)
    out_a.backward(grad)
    out_b.backward(grad)
    assert torch.equal(out_a, out_b)
    assert torch.equal(x.grad, y.grad)
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name


KERNELS: list[tuple[str, type[nn.Module], type[nn.Module], int, dict[str, Any], dict[str, Any]]] = [
    ("all layers of a generator", Generator, ref.Generator, 16, {"ngf": 4, "n_blocks": 2}, {}),
    (
        "inputs kept, affine, resized",
        Generator,
        ref.Generator,
        16,
        {"ngf": 4, "n_blocks": 1, "affine": True, "upsample": "resize"},
        KEEP,
    ),
    (
        "batch norm: only the padding by a kernel",
        Generator,
        ref.Generator,
        8,
        {"ngf": 4, "n_blocks": 1, "norm": "batch"},
        {},
    ),
    ("no norm at all", Generator, ref.Generator, 8, {"ngf": 4, "n_blocks": 1, "norm": "none"}, {}),
    (
        "antialiased",
        Generator,
        ref.Generator,
        16,
        {"ngf": 4, "n_blocks": 1, "downsample": "antialias", "upsample": "antialias"},
        {},
    ),
    ("skips", UnetGenerator, ref.UnetGenerator, 64, {"ngf": 2, "num_downs": 5}, {}),
    ("patches", Discriminator, ref.Discriminator, 32, {"ndf": 4}, {}),
    ("patches, inputs kept", Discriminator, ref.Discriminator, 32, {"ndf": 4}, KEEP),
    ("pixels", PixelDiscriminator, ref.PixelDiscriminator, 9, {"ndf": 4}, {}),
]


@pytest.mark.parametrize(
    ("label", "ours", "reference", "size", "arguments", "options"), KERNELS, ids=[k[0] for k in KERNELS]
)
def test_kernels_match_the_reference(
    label: str,
    ours: type[nn.Module],
    reference: type[nn.Module],
    size: int,
    arguments: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Compare the output and every gradient in fp32 with float64.

    A cancelled bias gets a gradient of zeros, not None.
    """
    torch.manual_seed(0)
    a, b = ours(**arguments, **options, impl="triton"), reference(**arguments)
    for p in a.parameters():
        nn.init.normal_(p, 0, 0.1)
    b.load_state_dict(a.state_dict())
    assert list(a.state_dict()) == list(b.state_dict())
    nets = [a.to(DEVICE), b.to(DEVICE), copy.deepcopy(b).double()]
    x = torch.rand(2, 3, size, size, device=DEVICE) * 2 - 1
    results = []
    for net in nets:
        leaf = x.to(next(net.parameters()).dtype, copy=True).requires_grad_()
        y = net(leaf)
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y))
        results.append({"y": y, "x": leaf.grad} | {name: p.grad for name, p in net.named_parameters()})
    for name, result in results[0].items():
        if is_cancelled_bias(b, name):
            assert result.shape == results[1][name].shape
            assert not result.any()
        else:
            assert_parity(name, result, results[1][name], results[2][name], torch.float32)


def test_dropout_is_between_the_convolutions() -> None:
    """If a hook makes dropout halve its input instead of drawing random numbers, the outputs are equal."""
    torch.manual_seed(0)
    nets = [
        Generator(ngf=2, n_blocks=1, use_dropout=True, impl="triton"),
        ref.Generator(ngf=2, n_blocks=1, use_dropout=True),
    ]
    nets[1].load_state_dict(nets[0].state_dict())
    nets.append(copy.deepcopy(nets[1]).double())
    for net in nets:
        net.to(DEVICE).model[10].conv_block[4].register_forward_hook(lambda m, args, out: args[0] / 2)
    x = torch.randn(1, 3, 16, 16, device=DEVICE)  # a norm over 2 x 2 can enlarge rounding errors
    assert_parity("output", *(net(x.to(next(net.parameters()).dtype)) for net in nets), torch.float32)
    nets[0].model[10].conv_block[4]._forward_hooks.clear()
    assert not torch.equal(nets[0](x), nets[0](x))
    assert torch.equal(nets[0].eval()(x), nets[0](x))


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_output_is_fp32_under_autocast_and_tanh_is_computed_in_fp32(impl: str) -> None:
    """A tanh in bf16 would be too coarse: near 1, it has steps of a whole gray level."""
    torch.manual_seed(0)
    for net, size in (
        (Generator(ngf=4, n_blocks=1, impl=impl), 12),
        (UnetGenerator(ngf=2, num_downs=5, impl=impl), 32),
    ):
        with torch.autocast(DEVICE, torch.bfloat16):
            out = net.to(DEVICE)(torch.randn(1, 3, size, size, device=DEVICE))
        assert out.dtype == torch.float32
        assert not torch.equal(out, out.to(torch.bfloat16).float())
        out.sum().backward()
        assert all(p.grad.dtype == torch.float32 for p in net.parameters())


def test_bf16_gradients_are_as_accurate_as_autocast() -> None:
    torch.manual_seed(0)
    a, b = Generator(ngf=4, n_blocks=1, impl="triton").to(DEVICE), ref.Generator(ngf=4, n_blocks=1).to(DEVICE)
    for p in a.parameters():
        nn.init.normal_(p, 0, 0.1)
    b.load_state_dict(a.state_dict())
    x = torch.rand(1, 3, 16, 16, device=DEVICE) * 2 - 1
    gradients = []
    for net, dtype in ((a, torch.float32), (b, torch.float32), (copy.deepcopy(b).double(), torch.float64)):
        with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.float32):
            y = net(x.to(dtype))
        y.float().square().mean().backward()
        gradients.append({name: p.grad for name, p in net.named_parameters()})
    for name, result in gradients[0].items():
        if not is_cancelled_bias(b, name):
            assert_parity(name, result, gradients[1][name], gradients[2][name], torch.bfloat16)


def test_impl_is_shown_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Generator, UnetGenerator, Discriminator, PixelDiscriminator):
        with pytest.raises(ValueError, match="impl must be auto, cpp, triton or reference, got 'cuda'"):
            kind(impl="cuda")
    net = Generator(ngf=1, n_blocks=0)
    assert "impl=auto (cpp)" in repr(net)
    set_impl(net, "triton")
    assert "impl=triton (triton)" in repr(net)
    monkeypatch.setattr(
        "fastcyclegan.kernels.dispatch.why_not_triton", lambda *device: "needs an NVIDIA GPU, got cpu"
    )
    assert "impl=triton (does not support float32 on cpu)" in repr(net)
    with pytest.raises(
        ValueError, match="impl='triton' needs an NVIDIA GPU, got cpu; use impl='auto' or impl='reference'"
    ):
        net(torch.zeros(1, 3, 8, 8))


def test_auto_follows_the_device_of_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model built on the CPU and moved later uses the implementation of its new device."""
    net = Generator(ngf=4, n_blocks=0)
    resolved: list[str] = []
    monkeypatch.setattr(
        "fastcyclegan.nn.chains.resolve_impl",
        lambda op, impl, x: resolved.append(f"{impl} {x.device.type}") or "reference",
    )
    net(torch.zeros(1, 3, 8, 8))
    net.to("meta")(torch.zeros(1, 3, 8, 8, device="meta"))
    assert resolved == ["auto cpu", "auto meta"]


def test_builders_accept_the_official_names() -> None:
    def built(**changes: Any) -> nn.Module:
        return build_generator(ModelConfig(ngf=2, ndf=2, **changes), 3, 1)

    assert sum(isinstance(m, ref.ResidualBlock) for m in built(netG="resnet_6blocks").modules()) == 6
    assert built(netG="unet_128").size_multiple == 128
    assert isinstance(build_discriminator(ModelConfig(netD="pixel"), 3), PixelDiscriminator)
    layers = [
        sum(isinstance(m, nn.Conv2d) for m in build_discriminator(c, 3).modules())
        for c in (ModelConfig(n_layers_D=5), ModelConfig(netD="n_layers", n_layers_D=5))
    ]
    assert layers == [5, 7]  # basic has three layers whatever the value of n_layers_D


@pytest.mark.parametrize(
    "norm",
    [
        pytest.param(nn.InstanceNorm2d, id="a class"),
        pytest.param(functools.partial(nn.InstanceNorm2d, affine=True), id="a partial of one"),
        pytest.param(lambda channels: nn.InstanceNorm2d(channels, eps=1e-3, affine=True), id="a function"),
    ],
)
def test_torch_norms_are_replaced_by_layout_safe_ones(norm: Any) -> None:
    """The replacements keep the settings and weights of the original norms, and convolutions before them have
    a bias where the reference has one.
    """
    net, plain = (kind(ngf=2, n_blocks=1, norm=norm) for kind in (Generator, ref.Generator))
    norms = [module for module in net.modules() if isinstance(module, nn.InstanceNorm2d)]
    assert {type(module) for module in norms} == {ref.InstanceNorm2d}
    assert {module.eps for module in norms} == {getattr(m, "eps", norms[0].eps) for m in plain.modules()}
    assert {key: value.shape for key, value in net.state_dict().items()} == {
        key: value.shape for key, value in plain.state_dict().items()
    }


NAMES = ("Generator", "UnetGenerator", "Discriminator", "PixelDiscriminator")
SMALL: dict[str, dict[str, Any]] = {
    "Generator": {"ngf": 2, "n_blocks": 1},
    "UnetGenerator": {"ngf": 2, "num_downs": 5},
    "Discriminator": {"ndf": 2, "n_layers": 1},
    "PixelDiscriminator": {"ndf": 2},
}


def _small(name: str, impl: str, **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    kind = {net.__name__: net for net in (Generator, UnetGenerator, Discriminator, PixelDiscriminator)}[name]
    net: nn.Module = kind(**SMALL[name], impl=impl, **arguments)
    return net.to(DEVICE)


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("name", NAMES)
def test_wrong_images_are_refused(name: str, impl: str) -> None:
    net = _small(name, impl)
    for shape in ((1, 1, 32, 32), (2, 4, 32, 32), (1, 0, 32, 32), (4, 32, 32), (3, 32), (1, 3, 8, 32, 32)):
        with pytest.raises(ValueError, match=rf"{name}: x must be \[N, 3, H, W\] or \[3, H, W\], got shape"):
            net(torch.zeros(shape, device=DEVICE))
    for x, message in (
        (None, "must be a tensor, got NoneType"),
        ([torch.zeros(3, 32, 32)], "must be a tensor, got list"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "must be floating point, got torch.uint8"),
    ):
        with pytest.raises(TypeError, match=f"{name}: x {message}"):
            net(x)
    for compiled in (torch.compile(net, backend="eager"), torch.compile(net, backend="aot_eager")):
        with pytest.raises(ValueError, match="x must be"):
            compiled(torch.zeros(1, 4, 32, 32, device=DEVICE))


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_images_with_the_channels_of_a_replaced_first_layer_are_accepted(impl: str) -> None:
    net: Any = _small("Generator", impl)
    net.model[1] = nn.Conv2d(4, 2, 7).to(DEVICE)
    assert net(torch.zeros(1, 4, 8, 8, device=DEVICE)).shape == (1, 3, 8, 8)
    net.model[0] = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReflectionPad2d(3)).to(DEVICE)
    assert net(torch.zeros(1, 1, 8, 8, device=DEVICE)).shape == (1, 3, 8, 8)
    hooked: Any = _small("Generator", impl)
    hooked.model[0].register_forward_pre_hook(lambda layer, args: (args[0].expand(-1, 3, -1, -1),))
    assert hooked(torch.zeros(1, 1, 8, 8, device=DEVICE)).shape == (1, 3, 8, 8)


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_inner_layers_with_other_channels_raise(impl: str) -> None:
    """The check of the network's input does not see these: the operators must."""
    convs = (nn.Conv2d, nn.ConvTranspose2d)
    for index, layer in enumerate(_small("Generator", impl).model):
        if index < 2 or not isinstance(layer, convs):
            continue
        net = _small("Generator", impl)
        sizes = (layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
        net.model[index] = type(layer)(layer.in_channels + 1, *sizes).to(DEVICE)
        with pytest.raises((ValueError, RuntimeError), match=r"channels|weight must be"):
            net(torch.zeros(1, 3, 8, 8, device=DEVICE))
    block: Any = _small("Generator", impl)
    block.model[10].conv_block[5] = nn.Conv2d(7, 8, 3).to(DEVICE)
    with pytest.raises((ValueError, RuntimeError), match=r"channels|weight must be"):
        block(torch.zeros(1, 3, 8, 8, device=DEVICE))


def _loaded(module: Any, path: Path) -> Any:
    torch.jit.save(module, path)
    return torch.jit.load(path, map_location=DEVICE)


def _traced(net: nn.Module, side: int) -> Any:
    # PyTorch traces and runs the network again to check the trace. For a generator, that takes long.
    check = not isinstance(net, Generator)
    return torch.jit.trace(net, torch.randn(1, 3, side, side, device=DEVICE), check_trace=check)


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("name", NAMES)
def test_traces_can_be_saved(name: str, impl: str, tmp_path: Path) -> None:
    """A saved trace gives the same outputs and gradients, for other sizes too, and still checks its input."""
    net = _small(name, impl).eval()
    side = 32 if name == "UnetGenerator" else 8
    traced = _loaded(_traced(net, side), tmp_path / "net.pt")
    x = torch.randn(2, 3, 12 if name == "Generator" else 2 * side, side, device=DEVICE)
    gradients = []
    for module in (net, traced):
        y = module(x)
        y.square().sum().backward()
        gradients.append(
            [y.detach(), *(p.grad for name, p in module.named_parameters() if "bias" not in name)]
        )
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(RuntimeError, match=r"channels"):
        traced(torch.zeros(1, 4, side, side, device=DEVICE))


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("name", NAMES)
def test_scripts_can_be_saved(name: str, impl: str, tmp_path: Path) -> None:
    net = _small(name, impl).eval()
    scripted = _loaded(torch.jit.script(net), tmp_path / "net.pt")
    x = torch.randn(2, 3, 32, 32, device=DEVICE)
    set_impl(net, "reference")
    assert torch.equal(net(x), scripted(x))
    assert type(net) is type(_small(name, impl)), "scripting must not change the network"


def test_all_variants_can_be_scripted() -> None:
    x = torch.randn(1, 3, 16, 16)
    for arguments in (
        {"upsample": "resize", "padding_type": "replicate", "use_dropout": True},
        {"norm": "batch", "padding_type": "zero"},
        {"affine": True},
        {"downsample": "antialias", "upsample": "antialias"},
    ):
        net = Generator(ngf=2, n_blocks=1, impl="reference", **arguments).eval()
        assert torch.equal(net(x), torch.jit.script(net)(x))
    half = Generator(ngf=2, n_blocks=1, impl="reference").bfloat16()
    assert torch.equal(half(x.bfloat16()), torch.jit.script(half)(x.bfloat16()))


def test_scripts_cannot_use_the_kernels() -> None:
    for net in (_small("Generator", "triton"), InstanceNormAct(3, impl="triton")):
        with pytest.raises(ValueError, match=r"torch\.jit\.script cannot use the kernels: set impl='auto'"):
            torch.jit.script(net)
    norm = InstanceNormAct(3, affine=True, act="leaky_relu", slope=0.1).double()
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    for residual in (None, torch.randn_like(x)):
        torch.testing.assert_close(torch.jit.script(norm)(x, residual), norm(x, residual))
