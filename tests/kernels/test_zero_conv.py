"""zero_conv against plain PyTorch in float64: every kind of layer, forward and every gradient, and what
PyTorch expects of an operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastcyclegan.devtools.dry_run import dry_run
from fastcyclegan.kernels import accumulating
from fastcyclegan.kernels.zero_conv import serves, zero_conv, zero_conv_ref
from fastcyclegan.testing import assert_parity, assert_same_bits, captured_graph, relative_error, tf32

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


pytestmark = pytest.mark.usefixtures("no_tf32")


@dataclass(frozen=True)
class Case:
    why: str
    shape: tuple[int, int, int, int]
    out: int
    kernel: int = 3
    stride: int = 2
    padding: int = 1
    up: int | None = None  # output_padding of a transposed convolution
    P: int = 1
    bias: bool = False
    act: str | None = None  # None: no norm either
    dtypes: tuple[torch.dtype, ...] = (FP32,)

    @property
    def options(self) -> dict[str, Any]:
        norm = {} if self.act is None else {"norm": True, "act": self.act, "slope": 0.1}
        up = {} if self.up is None else {"transposed": True, "output_padding": self.up}
        return {"stride": self.stride, "padding": self.padding, **norm, **up}


# The interpreter's tiles are 32 pixels, 32 output channels and 64 input channels, or a quarter of a larger
# size; weight gradients are of 64 pixels a step, in two splits. Interior points of kernel x stride x padding
# are left out: taps and phases are counted alike for all.
CASES = [
    Case("down, two weights, two images each", (4, 12, 6, 8), 20, P=2, bias=True, dtypes=(FP32, FP16)),
    Case("down, with the norm, odd sides", (2, 20, 7, 9), 12, P=2, act="relu", dtypes=(FP32, FP16)),
    Case("down, several tiles each way, the last of each in part", (1, 70, 13, 19), 40, bias=True),
    Case("down, a wide picture: steps of a weight gradient side by side", (2, 9, 3, 150), 10),
    Case("up, two weights, with the norm", (2, 20, 4, 5), 12, up=1, P=2, act="relu", dtypes=(FP32, FP16)),
    Case("up, two weights, two images each", (4, 12, 3, 4), 9, up=1, P=2, bias=True),
    Case("up, no output_padding: the phases differ in size", (1, 40, 9, 10), 70, up=0),
    Case(
        "PatchGAN's first: from pictures of three channels",
        (2, 3, 10, 8),
        16,
        4,
        P=2,
        bias=True,
        dtypes=(FP32, FP16),
    ),
    Case("PatchGAN's first: one channel, odd sides", (2, 1, 9, 7), 12, 4, bias=True),
    Case(
        "PatchGAN's middle, with the norm", (2, 16, 8, 10), 24, 4, P=2, act="leaky_relu", dtypes=(FP32, FP16)
    ),
    Case(
        "PatchGAN's last but one: stride 1 of an even kernel", (2, 12, 6, 5), 20, 4, 1, P=2, act="leaky_relu"
    ),
    Case(
        "PatchGAN's last: to one channel",
        (4, 20, 6, 5),
        1,
        4,
        1,
        P=2,
        bias=True,
        act="leaky_relu",
        dtypes=(FP32, FP16),
    ),
    Case(
        "the narrowest generator: four channels up to eight, after a norm", (2, 4, 8, 6), 8, P=2, act="relu"
    ),
    Case("the narrowest generator: eight channels down to four, up", (2, 8, 3, 4), 4, up=1, P=2, act="relu"),
    Case("nine channels: past what a picture may have", (1, 9, 6, 6), 8),
    Case("to one channel at stride 2: no short cut", (1, 12, 6, 6), 1, bias=True),
    Case("to three channels, no padding: nothing to embed", (1, 12, 5, 6), 3, 3, 1, 0),
    Case("to three channels, padding = kernel - 1: the gradient has no margin", (1, 12, 5, 4), 3, 4, 1, 3),
    Case("from a picture to a picture", (1, 3, 5, 4), 4, 3, 1),
    Case("one by one: phases without a tap", (1, 12, 5, 4), 9, 1, 2, 0, bias=True),
    Case("one by one up, one column: a phase without a pixel", (1, 12, 3, 1), 9, 1, 2, 0, up=0, bias=True),
    Case("seven by seven, padding 6, more taps than pixels", (1, 9, 3, 4), 10, 7, 2, 6),
    Case("stride 2, unpadded: the last line and column are not read", (1, 10, 8, 6), 9, 3, 2, 0),
    Case("transposed at stride 1, two by two", (1, 10, 5, 4), 12, 2, 1, 1, up=0),
]
# For what does not depend on sizes: each route once.
DOWN = Case("down", (2, 9, 4, 5), 10, P=2, bias=True)
UP = Case("up, with the norm", (2, 10, 3, 2), 9, up=1, P=2, act="relu")
FIRST = Case("from pictures", (2, 3, 4, 5), 9, 4, P=2, bias=True)
LAST = Case("to pictures, with the norm", (2, 9, 4, 3), 1, 4, 1, P=2, bias=True, act="leaky_relu")
ROUTES = [DOWN, UP, FIRST, LAST]


def operands(
    case: Case, device: str, dtype: torch.dtype = FP32
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    """Return x, the weights, the biases and an upstream gradient."""
    torch.manual_seed(0)
    C, k = case.shape[1], case.kernel
    shape = (C, case.out, k, k) if case.up is not None else (case.out, C, k, k)
    x = torch.randn(case.shape, device=device).contiguous(memory_format=torch.channels_last).to(dtype)
    weights = [torch.randn(shape, device=device).to(dtype) for _ in range(case.P)]
    biases = [torch.randn(case.out, device=device).to(dtype) for _ in range(case.P)] if case.bias else []
    meta = zero_conv_ref(x.to("meta"), [w.to("meta") for w in weights], [], **case.options)
    return (
        x,
        weights,
        biases,
        torch.randn(meta.shape, device=device).contiguous(memory_format=torch.channels_last).to(dtype),
    )


def results(
    run: Any, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], dy: Tensor
) -> dict[str, Tensor]:
    """Return y and all gradients by ``run``."""
    x, weights, biases = (
        x.detach().requires_grad_(),
        *([t.detach().requires_grad_() for t in ts] for ts in (weights, biases)),
    )
    y = run(x, weights, biases)
    y.backward(dy)
    gradients = {
        f"{name}[{i}]": t.grad
        for name, ts in (("dweight", weights), ("dbias", biases))
        for i, t in enumerate(ts)
    }
    return {"y": y.detach(), "dx": x.grad, **gradients}


def ours(case: Case, recompute: bool = True) -> Any:
    return lambda x, weights, biases: zero_conv(x, weights, biases, **case.options, recompute=recompute)


def theirs(case: Case) -> Any:
    return lambda x, weights, biases: zero_conv_ref(x, weights, biases, **case.options)


def check(case: Case, device: str, dtype: torch.dtype, recompute: bool = True) -> None:
    x, weights, biases, dy = operands(case, device, dtype)
    found = results(ours(case, recompute), x, weights, biases, dy)
    other = results(theirs(case), x, weights, biases, dy)
    truth = results(
        theirs(case), x.double(), [w.double() for w in weights], [b.double() for b in biases], dy.double()
    )
    for name, result in found.items():
        assert_parity(name, result, other[name], truth[name], dtype)
    assert all(found[name].is_contiguous(memory_format=torch.channels_last) for name in ("y", "dx"))


@pytest.mark.parametrize(
    ("case", "dtype"), [pytest.param(c, d, id=f"{c.why}-{d}") for c in CASES for d in c.dtypes]
)
def test_equals_float64(case: Case, dtype: torch.dtype, device: str) -> None:
    check(case, device, dtype)


@pytest.mark.parametrize("case", [UP, LAST], ids=lambda c: c.why)
def test_y_may_be_kept(case: Case, device: str) -> None:
    """The same bits as where it is recomputed, and no other memory than the contract names."""
    tensors = operands(case, device)
    once, kept = (results(ours(case, recompute), *tensors) for recompute in (True, False))
    assert all(torch.equal(once[name], kept[name]) for name in once)
    x, weights, biases, _ = tensors
    for recompute in (True, False):
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: saved.append(t) or t, lambda t: t
        ):
            ours(case, recompute)(x, [w.requires_grad_() for w in weights], biases)
        vectors = [x.shape[0] * x.shape[1]] * 2
        wanted = [
            x.numel(),
            *vectors,
            *(t.numel() for t in (*weights, *biases)),
            *([] if recompute else [x.numel()]),
        ]
        assert sorted(t.numel() for t in saved if t.numel()) == sorted(wanted)


def test_reference_is_torchs_own_layers() -> None:
    x, options = torch.randn(2, 3, 6, 7), {"stride": 2, "padding": 1}
    down = torch.nn.Conv2d(3, 4, 4, **options)
    up = torch.nn.ConvTranspose2d(3, 4, 3, output_padding=1, **options)
    torch.testing.assert_close(zero_conv_ref(x, [down.weight], [down.bias], **options), down(x))
    torch.testing.assert_close(
        zero_conv_ref(x, [up.weight], [up.bias], transposed=True, output_padding=1, **options), up(x)
    )
    y = down(F.relu(F.instance_norm(x)))
    torch.testing.assert_close(
        zero_conv_ref(x, [down.weight], [down.bias], norm=True, act="relu", **options), y
    )


# --- Weights and their gradients ----------------------------------------------------------------------------


def counted(run: Any) -> dict[str, int]:
    with dry_run() as dry:
        run()
    return {
        name.strip("_").removeprefix("zero_conv_").removesuffix("_kernel"): count
        for name, count in dry.counts.launches.items()
    }


# Forward and backward without norm; the input gradient of each is the third, and each weight gradient is the
# last two.
LAUNCHES = [
    (DOWN, {"gather": 1}, {"scatter": 1, "wgrad": 1, "reflect_conv_wgrad_sum": 1}),
    (UP, {"scatter": 1}, {"gather": 1, "wgrad": 1, "reflect_conv_wgrad_sum": 1}),
    (FIRST, {"embed": 1, "gather": 1}, {"embed": 1, "scatter": 1, "wgrad": 1, "reflect_conv_wgrad_sum": 1}),
    (
        LAST,
        {"embed": 1, "reflect_conv_contract": 1},
        {"embed": 1, "reflect_conv": 1, "wgrad": 1, "reflect_conv_wgrad_sum": 1},
    ),
]


@pytest.mark.parametrize(("case", "forward", "backward"), LAUNCHES, ids=[c[0].why for c in LAUNCHES])
def test_two_networks_in_one_launch(case: Case, forward: dict[str, int], backward: dict[str, int]) -> None:
    """As many launches for two weights as for one; the norm's own come on top."""
    x, weights, biases, dy = operands(case, "cpu")
    x = x.requires_grad_()
    weights = [w.requires_grad_() for w in weights]
    biases = [b.requires_grad_() for b in biases]
    for count in (1, 2):
        y: list[Tensor] = []
        first = counted(lambda y=y, n=count: y.append(ours(case)(x, weights[:n], biases[:n])))
        second = counted(lambda y=y: y[0].backward(dy))
        assert {k: v for k, v in first.items() if "norm" not in k} == forward
        assert {k: v for k, v in second.items() if "norm" not in k} == backward
        assert (
            any("norm" in name for name in first)
            == any("norm" in name for name in second)
            == (case.act is not None)
        )


