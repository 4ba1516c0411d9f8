"""Tests of the drop-in blocks, compared with plain ones that share no code with them."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcyclegan import UnetGenerator, compat, reference
from fastcyclegan.nn.chains import Chain, UnetBlock
from fastcyclegan.testing import assert_parity

INSTANCE = compat.get_norm_layer("instance")
NORMS: list[Any] = [
    INSTANCE,
    nn.BatchNorm2d,
    functools.partial(nn.GroupNorm, 2),
    compat.get_norm_layer("none"),
]


class PlainResnetBlock(nn.Module):
    def __init__(self, dim: int, padding: str, norm: Any, dropout: bool, bias: bool) -> None:
        super().__init__()
        pads = {"reflect": [nn.ReflectionPad2d(1)], "replicate": [nn.ReplicationPad2d(1)], "zero": []}

        def half() -> list[nn.Module]:
            conv = nn.Conv2d(dim, dim, 3, padding=1 if padding == "zero" else 0, bias=bias)
            return [*copy.deepcopy(pads[padding]), conv, norm(dim)]

        layers = [*half(), nn.ReLU(), *([nn.Dropout(0.5)] if dropout else []), *half()]
        self.conv_block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class PlainLevel(nn.Module):
    """A level of a U-Net whose skip carries LeakyReLU(x), which the official code computes in place."""

    def __init__(
        self, outer: int, inner: int, input_nc: int, below: nn.Module | None, **options: Any
    ) -> None:
        super().__init__()
        norm, bias = options["norm"], options["norm"] is INSTANCE
        self.outermost = options.get("outermost", False)
        down = nn.Conv2d(input_nc, inner, 4, 2, 1, bias=bias)
        up = nn.ConvTranspose2d(
            inner if below is None else 2 * inner, outer, 4, 2, 1, bias=bias or self.outermost
        )
        layers: list[nn.Module] = [down]
        if not self.outermost:
            layers = [nn.LeakyReLU(0.2), down]
            layers += [] if below is None else [norm(inner)]
        layers += [] if below is None else [below]
        layers += [nn.ReLU(), up, nn.Tanh() if self.outermost else norm(outer)]
        if options.get("dropout"):
            layers.append(nn.Dropout(0.5))
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        if self.outermost:
            return self.model(x)
        return torch.cat([F.leaky_relu(x, 0.2), self.model(x)], 1)


def check_equal(ours: nn.Module, plain: nn.Module, x: Tensor) -> None:
    """Check that both modules have equal keys and weights, and the same outputs and gradients for x."""
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))
    ours, plain, results = ours.double(), plain.double(), []
    for net in (ours, plain):
        source = x.double().requires_grad_()
        torch.manual_seed(7)  # for dropout
        y = net(source)
        upstream = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(8))
        results.append([y, *torch.autograd.grad(y, [source, *net.parameters()], upstream)])
    for found, wanted in zip(*results, strict=True):
        # The biases that a norm cancels get no gradient here, and rounding errors in the plain block.
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("padding", "dropout", "bias"),
    list(itertools.product(reference.PADDING_TYPES, [False, True], [False, True])),
)
@pytest.mark.parametrize("norm", NORMS)
def test_resnet_block_equals_a_plain_one(padding: str, dropout: bool, bias: bool, norm: Any) -> None:
    torch.manual_seed(0)
    ours = compat.ResnetBlock(4, padding, norm, dropout, bias)
    torch.manual_seed(0)
    plain = PlainResnetBlock(4, padding, norm, dropout, bias)
    check_equal(ours, plain, torch.randn(2, 4, 6, 5))
    assert isinstance(ours.conv_block, Chain)


def levels(
    build: Callable[..., nn.Module], norm: Any, dropout: bool = False, output_nc: int = 3
) -> nn.Module:
    """Return a U-Net of three levels, made by ``build``."""
    inner = build(4, 8, None, None, innermost=True, norm_layer=norm)
    middle = build(2, 4, None, inner, norm_layer=norm, use_dropout=dropout)
    return build(output_nc, 2, 3, middle, outermost=True, norm_layer=norm)


def plain_level(
    outer: int, inner: int, input_nc: int | None, below: nn.Module | None, **options: Any
) -> nn.Module:
    return PlainLevel(
        outer,
        inner,
        outer if input_nc is None else input_nc,
        below,
        norm=options["norm_layer"],
        outermost=options.get("outermost", False),
        dropout=options.get("use_dropout", False),
    )


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_nested_unet_levels_equal_plain_ones(norm: Any, dropout: bool) -> None:
    torch.manual_seed(0)
    ours = levels(compat.UnetSkipConnectionBlock, norm, dropout)
    torch.manual_seed(0)
    plain = levels(plain_level, norm, dropout)
    check_equal(ours, plain, torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("kind", ["innermost", "middle", "with its own input", "outermost without input_nc"])
def test_one_unet_level_equals_a_plain_one(kind: str) -> None:
    """A project may use a level alone. Its skip then carries what the official LeakyReLU leaves there."""
    input_nc = 5 if kind == "with its own input" else None
    below = None if kind == "innermost" else nn.Conv2d(6, 12, 1)
    options = {"norm_layer": INSTANCE, "outermost": kind.startswith("outermost")}
    torch.manual_seed(0)
    ours = compat.UnetSkipConnectionBlock(
        4, 6, input_nc, copy.deepcopy(below), innermost=below is None, **options
    )
    torch.manual_seed(0)
    plain = plain_level(4, 6, input_nc, copy.deepcopy(below), **options)
    x = torch.randn(2, 4 if input_nc is None else input_nc, 16, 16)
    before = x.clone()
    check_equal(ours, plain, x)
    assert torch.equal(x, before)


def test_the_innermost_level_ignores_its_submodule() -> None:
    block = compat.UnetSkipConnectionBlock(4, 4, submodule=nn.Conv2d(4, 8, 1), innermost=True)
    assert not any(
        isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) for module in block.modules()
    )


@pytest.mark.parametrize("impl", ["auto", "triton"])
def test_the_kernels_compute_nested_blocks(impl: str) -> None:
    """Blocks in chains and in torch's own Sequential are as exact as PyTorch's operators."""
    torch.manual_seed(0)
    build = functools.partial(compat.UnetSkipConnectionBlock, norm_layer=INSTANCE, impl=impl)
    unet = build(2, 2, 3, build(2, 3, innermost=True), outermost=True)
    block = compat.ResnetBlock(2, "reflect", INSTANCE, False, True, impl=impl)
    net = nn.Sequential(unet, nn.Sequential(block))
    x = torch.randn(1, 3, 16, 16)
    plain = copy.deepcopy(net)
    for module in plain.modules():
        if isinstance(module, Chain):
            module.impl = "reference"
    exact = copy.deepcopy(plain).double()
    gradients, weight = [], "0.model.1.model.1.weight"
    for each, source in ((net, x), (plain, x), (exact, x.double())):
        each(source).square().sum().backward()
        gradients.append(each.get_parameter(weight).grad)
    with torch.no_grad():
        assert_parity("the blocks", net(x), plain(x), exact(x.double()), torch.float32)
    assert_parity("a gradient", *gradients, torch.float32)


def test_levels_nest_into_our_own_unet() -> None:
    torch.manual_seed(0)
    net = UnetGenerator(ngf=2, num_downs=5).double()
    wanted = copy.deepcopy(net)
    inner = net.model.model[1]
    block = compat.UnetSkipConnectionBlock(2, 4, submodule=inner.model[3], norm_layer=INSTANCE).double()
    block.load_state_dict(inner.state_dict())
    net.model.model[1] = block
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(net(x), wanted(x), rtol=1e-12, atol=1e-12)
    around = UnetBlock(3, 2, block, "instance", input_nc=3, outermost=True).double()
    around.load_state_dict(wanted.model.state_dict())
    torch.testing.assert_close(around(x), wanted(x), rtol=1e-12, atol=1e-12)


def test_a_nested_level_is_fused_like_our_own() -> None:
    """The chain around a level hands it activated values, so no pass of its own applies the LeakyReLU."""
    net = levels(compat.UnetSkipConnectionBlock, INSTANCE)
    calls = []
    skip = compat.UnetSkipConnectionBlock.skip
    for module in net.modules():
        if isinstance(module, compat.UnetSkipConnectionBlock):
            module.skip = lambda x, block=module: calls.append(block) or skip(block, x)  # type: ignore[method-assign]
    for chain in net.modules():
        if isinstance(chain, Chain):
            chain.impl = "triton"
    net(torch.randn(1, 3, 16, 16))
    assert not calls


@pytest.mark.parametrize("block", ["resnet", "unet"])
def test_blocks_are_scripted_copied_and_pickled(block: str) -> None:
    if block == "resnet":
        net: nn.Module = compat.ResnetBlock(3, "reflect", INSTANCE, False, True)
    else:
        net = levels(compat.UnetSkipConnectionBlock, INSTANCE)
    x = torch.randn(1, 3, 16, 16)
    for other in (copy.deepcopy(net), torch.jit.script(net)):
        torch.testing.assert_close(other(x), net(x))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: compat.ResnetBlock(4, "same", INSTANCE, False, True),
            NotImplementedError,
            "padding_type must be one of reflect, replicate, zero, got 'same'",
        ),
        (lambda: compat.UnetSkipConnectionBlock(4, 4), ValueError, "submodule is missing"),
        (
            lambda: compat.UnetSkipConnectionBlock(4, 4, outermost=True, innermost=True),
            ValueError,
            "submodule is missing",
        ),
        (
            lambda: compat.ResnetBlock(4, "zero", INSTANCE, False, True, impl="fast"),
            ValueError,
            "impl must be",
        ),
    ],
)
def test_wrong_arguments(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
