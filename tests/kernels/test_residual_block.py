"""Compare residual_block and all its gradients with plain PyTorch in float64.

Other tests check its launches, the tensors that it saves, and that it is a valid PyTorch operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastcyclegan import reference
from fastcyclegan.devtools.dry_run import dry_run
from fastcyclegan.kernels import accumulating, residual_block, residual_block_ref
from fastcyclegan.testing import assert_parity, assert_same_bits, captured_graph, relative_error, tf32

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


pytestmark = pytest.mark.usefixtures("no_tf32")


@dataclass(frozen=True)
class Case:
    why: str
    shape: tuple[int, int, int, int]
    P: int = 1
    dtypes: tuple[torch.dtype, ...] = (FP32,)


CASES = [
    Case("the smallest map: every pixel is a corner", (1, 16, 2, 2)),
    Case("three lines: one is folded twice", (2, 12, 3, 5), 2, (FP32, FP16)),
    Case("several tiles that begin in the middle of a line", (1, 20, 9, 7), 1, (FP32, FP16, BF16)),
    Case("an image that other kernels hold in one tile, lines that fill tiles", (1, 16, 8, 8)),
    Case("three pairs of weights", (3, 9, 4, 3), 3),
]
SMALL = CASES[1]


def operands(
    case: Case, device: str, dtype: torch.dtype = FP32
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    torch.manual_seed(0)
    C = case.shape[1]
    x, dy = (
        torch.randn(case.shape, device=device).contiguous(memory_format=torch.channels_last).to(dtype)
        for _ in range(2)
    )
    lists = (
        [(torch.randn(C, C, 3, 3, device=device) / 10).to(dtype) for _ in range(case.P)] for _ in range(2)
    )
    return x, *lists, dy


def ours(x: Tensor, weights1: Any, weights2: Any) -> Tensor:
    return residual_block(x, weights1, weights2, impl="triton")


def torchs_own(x: Tensor, weights1: Any, weights2: Any) -> Tensor:
    """Compute the official code's block with PyTorch's operators in the dtype of x.

    The images of each pair of weights are computed separately.
    """

    def norm(y: Tensor) -> Tensor:
        return reference.contiguous_gradient(F.instance_norm(y))

    def one(x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        y = F.relu(norm(F.conv2d(F.pad(x, (1,) * 4, mode="reflect"), w1)))
        return x + norm(F.conv2d(F.pad(y, (1,) * 4, mode="reflect"), w2))

    return torch.cat([one(*share) for share in zip(x.chunk(len(weights1)), weights1, weights2, strict=True)])


def results(
    run: Any, x: Tensor, weights1: Sequence[Tensor], weights2: Sequence[Tensor], dy: Tensor
) -> dict[str, Tensor]:
    x = x.detach().requires_grad_()
    lists = [[w.detach().requires_grad_() for w in ws] for ws in (weights1, weights2)]
    y = run(x, *lists)
    y.backward(dy)
    gradients = {f"dweight{n}[{i}]": w.grad for n, ws in enumerate(lists, 1) for i, w in enumerate(ws)}
    return {"y": y.detach(), "dx": x.grad, **gradients}


def check(case: Case, device: str, dtype: torch.dtype) -> None:
    x, weights1, weights2, dy = operands(case, device, dtype)
    got, baseline = (results(f, x, weights1, weights2, dy) for f in (ours, torchs_own))
    truth = results(
        residual_block_ref,
        x.double(),
        *([w.double() for w in ws] for ws in (weights1, weights2)),
        dy.double(),
    )
    for name, result in got.items():
        assert_parity(name, result, baseline[name], truth[name], dtype)
    assert got["y"].stride() == got["dx"].stride() == x.stride()


@pytest.mark.parametrize(
    ("case", "dtype"), [pytest.param(c, d, id=f"{c.why}-{d}") for c in CASES for d in c.dtypes]
)
def test_equals_float64(case: Case, dtype: torch.dtype, device: str) -> None:
    check(case, device, dtype)


def test_reference_matches_the_official_block() -> None:
    block = reference.ResidualBlock(4, "instance", False, False).double()
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    weights = block.conv_block[1].weight, block.conv_block[5].weight
    torch.testing.assert_close(residual_block(x, *weights, impl="reference"), block(x))


def test_flat_images_and_a_large_offset(device: str) -> None:
    """The block leaves flat images unchanged, in 16 bits too, and keeps parity if x has a large mean.

    Statistics are computed from stored values, so a flat output of a convolution is normalised to exactly 0.
    """
    for dtype in (FP32, FP16):
        x = torch.full((1, 16, 7, 6), 3.7, device=device, dtype=dtype).contiguous(
            memory_format=torch.channels_last
        )
        weight = torch.randn(16, 16, 3, 3, device=device).to(dtype)
        assert torch.equal(residual_block(x, weight, weight, impl="triton"), x)
    torch.manual_seed(0)
    x, weights1, weights2, dy = operands(CASES[2], device)
    x = x + 300
    got, baseline = (results(f, x, weights1, weights2, dy) for f in (ours, torchs_own))
    truth = results(
        residual_block_ref, x.double(), [weights1[0].double()], [weights2[0].double()], dy.double()
    )
    for name in got:
        assert_parity(name, got[name], baseline[name], truth[name], FP32)


# --- Launches and saved tensors -----------------------------------------------------------------------------


def test_launches_and_saved_tensors(device: str) -> None:
    """The block makes 4 launches in the forward and 8 in the backward pass, and saves the expected tensors.

    The backward pass would have 9 launches if each weight gradient had its own product. Here, one product
    computes both.
    """
    x, weights1, weights2, dy = operands(SMALL, device)
    leaves = [w.requires_grad_() for w in (*weights1, *weights2)]
    saved: list[Tensor] = []
    with dry_run() as dry:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            y = residual_block(x.requires_grad_(), weights1, weights2, impl="triton")
        assert dict(dry.counts.launches) == {"_reflect_conv_kernel": 2, "_instance_norm_apply_kernel": 2}
        y.backward(dy)
    assert dry.counts.launches.total() == 4 + 8
    tensors, vectors = [x.numel()] * 3, [x.shape[0] * x.shape[1]] * 4
    assert sorted(t.numel() for t in saved) == sorted([*tensors, *vectors, *(w.numel() for w in leaves)])


def test_frozen_weights_are_skipped(device: str) -> None:
    x, weights1, weights2, dy = operands(SMALL, device)
    whole = results(ours, x, weights1, weights2, dy)
    weights1[0].requires_grad_()
    weights2[1].requires_grad_()
    residual_block(x, weights1, weights2, impl="triton").backward(dy)
    assert weights1[1].grad is None
    # With fewer weights, the sums can be split into other shares, so rounding differs.
    assert relative_error(weights1[0].grad, whole["dweight1[0]"]) < 1e-6
    assert relative_error(weights2[1].grad, whole["dweight2[1]"]) < 1e-6
    with dry_run() as dry:
        frozen = [[w.detach() for w in ws] for ws in (weights1, weights2)]
        residual_block(x.requires_grad_(), *frozen, impl="triton").backward(dy)
    assert dry.counts.launches.total() == 4 + 6
    dx = torch.autograd.grad(residual_block(x, *frozen, impl="triton"), x, dy)[0]
    assert torch.equal(dx, whole["dx"])


def test_gradients_are_not_copied_and_a_second_backward_adds_in_place(device: str) -> None:
    x, weights1, weights2, dy = operands(SMALL, device)
    once = results(ours, x, weights1, weights2, dy)
    lists = [[torch.nn.Parameter(w) for w in ws] for ws in (weights1, weights2)]
    residual_block(x, *lists, impl="triton").backward(dy)
    leaves = [w for ws in lists for w in ws]
    assert len({w.grad.untyped_storage().data_ptr() for w in leaves}) == 1
    addresses = [w.grad.data_ptr() for w in leaves]
    y = residual_block(x, *lists, impl="triton")
    with accumulating(), torch.profiler.profile() as profile:
        y.backward(dy)
    assert not any(event.key == "aten::add_" for event in profile.key_averages())
    assert [w.grad.data_ptr() for w in leaves] == addresses
    for n, ws in enumerate(lists, 1):
        for i, w in enumerate(ws):
            torch.testing.assert_close(w.grad, 2 * once[f"dweight{n}[{i}]"])


# --- As a PyTorch operator ----------------------------------------------------------------------------------


def test_opcheck(device: str) -> None:
    x, weights1, weights2, dy = operands(Case("", (2, 9, 2, 3), 2), device)
    leaves = [[w.requires_grad_() for w in ws] for ws in (weights1, weights2)]
    torch.library.opcheck(
        torch.ops.fastcyclegan.residual_block_fwd, (x.requires_grad_(), *leaves, 1e-5, True)
    )
    with torch.no_grad():
        _, *saved = torch.ops.fastcyclegan.residual_block_fwd(x, *leaves, 1e-5, True)
    plain = [[w.detach() for w in ws] for ws in leaves]
    torch.library.opcheck(
        torch.ops.fastcyclegan.residual_block_bwd,
        (dy, x.detach(), *saved, *plain, [True, True, False, True, True], True),
    )


def test_compiles_to_one_graph_and_keeps_strides(device: str) -> None:
    tensors = operands(SMALL, device)
    eager = results(ours, *tensors)
    compiled = results(torch.compile(lambda x, *ws: ours(x * 1, *ws).mul(1), fullgraph=True), *tensors)
    for name, result in eager.items():
        torch.testing.assert_close(compiled[name], result)
        assert compiled[name].stride() == result.stride()


def test_any_layout_and_autocast(device: str) -> None:
    x, weights1, weights2, dy = operands(SMALL, device)
    expected = results(ours, x, weights1, weights2, dy)
    got = results(ours, x.contiguous(), weights1, weights2, dy.contiguous())
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    with torch.autocast(device, BF16):
        y = residual_block(x, [w.requires_grad_() for w in weights1], weights2, impl="triton")
    assert y.dtype == BF16
    y.backward(dy.to(BF16))
    assert weights1[0].grad.dtype == FP32


def test_functional_call(device: str) -> None:
    block = reference.ResidualBlock(9, "instance", False, False).to(device)

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv_block = block.conv_block

        def forward(self, x: Tensor) -> Tensor:
            return residual_block(x, self.conv_block[1].weight, self.conv_block[5].weight, impl="triton")

    weights = {name: p + 0.1 for name, p in block.state_dict().items()}
    x = torch.randn(1, 9, 3, 4, device=device)
    got, expected = (torch.func.functional_call(net, weights, (x,)) for net in (Block(), block))
    assert relative_error(got, expected) < 1e-5


def test_same_bits_twice_and_alone(device: str) -> None:
    x, weights1, weights2, dy = operands(SMALL, device)
    first, second = (results(ours, x, weights1, weights2, dy) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    x[0] = float("nan")
    got = results(ours, x, weights1, weights2, dy)
    for name in ("y", "dx"):
        assert torch.equal(got[name][1:], first[name][1:])
    # The gradient of a weight does not depend on the images of the other weight.
    assert torch.equal(got["dweight2[1]"], first["dweight2[1]"])


@pytest.mark.parametrize("reentrant", [True, False])
def test_under_activation_checkpointing(reentrant: bool, device: str) -> None:
    x, weights1, weights2, dy = operands(Case("", (1, 9, 2, 3)), device)
    expected = results(ours, x, weights1, weights2, dy)

    def run(x: Tensor, *lists: Any) -> Tensor:
        return torch.utils.checkpoint.checkpoint(ours, x, *lists, use_reentrant=reentrant)

    # Reentrant checkpoints only detect tensors that are arguments themselves. Weights in lists must still get
    # their gradients.
    got = results(run, x, weights1, weights2, dy)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_no_images(device: str) -> None:
    x = torch.zeros(0, 9, 4, 4, device=device, requires_grad=True)
    weight = torch.ones(9, 9, 3, 3, device=device, requires_grad=True)
    residual_block(x, weight, weight.detach(), impl="triton").sum().backward()
    assert x.grad.shape == x.shape
    assert not weight.grad.any()


def test_double_backward_raises(device: str) -> None:
    x, weights1, weights2, _ = operands(CASES[0], device)
    y = residual_block(x.requires_grad_(), weights1, weights2, impl="triton")
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(
        RuntimeError,
        match=r"residual_block: the Triton kernels do not support double backward .* use impl='reference'",
    ):
        grad.sum().backward()


# --- Bad input ----------------------------------------------------------------------------------------------

X, W = torch.zeros(2, 3, 4, 4), torch.zeros(3, 3, 3, 3)
WRONG = [
    ((X.numpy(), W, W), {}, TypeError, "residual_block: x must be a tensor, got ndarray"),
    ((X, W, [None]), {}, TypeError, "weight2 must be a tensor or a list of tensors, got NoneType"),
    ((X, W, W), {"eps": "a"}, TypeError, "residual_block: eps must be a number, got str"),
    (
        (torch.zeros(3, 4, 4), W, W),
        {},
        ValueError,
        r"residual_block: x must be \[N, C, H, W\], got shape \(3, 4, 4\)",
    ),
    (
        (X[..., :1], W, W),
        {},
        ValueError,
        r"less than the height and width of x, got padding 1 and x of shape \(2, 3, 4, 1\)",
    ),
    (
        (X, torch.zeros(5, 3, 3, 3), W),
        {},
        ValueError,
        r"weight1 must be \[3, 3, 3, 3\] for x with 3 channels, got \[5, 3, 3, 3\]",
    ),
    (
        (X, W, torch.zeros(3, 3, 5, 5)),
        {},
        ValueError,
        r"weight2 must be \[3, 3, 3, 3\] for x with 3 channels, got \[3, 3, 5, 5\]",
    ),
    (
        (X, W, torch.zeros(3, 4, 3, 3)),
        {},
        ValueError,
        r"weight2 must be \[O, 3, k, k\] for x with 3 channels, got \[3, 4, 3, 3\]",
    ),
    (
        (X, [W, W], [W]),
        {},
        ValueError,
        "weight1 and weight2 must have the same number of weights, got 2 and 1",
    ),
    (
        (X, [W, W, W], [W, W, W]),
        {},
        ValueError,
        "with 3 weights, the batch size must be a multiple of 3, got 2",
    ),
    (
        (X.half(), W, W.half()),
        {},
        TypeError,
        "weight1 and weight2 must have the same dtype, got torch.float32 and torch.float16",
    ),
    ((X, W.half(), W), {}, TypeError, "weight1 must be torch.float32 .* got torch.float16"),
    ((X, W, W.to("meta")), {}, ValueError, "weight2 must be on the device of x, cpu, got meta"),
    ((X, W, W), {"impl": "cuda"}, ValueError, "impl must be auto, cpp, triton or reference, got 'cuda'"),
]


@pytest.mark.parametrize(("arguments", "options", "error", "message"), WRONG, ids=[w[3][:40] for w in WRONG])
def test_invalid_arguments_raise_errors_that_name_them(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        residual_block(*arguments, **options)


# --- On a GPU -----------------------------------------------------------------------------------------------

REAL = [Case(f"{n} of 256 x 256 images", (n, 256, 64, 64), p) for n, p in ((1, 1), (2, 2), (4, 2), (16, 1))]
REAL += [Case("1024 x 1024 images", (1, 256, 256, 256)), Case("an odd size", (1, 256, 61, 53))]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("case", REAL, ids=lambda c: c.why)
def test_real_shapes(case: Case, dtype: torch.dtype) -> None:
    with tf32(True):
        check(case, "cuda", dtype)


@pytest.mark.gpu
def test_graph_replayed_twice_with_new_data() -> None:
    x, weights1, weights2, dy = operands(REAL[1], "cuda", BF16)
    leaves = [t.requires_grad_() for t in (x, *weights1, *weights2)]

    def step() -> tuple[Tensor, ...]:
        y = residual_block(x, weights1, weights2, impl="triton")
        return y, *torch.autograd.grad(y, leaves, dy)

    graph, captured = captured_graph(step)
    for _ in range(2):
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        for got, wanted in zip(captured, step(), strict=True):
            assert_same_bits("replayed", got, wanted)