@pytest.mark.parametrize("case", ROUTES, ids=lambda c: c.why)
def test_what_is_frozen_costs_nothing(case: Case, device: str) -> None:
    """And changes nothing for the others: each weight, x, and all weights in turn."""
    x, weights, biases, dy = operands(case, device)
    whole = results(ours(case), x, weights, biases, dy)
    for frozen in (0, 1):
        leaves = [w.detach().requires_grad_(i != frozen) for i, w in enumerate(weights)]
        ours(case)(x, leaves, biases).backward(dy)
        assert leaves[frozen].grad is None
        # Another number of weights may be split otherwise.
        assert relative_error(leaves[1 - frozen].grad, whole[f"dweight[{1 - frozen}]"]) < 1e-6
    alone = x.detach().requires_grad_()
    ours(case)(alone, weights, biases).backward(dy)
    assert torch.equal(alone.grad, whole["dx"])
    names = counted(lambda: ours(case)(x.detach().requires_grad_(), weights, biases).backward(dy))
    assert "wgrad" not in names
    leaf = [b.detach().requires_grad_() for b in biases]
    if leaf:
        assert set(counted(lambda: ours(case)(x, weights, leaf).backward(dy))) == set(
            counted(lambda: ours(case)(x, weights, leaf))
        )


@pytest.mark.parametrize("needs", [[True, False, True], [False, True, True]])
def test_runs_of_weights(needs: Sequence[bool], device: str) -> None:
    """Neighbours that need a gradient are one product."""
    case = Case("", (3, 9, 4, 5), 10, P=3)
    x, weights, _, dy = operands(case, device)
    whole = results(theirs(case), x, weights, [], dy)
    leaves = [w.requires_grad_(need) for w, need in zip(weights, needs, strict=True)]
    wanted = [w for w in leaves if w.requires_grad]
    assert counted(lambda: torch.autograd.grad(ours(case)(x, leaves, []), wanted, dy))["wgrad"] == (
        2 if needs[0] else 1
    )
    found = torch.autograd.grad(ours(case)(x, leaves, []), wanted, dy)
    truth = [whole[f"dweight[{i}]"] for i in range(3) if needs[i]]
    assert all(relative_error(a, b) < 1e-6 for a, b in zip(found, truth, strict=True))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("case", [DOWN, UP, LAST], ids=lambda c: c.why)
