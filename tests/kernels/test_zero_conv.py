"""Compare zero_conv for every kind of layer, and all its gradients, with plain PyTorch in float64.

Inputs have various memory layouts. Real sizes are tested on a GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastcyclegan.kernels.zero_conv import zero_conv, zero_conv_ref
from fastcyclegan.testing import assert_same_bits, captured_graph, tf32
from tests.kernels.zero_convs import CASES, DOWN, LAST, ROUTES, UP, Case, check, operands, ours, results

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


pytestmark = pytest.mark.usefixtures("no_tf32")


@pytest.mark.parametrize(
    ("case", "dtype"), [pytest.param(c, d, id=f"{c.why}-{d}") for c in CASES for d in c.dtypes]
)
def test_equals_float64(case: Case, dtype: torch.dtype, device: str) -> None:
    check(case, device, dtype)


@pytest.mark.parametrize("case", [UP, LAST], ids=lambda c: c.why)
def test_y_may_be_kept(case: Case, device: str) -> None:
    """If y is saved rather than recomputed, all results have the same bits.

    In both cases, only the tensors that zero_conv documents are saved.
    """
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
        expected = [
            x.numel(),
            *vectors,
            *(t.numel() for t in (*weights, *biases)),
            *([] if recompute else [x.numel()]),
        ]
        assert sorted(t.numel() for t in saved if t.numel()) == sorted(expected)


def test_reference_matches_torchs_layers() -> None:
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


@pytest.mark.parametrize("case", [DOWN, LAST], ids=lambda c: c.why)
def test_fp32_weights_are_rounded_for_16_bit_images(case: Case, device: str) -> None:
    """With 16-bit images, fp32 weights are rounded: results and input gradients are those of rounded weights.

    The gradients of the weights themselves are in fp32.
    """
    x, weights, biases, dy = operands(case, device)
    x, dy = x.half(), dy.half()
    wide = results(ours(case), x, weights, biases, dy)
    narrow = results(ours(case), x, [w.half() for w in weights], [b.half() for b in biases], dy)
    assert torch.equal(wide["dx"], narrow["dx"])
    assert wide["dweight[1]"].dtype == wide["dbias[0]"].dtype == FP32
    torch.testing.assert_close(wide["dweight[1]"].half(), narrow["dweight[1]"])


@pytest.mark.parametrize("kind", ["planes", "cut out", "expanded gradient"])
def test_any_layout(kind: str, device: str) -> None:
    x, weights, biases, dy = operands(DOWN, device)
    if kind == "expanded gradient":
        dy = torch.ones(1, device=device).expand(dy.shape)
    expected = results(ours(DOWN), x, weights, biases, dy.clone(memory_format=torch.contiguous_format))
    if kind == "planes":
        x, dy = x.contiguous(), dy.contiguous()
    elif kind == "cut out":
        x = torch.cat([x, x], 3).contiguous()[..., :5]
    got = results(ours(DOWN), x, weights, biases, dy)
    assert all(torch.equal(result, expected[name]) for name, result in got.items())


@pytest.mark.parametrize("case", ROUTES, ids=lambda c: c.why)
def test_same_bits_twice_and_alone(case: Case, device: str) -> None:
    """A repeated call gives the same bits, and an image's results do not depend on other images."""
    tensors = operands(case, device)
    first, second = (results(ours(case), *tensors) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    x, weights, biases, dy = tensors
    x = x.clone(memory_format=torch.channels_last)
    x[0] = float("nan")
    got = results(ours(case), x, weights, biases, dy)
    assert torch.equal(got["y"][1:], first["y"][1:])
    assert torch.equal(got["dweight[1]"], first["dweight[1]"])


def test_pixels_that_no_tap_reaches_are_not_read(device: str) -> None:
    """Pixels that no tap of the kernel reaches have no effect on the results.

    With stride 2 and even sides, these are the last row and column. Without a bounds check, a kernel would
    read them for the output pixels of a loop step that are past the end of the image.
    """
    case = next(case for case in CASES if case.why.startswith("stride 2, unpadded"))
    x, weights, _, dy = operands(case, device)
    expected = results(ours(case), x, weights, [], dy)
    x[:, :, -1], x[:, :, :, -1] = float("nan"), float("nan")
    got = results(ours(case), x, weights, [], dy)
    assert all(torch.equal(result, expected[name]) for name, result in got.items())
    assert not got["dx"][:, :, -1].any()


@pytest.mark.parametrize("case", ROUTES, ids=lambda c: c.why)
def test_no_images(case: Case, device: str) -> None:
    x, weights, biases, dy = operands(case, device)
    got = results(ours(case), x[:0], weights, biases, dy[:0])
    assert got["y"].shape == (0, *dy.shape[1:])
    assert got["dx"].shape == (0, *x.shape[1:])
    assert not any(result.any() for name, result in got.items() if "[" in name)


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
    """Results are right for an image so large that offsets exceed 32 bits.

    The last lines of the result are compared with those computed from the image's last lines alone. Lines
    next to the border that these get are left out.
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