def test_a_second_backward_adds_in_place(case: Case, layout: torch.memory_format, device: str) -> None:
    """Where it is asked to; as autograd's own addition, and without one. The gradients lie as their weights,
    without a copy.
    """
    x, weights, biases, dy = operands(case, device)
    once = results(ours(case), x, weights, biases, dy)
    leaves = [w.contiguous(memory_format=layout).requires_grad_() for w in weights]
    for _ in range(2):
        y = ours(case)(x, leaves, biases)
        addresses = [w.grad.data_ptr() if w.grad is not None else None for w in leaves]
        with accumulating(), torch.profiler.profile() as profile:
            y.backward(dy)
    assert [w.grad.data_ptr() for w in leaves] == addresses
    assert len({w.grad.untyped_storage().data_ptr() for w in leaves}) == 1
    assert not any(event.key == "aten::add_" for event in profile.key_averages())
    for i, w in enumerate(leaves):
        torch.testing.assert_close(w.grad, 2 * once[f"dweight[{i}]"])
        assert w.grad.stride() == w.stride()


def test_gradients_far_apart_are_added_one_by_one(device: str) -> None:
    """Each ``.grad`` a memory of its own, as networks that were zeroed by themselves have them; one of the
    weights is frozen.
    """
    case = Case("", (3, 9, 4, 5), 10, P=3)
    x, weights, _, dy = operands(case, device)
    once = results(ours(case), x, weights, [], dy)
    leaves = [w.requires_grad_(i != 0) for i, w in enumerate(weights)]
    for w in leaves[1:]:
        w.grad = torch.ones_like(w)
    with accumulating():
        ours(case)(x, leaves, []).backward(dy)
    for i in (1, 2):
        torch.testing.assert_close(leaves[i].grad, 1 + once[f"dweight[{i}]"])


@pytest.mark.parametrize("case", [DOWN, LAST], ids=lambda c: c.why)
def test_fp32_weights_for_16_bits_are_rounded_inside(case: Case, device: str) -> None:
    """The result and the gradient of the rounded weight; the gradient itself in fp32."""
    x, weights, biases, dy = operands(case, device)
    x, dy = x.half(), dy.half()
    wide = results(ours(case), x, weights, biases, dy)
    narrow = results(ours(case), x, [w.half() for w in weights], [b.half() for b in biases], dy)
    assert torch.equal(wide["dx"], narrow["dx"])
    assert wide["dweight[1]"].dtype == wide["dbias[0]"].dtype == FP32
    torch.testing.assert_close(wide["dweight[1]"].half(), narrow["dweight[1]"])


# --- What PyTorch expects of an operator --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "recompute"),
    [(case, True) for case in ROUTES] + [(UP, False)],
    ids=lambda v: getattr(v, "why", f"recompute={v}"),
)
def test_opcheck(case: Case, recompute: bool, device: str) -> None:
    x, weights, biases, dy = operands(case, device)
    conv, norm = (case.stride, case.padding, case.up is not None), (1e-5, case.act or "none", 0.1)
    leaves = [[t.requires_grad_() for t in ts] for ts in (weights, biases)]
    arguments = (
        x.requires_grad_(),
        *leaves,
        *conv,
        case.up or 0,
        case.act is not None,
        *norm,
        recompute,
        True,
    )
    torch.library.opcheck(torch.ops.fastcyclegan.zero_conv_fwd, arguments)
    with torch.no_grad():
        _, mean, rstd, y = torch.ops.fastcyclegan.zero_conv_fwd(*arguments)
    saved = (dy, x.detach(), mean, rstd, [w.detach() for w in weights], y)
    # The input's gradient is not wanted where y is kept.
    needs = [recompute, bool(biases), False, True]
    torch.library.opcheck(torch.ops.fastcyclegan.zero_conv_bwd, (*saved, *conv, *norm, needs, True))


def test_compiles_whole_and_keeps_strides(device: str) -> None:
    """The route with most launches, to three channels: with one, strides say nothing."""
    case = replace(LAST, out=3)
    tensors = operands(case, device)
    eager = results(ours(case), *tensors)
    compiled = results(
        torch.compile(lambda x, w, b: ours(case)(x * 1, w, b).mul(1), fullgraph=True), *tensors
    )
    for name, result in eager.items():
        torch.testing.assert_close(compiled[name], result)
        assert compiled[name].stride() == result.stride()


@pytest.mark.parametrize("kind", ["planes", "cut out", "expanded gradient"])
def test_any_layout(kind: str, device: str) -> None:
    x, weights, biases, dy = operands(DOWN, device)
    if kind == "expanded gradient":
        dy = torch.ones(1, device=device).expand(dy.shape)
    wanted = results(ours(DOWN), x, weights, biases, dy.clone(memory_format=torch.contiguous_format))
    if kind == "planes":
        x, dy = x.contiguous(), dy.contiguous()
    elif kind == "cut out":
        x = torch.cat([x, x], 3).contiguous()[..., :5]
    found = results(ours(DOWN), x, weights, biases, dy)
    assert all(torch.equal(result, wanted[name]) for name, result in found.items())


@pytest.mark.parametrize("case", ROUTES, ids=lambda c: c.why)
def test_same_bits_twice_and_alone(case: Case, device: str) -> None:
    """Nothing depends on the order in which programs run, nor an image on its neighbours."""
    tensors = operands(case, device)
    first, second = (results(ours(case), *tensors) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    x, weights, biases, dy = tensors
    x = x.clone(memory_format=torch.channels_last)
    x[0] = float("nan")
    found = results(ours(case), x, weights, biases, dy)
    assert torch.equal(found["y"][1:], first["y"][1:])
    assert torch.equal(found["dweight[1]"], first["dweight[1]"])


def test_pixels_that_no_tap_reaches_are_not_read(device: str) -> None:
    """Stride 2 leaves out the last line and column of even sides; a step's pixels past the picture would read
    them.
    """
    case = next(case for case in CASES if case.why.startswith("stride 2, unpadded"))
    x, weights, _, dy = operands(case, device)
    wanted = results(ours(case), x, weights, [], dy)
    x[:, :, -1], x[:, :, :, -1] = float("nan"), float("nan")
    found = results(ours(case), x, weights, [], dy)
    assert all(torch.equal(result, wanted[name]) for name, result in found.items())
    assert not found["dx"][:, :, -1].any()


@pytest.mark.parametrize("case", ROUTES, ids=lambda c: c.why)
def test_no_images(case: Case, device: str) -> None:
    x, weights, biases, dy = operands(case, device)
    found = results(ours(case), x[:0], weights, biases, dy[:0])
    assert found["y"].shape == (0, *dy.shape[1:])
    assert found["dx"].shape == (0, *x.shape[1:])
    assert not any(result.any() for name, result in found.items() if "[" in name)


def test_double_backward_is_refused(device: str) -> None:
    x, weights, biases, _ = operands(DOWN, device)
    (grad,) = torch.autograd.grad(
        ours(DOWN)(x.requires_grad_(), weights, biases).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match=r"zero_conv: the Triton kernels have no double backward"):
        grad.sum().backward()


# --- Bad input ----------------------------------------------------------------------------------------------

X, W = torch.zeros(2, 3, 4, 4), torch.zeros(5, 3, 3, 3)
WRONG = [
    (("x", [W]), {}, TypeError, "zero_conv: x must be a tensor, got str"),
    ((X.int(), [W.int()]), {}, TypeError, "zero_conv: x must be floating point, got torch.int32"),
    ((X.double(), [W.double()]), {}, TypeError, "x must be float32, bfloat16 or float16, got torch.float64"),
    ((X[0], [W]), {}, ValueError, r"x must be \[N, C, H, W\], got shape \(3, 4, 4\)"),
    ((X, []), {}, ValueError, "as many images as there are weights, got 2 for 0"),
    ((X, [W] * 3), {}, ValueError, "as many images as there are weights, got 2 for 3"),
    (
        (X, [W, W[:4]]),
        {},
        ValueError,
        r"the tensors in weight must have one shape, got \[5, 3, 3, 3\] and \[4, 3, 3, 3\]",
    ),
    ((X, [W.half()]), {}, TypeError, "weight must be torch.float32 .* all alike, got torch.float16"),
    (
        (X.half(), [W, W.half()]),
        {},
        TypeError,
        "weight must be torch.float16 .* all alike, got torch.float16",
    ),
    ((X, [W.to("meta")]), {}, ValueError, "weight must be on the device of x, cpu, got meta"),
    ((X, [W[:, :2]]), {}, ValueError, r"weight must be \[O, 3, k, k\], .* got \[5, 2, 3, 3\], 2, 1 and 0"),
    ((X, [W]), {"transposed": True}, ValueError, r"weight must be \[3, O, k, k\], .* got \[5, 3, 3, 3\]"),
    ((X, [torch.zeros(5, 3, 8, 8)]), {}, ValueError, r"k at most 7, .* got \[5, 3, 8, 8\]"),
    ((X, [W]), {"stride": 3}, ValueError, r"a stride of 1 or 2, .* got .*, 3, 1 and 0"),
    ((X, [W]), {"padding": 3}, ValueError, r"a padding below k .* got .*, 2, 3 and 0"),
    ((X, [W]), {"output_padding": 1}, ValueError, r"an output_padding below the stride, got .*, 2, 1 and 1"),
    (
        (X, [torch.zeros(5, 3, 7, 7)]),
        {},
        ValueError,
        r"x must be no smaller than the kernel, got shape \(2, 3, 4, 4\)",
    ),
    ((X, [W], [torch.zeros(4)]), {}, ValueError, r"bias must be 1 tensors \[5\] or none, got 1 of \[4\]"),
    ((X, [W, W], [torch.zeros(5)]), {}, ValueError, r"bias must be 2 tensors \[5\] or none, got 1 of \[5\]"),
    (
        (X, [W], [torch.zeros(5, dtype=FP16)]),
        {},
        TypeError,
        "bias must be torch.float32 .* got torch.float16",
    ),
    (
        (X, [W]),
        {"norm": True, "act": "gelu"},
        ValueError,
        "act must be one of none, relu, leaky_relu, and none without norm, got 'gelu'",
    ),
    ((X, [W]), {"act": "relu"}, ValueError, "act must be one of .* and none without norm, got 'relu'"),
    (
        (X[:, :, :1, :1], [W]),
        {"norm": True},
        ValueError,
        "Expected more than 1 spatial element when training",
    ),
]


@pytest.mark.parametrize(("arguments", "options", "error", "message"), WRONG, ids=[w[3][:40] for w in WRONG])
def test_bad_input_is_named(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = arguments if len(arguments) == 3 else (*arguments, [])
    with pytest.raises(error, match=message):
        zero_conv(*given, **{"stride": 2, "padding": 1, **options})


def test_what_is_served() -> None:
    """Every layer of the networks that is not reflection-padded, at any width; none that the kernels would
    compute wrongly.
    """
    assert all(serves(c, (2 * c, c, 3, 3), 2, 1, False, 0) for c in (4, 64, 128))
    assert all(serves(c, (c, c // 2, 3, 3), 2, 1, True, 1) for c in (4, 256, 128))
    assert all(
        serves(c, (o, c, 4, 4), s, 1, False, 0)
        for c, o, s in ((1, 64, 2), (3, 64, 2), (256, 512, 1), (512, 1, 1))
    )
    wrong = [
        (4, (8, 2, 3, 3), 2, 1, False, 0), (4, (8, 4, 3, 4), 2, 1, False, 0),
        (4, (8, 4, 3, 3), 3, 1, False, 0),
        (4, (8, 4, 3, 3), 2, 3, False, 0), (4, (8, 4, 9, 9), 1, 4, False, 0),
        (4, (4, 8, 3, 3), 1, 1, True, 1),
        (4, (8, 4, 3, 3), 2, 1, False, 1), (4, (8, 4, 3), 1, 1, False, 0), (0, (8, 0, 3, 3), 1, 1, False, 0),
    ]  # fmt: skip
    assert not any(serves(*arguments) for arguments in wrong)


# --- On a GPU -----------------------------------------------------------------------------------------------

REAL = [
    Case("down", (4, 64, 256, 256), 128, P=2, act="relu"),
    Case("down again", (2, 128, 128, 128), 256, P=2, act="relu"),
    Case("up", (2, 256, 64, 64), 128, up=1, P=2, act="relu"),
    Case("up again", (4, 128, 128, 128), 64, up=1, P=2, act="relu"),
    Case("first", (4, 3, 256, 256), 64, 4, P=2, bias=True),
    Case("first, of one channel", (2, 1, 256, 256), 64, 4, P=2, bias=True),
    Case("second", (2, 64, 128, 128), 128, 4, P=2),
    Case("third", (4, 128, 64, 64), 256, 4, P=2, act="leaky_relu"),
    Case("fourth", (4, 256, 32, 32), 512, 4, 1, P=2, act="leaky_relu"),
    Case("last", (4, 512, 31, 31), 1, 4, 1, P=2, bias=True, act="leaky_relu"),
    Case("odd sides", (2, 64, 131, 77), 128, P=2, bias=True),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("case", REAL, ids=lambda c: c.why)
def test_real_shapes(case: Case, dtype: torch.dtype) -> None:
    with tf32(True):
        check(case, "cuda", dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("case", [REAL[1], REAL[2], REAL[4], REAL[9]], ids=lambda c: c.why)
def test_ieee_products_on_a_gpu(case: Case) -> None:
    check(case, "cuda", FP32)


@pytest.mark.gpu
@pytest.mark.parametrize("case", [REAL[0], REAL[3], REAL[4], REAL[9]], ids=lambda c: c.why)
def test_graph_replayed_twice_with_new_data(case: Case) -> None:
    x, weights, biases, dy = operands(case, "cuda", BF16)
    leaves = [t.requires_grad_() for t in (x, *weights, *biases)]

    def step() -> tuple[Tensor, ...]:
        y = ours(case)(leaves[0], leaves[1 : case.P + 1], leaves[case.P + 1 :])
        return y, *torch.autograd.grad(y, leaves, dy)

    graph, captured = captured_graph(step)
    for _ in range(2):
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        for got, wanted in zip(captured, step(), strict=True):
            assert_same_bits("replayed", got, wanted)


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements() -> None:
    """Offsets past 32 bits: the last lines of a picture that large equal those lines alone, but for the
    border that they get.
    """
    torch.manual_seed(0)
    x = torch.randn(1, 64, 5900, 5900, device="cuda", dtype=BF16).contiguous(
        memory_format=torch.channels_last
    )
    weight = torch.randn(64, 64, 3, 3, device="cuda", dtype=BF16)
    options: dict[str, Any] = {"stride": 2, "padding": 1}
    y = zero_conv(x, [weight], [], **options)[:, :, -8:]
    torch.testing.assert_close(
        y, zero_conv(x[:, :, -32:], [weight], [], **options)[:, :, -8:], rtol=2**-7, atol=2**-5
    )
    options |= {"transposed": True, "output_padding": 1}
    y = zero_conv(x[:, :, :2950, :2950], [weight], [], **options)[:, :, -8:]
    torch.testing.assert_close(
        y, zero_conv(x[:, :, 2934:2950, :2950], [weight], [], **options)[:, :, -8:], rtol=2**-7, atol=2**-5
    )
