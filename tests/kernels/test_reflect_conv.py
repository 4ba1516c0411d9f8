"""reflect_conv2d against plain PyTorch in float64: every form, forward and every gradient, and what PyTorch
expects of an operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastcyclegan.devtools.dry_run import dry_run
from fastcyclegan.kernels import accumulating, reflect_conv2d, reflect_conv2d_ref
from fastcyclegan.kernels.reflect_conv import reflect_conv
from fastcyclegan.testing import assert_parity, assert_same_bits, captured_graph, relative_error, tf32

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


pytestmark = pytest.mark.usefixtures("no_tf32")


@dataclass(frozen=True)
class Case:
    why: str
    shape: tuple[int, int, int, int]
    out: int
    kernel: int = 3
    padding: int = 1
    P: int = 1
    bias: bool = False
    dtypes: tuple[torch.dtype, ...] = (FP32,)


# The interpreter's tiles are 32 pixels, 32 output channels and 64 input channels, or a quarter of a larger
# size.
CASES = [
    Case("the smallest map that reflects", (1, 20, 2, 2), 24, dtypes=(FP32, FP16, BF16)),
    Case("several tiles each way, the last of each in part", (1, 70, 7, 9), 40, bias=True),
    Case("a real width", (1, 256, 3, 3), 256),
    Case("two weights, two images each", (4, 12, 5, 3), 16, P=2, bias=True, dtypes=(FP32, FP16)),
    Case("three weights", (3, 16, 3, 4), 9, P=3),
    Case("padding = size - 1: a line receives from both sides", (1, 12, 4, 3), 12, padding=2),
    Case("no padding", (1, 12, 4, 5), 12, padding=0, bias=True),
    Case("padding past half of the kernel: the map grows", (1, 12, 4, 4), 10, padding=3),
    Case("one by one", (1, 12, 4, 3), 12, kernel=1, padding=0),
    Case("five by five, smaller than the kernel before it is padded", (1, 10, 4, 3), 12, kernel=5, padding=2),
    Case(
        "from a picture: seven by seven",
        (1, 3, 9, 6),
        64,
        kernel=7,
        padding=3,
        bias=True,
        dtypes=(FP32, FP16, BF16),
    ),
    Case("from pictures, two weights", (2, 3, 4, 5), 9, P=2, bias=True),
    Case(
        "to a picture: seven by seven",
        (1, 64, 6, 9),
        3,
        kernel=7,
        padding=3,
        bias=True,
        dtypes=(FP32, FP16, BF16),
    ),
    Case("to pictures, two weights", (2, 20, 5, 4), 3, P=2, bias=True),
    Case("to one channel, one by one", (1, 12, 4, 4), 1, kernel=1, padding=0),
    Case("from a picture to a picture", (1, 3, 5, 4), 4, bias=True),
    Case("nine by nine windows, to several tiles", (1, 4, 7, 13), 12, kernel=9, padding=4),
]


# For what does not depend on sizes.
SMALL = Case("two weights", (2, 9, 3, 4), 9, P=2, bias=True)
SMALL_PICTURES = [
    Case("from pictures", (2, 3, 3, 4), 9, P=2, bias=True),
    Case("to pictures", (2, 9, 3, 4), 3, P=2, bias=True),
]


def operands(
    case: Case, device: str, dtype: torch.dtype = FP32
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    torch.manual_seed(0)
    x = torch.randn(case.shape, device=device).contiguous(memory_format=torch.channels_last).to(dtype)
    weights = [
        torch.randn(case.out, case.shape[1], case.kernel, case.kernel, device=device).to(dtype)
        for _ in range(case.P)
    ]
    biases = [torch.randn(case.out, device=device).to(dtype) for _ in range(case.P)] if case.bias else []
    return (
        x,
        weights,
        biases,
        torch.randn(
            reflect_conv2d_ref(x.float(), [w.float() for w in weights], padding=case.padding).shape
        ).to(x),
    )


def results(
    run: Any, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], dy: Tensor
) -> dict[str, Tensor]:
    """Return y and all gradients by ``run``."""
    x, weights, biases = (
        x.detach().requires_grad_(),
        *([t.detach().requires_grad_() for t in ts] for ts in (weights, biases)),
    )
    y = run(x, weights, biases or None)
    y.backward(dy)
    gradients = {
        f"{name}[{i}]": t.grad
        for name, ts in (("dweight", weights), ("dbias", biases))
        for i, t in enumerate(ts)
    }
    return {"y": y.detach(), "dx": x.grad, **gradients}


def ours(case: Case) -> Any:
    return lambda x, weights, biases: reflect_conv2d(x, weights, biases, padding=case.padding, impl="triton")


def theirs(case: Case) -> Any:
    return lambda x, weights, biases: reflect_conv2d_ref(x, weights, biases, padding=case.padding)


def check(case: Case, device: str, dtype: torch.dtype) -> None:
    x, weights, biases, dy = operands(case, device, dtype)
    found = results(ours(case), x, weights, biases, dy)
    other = results(theirs(case), x, weights, biases, dy)
    truth = results(
        theirs(case), x.double(), [w.double() for w in weights], [b.double() for b in biases], dy.double()
    )
    for name, result in found.items():
        assert_parity(name, result, other[name], truth[name], dtype)
    assert found["y"].is_contiguous(memory_format=torch.channels_last)
    assert found["dx"].stride() == x.stride()


@pytest.mark.parametrize(
    ("case", "dtype"), [pytest.param(c, d, id=f"{c.why}-{d}") for c in CASES for d in c.dtypes]
)
def test_equals_float64(case: Case, dtype: torch.dtype, device: str) -> None:
    check(case, device, dtype)


def test_reference_is_torchs_own_layers() -> None:
    """An adjoint by hand, too: kernel of ones, one by one, padding 1; a pixel is read once for each place
    that reflects it.
    """
    x = torch.randn(2, 3, 5, 6)
    conv = torch.nn.Conv2d(3, 4, 3)
    torch.testing.assert_close(
        reflect_conv2d_ref(x, conv.weight, conv.bias, padding=1), conv(torch.nn.ReflectionPad2d(1)(x))
    )
    pixels = torch.zeros(1, 1, 3, 4, requires_grad=True)
    reflect_conv2d_ref(pixels, torch.ones(1, 1, 1, 1), padding=1).sum().backward()
    rows, columns = torch.tensor([1.0, 3, 1]), torch.tensor([1.0, 2, 2, 1])
    assert torch.equal(pixels.grad[0, 0], rows[:, None] * columns)


# --- With the norm before it and the tanh after it ----------------------------------------------------------


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize(
    ("channels", "out", "kernel", "tanh"), [(20, 3, 7, True), (6, 3, 3, True), (12, 16, 3, False)]
)
def test_norm_before_and_tanh_after(
    channels: int, out: int, kernel: int, tanh: bool, dtype: torch.dtype, recompute: bool, device: str
) -> None:
    """The generator's last layer, few channels before it, and an upsampling by resize."""
    torch.manual_seed(0)
    case = Case("", (2, channels, 6, 9), out, kernel, kernel // 2, bias=True)
    x, weights, biases, dy = operands(case, device, dtype)
    weights = [0.1 * w for w in weights]
    dy = dy.float() if tanh else dy

    def run(x: Tensor, weights: Any, biases: Any) -> Tensor:
        return reflect_conv(
            x, weights, biases, padding=case.padding, norm=True, act="relu", tanh=tanh, recompute=recompute
        )

    def plain(x: Tensor, weights: Any, biases: Any) -> Tensor:
        y = reflect_conv2d_ref(F.relu(F.instance_norm(x.contiguous())), weights, biases, padding=case.padding)
        return torch.tanh(y.float() if y.dtype == BF16 else y) if tanh else y

    found, other = (results(f, x, weights, biases, dy) for f in (run, plain))
    truth = results(
        plain, x.double(), [w.double() for w in weights], [b.double() for b in biases], dy.double()
    )
    assert found["y"].dtype == (FP32 if tanh else dtype)
    for name, result in found.items():
        assert_parity(name, result, other[name], truth[name], dtype)


def test_tanh_near_zero_and_far_from_it(device: str) -> None:
    x = (
        torch.cat([torch.logspace(-6, 1, 40), -torch.logspace(-6, 1, 40), torch.zeros(1)])
        .view(1, 1, 1, 81)
        .expand(1, 16, 1, 81)
    )
    weight = torch.zeros(1, 16, 1, 1, device=device)
    weight[:, 0] = 1
    y = reflect_conv(x.to(device), [weight], [], padding=0, tanh=True)
    torch.testing.assert_close(y[0, 0, 0].cpu(), torch.tanh(x[0, 0, 0].double()).float(), rtol=1e-6, atol=0)


# --- Weights and their gradients ----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_arrive_without_a_copy(layout: torch.memory_format, device: str) -> None:
    """Each is a view of one tensor, with the strides of its weight: autograd keeps it as it is."""
    x, weights, _, dy = operands(CASES[4], device)
    leaves = [w.contiguous(memory_format=layout).requires_grad_() for w in weights]
    reflect_conv2d(x, leaves, padding=1, impl="triton").backward(dy)
    assert len({w.grad.untyped_storage().data_ptr() for w in leaves}) == 1
    assert all(w.grad.stride() == w.stride() for w in leaves)


def counted(run: Any) -> dict[str, int]:
    with dry_run() as dry:
        run()
    return dict(dry.counts.launches)


def test_what_is_frozen_costs_nothing(device: str) -> None:
    x, weights, _, dy = operands(CASES[4], device)
    whole = results(ours(CASES[4]), x, weights, [], dy)
    weights = [w.requires_grad_(i != 1) for i, w in enumerate(weights)]
    y = reflect_conv2d(x, weights, padding=1, impl="triton")
    y.backward(dy)
    assert weights[1].grad is None
    for i in (0, 2):
        # Another number of weights may be split otherwise.
        assert relative_error(weights[i].grad, whole[f"dweight[{i}]"]) < 1e-6

    def launches(needs: Sequence[bool]) -> dict[str, int]:
        leaves = [w.detach().requires_grad_(need) for w, need in zip(weights, needs, strict=True)]
        return counted(
            lambda: reflect_conv2d(x.requires_grad_(), leaves, padding=1, impl="triton").backward(dy)
        )

    assert launches([True] * 3)["_reflect_conv_wgrad_kernel"] == 1
    assert launches([True, False, True])["_reflect_conv_wgrad_kernel"] == 2
    assert "_reflect_conv_wgrad_kernel" not in launches([False] * 3)


@pytest.mark.parametrize("case", [CASES[4], SMALL_PICTURES[1]], ids=lambda c: c.why)
def test_a_second_backward_adds_in_place(case: Case, device: str) -> None:
    """Where it is asked to; as autograd's own addition, and without one."""
    x, weights, biases, dy = operands(case, device)
    once = results(ours(case), x, weights, biases, dy)
    leaves, biases = ([t.requires_grad_() for t in ts] for ts in (weights, biases))
    for _ in range(2):
        y = reflect_conv2d(x, leaves, biases or None, padding=case.padding, impl="triton")
        addresses = [w.grad.data_ptr() if w.grad is not None else None for w in leaves]
        with accumulating(), torch.profiler.profile() as profile:
            y.backward(dy)
    assert [w.grad.data_ptr() for w in leaves] == addresses
    assert not any(
        event.key == "aten::add_" and event.count > len(biases) for event in profile.key_averages()
    )
    for i, w in enumerate(leaves):
        torch.testing.assert_close(w.grad, 2 * once[f"dweight[{i}]"])


def test_biases_of_none_are_none(device: str) -> None:
    x, weights, _, _ = operands(SMALL, device)
    found = reflect_conv2d(x, weights, [None, None], padding=1, impl="triton")
    assert torch.equal(found, reflect_conv2d(x, weights, padding=1, impl="triton"))


def test_fp32_weights_for_16_bits_are_rounded_inside(device: str) -> None:
    """The result and the gradient of the rounded weight; the gradient itself in fp32."""
    x, weights, biases, dy = operands(SMALL, device)
    x, dy = x.to(BF16), dy.to(BF16)
    wide = results(ours(SMALL), x, weights, biases, dy)
    narrow = results(ours(SMALL), x, [w.to(BF16) for w in weights], [b.to(BF16) for b in biases], dy)
    assert torch.equal(wide["dx"], narrow["dx"])
    assert wide["dweight[1]"].dtype == wide["dbias[0]"].dtype == FP32
    torch.testing.assert_close(wide["dweight[1]"].to(BF16), narrow["dweight[1]"])


# --- What PyTorch expects of an operator --------------------------------------------------------------------


@pytest.mark.parametrize("case", [SMALL, *SMALL_PICTURES], ids=lambda c: c.why)
def test_opcheck(case: Case, device: str) -> None:
    x, weights, biases, dy = operands(case, device)
    leaves = [[t.requires_grad_() for t in ts] for ts in (weights, biases)]
    arguments = (
        x.requires_grad_(),
        None,
        None,
        *leaves,
        False,
        1e-5,
        "none",
        0.2,
        case.padding,
        False,
        True,
        True,
    )
    torch.library.opcheck(torch.ops.fastcyclegan.reflect_conv_fwd, arguments)
    empty = x.detach().new_empty(0)
    saved = (dy, x.detach(), None, None, empty, empty, [w.detach() for w in weights], empty, empty)
    needs = [True, bool(biases), *(i != 0 for i in range(case.P))]
    torch.library.opcheck(
        torch.ops.fastcyclegan.reflect_conv_bwd, (*saved, "none", 0.2, case.padding, needs, True)
    )


@pytest.mark.parametrize("recompute", [True, False])
def test_opcheck_with_norm_and_tanh(recompute: bool, device: str) -> None:
    x, weights, biases, dy = operands(Case("", (1, 12, 3, 4), 3, bias=True), device)
    norm = [torch.randn(12, device=device, requires_grad=True) for _ in range(2)]
    leaves = [[t.requires_grad_() for t in ts] for ts in (weights, biases)]
    options = (True, 1e-5, "relu", 0.2, 1, True, recompute, True)
    torch.library.opcheck(
        torch.ops.fastcyclegan.reflect_conv_fwd, (x.requires_grad_(), *norm, *leaves, *options)
    )
    with torch.no_grad():
        out, mean, rstd, y = torch.ops.fastcyclegan.reflect_conv_fwd(x, *norm, *leaves, *options)
    inputs = (dy, x.detach(), *(t.detach() for t in norm), mean, rstd, [weights[0].detach()], out, y)
    torch.library.opcheck(
        torch.ops.fastcyclegan.reflect_conv_bwd, (*inputs, "relu", 0.2, 1, [True] * 3, True)
    )


def test_compiles_whole_and_keeps_strides(device: str) -> None:
    case = SMALL
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
    case = Case("", (2, 12, 5, 4), 9)
    x, weights, _, dy = operands(case, device)
    wanted = results(ours(case), x, weights, [], dy)
    if kind == "planes":
        x, dy = x.contiguous(), dy.contiguous()
    elif kind == "cut out":
        x = torch.cat([x, x], 3).contiguous()[..., :4]
    else:
        dy = torch.ones(1, device=device).expand(dy.shape)
        wanted = results(ours(case), x, weights, [], torch.ones_like(dy))
    found = results(ours(case), x, weights, [], dy)
    for name, result in found.items():
        assert torch.equal(result, wanted[name]), name


def test_autocast_casts_as_convolutions_do(device: str) -> None:
    x, weights, biases, dy = operands(SMALL, device)
    leaves = [w.requires_grad_() for w in weights]
    for impl in ("triton", "reference"):
        with torch.autocast(device, BF16):
            y = reflect_conv2d(x, leaves, biases, padding=1, impl=impl)
        assert y.dtype == BF16
        y.backward(dy.to(BF16))
        assert leaves[0].grad.dtype == FP32
    with torch.autocast(device, BF16):
        assert (
            reflect_conv2d(x.half(), [w.half() for w in leaves], biases, padding=1, impl="reference").dtype
            == BF16
        )


def test_functional_call_and_no_grad(device: str) -> None:
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(9, 12, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return reflect_conv2d(x, self.weight, padding=1, impl="triton")

    x, weights, _, _ = operands(Case("", (1, 12, 4, 4), 9), device)
    y = torch.func.functional_call(Layer().to(device), {"weight": weights[0]}, (x,))
    torch.testing.assert_close(y, reflect_conv2d_ref(x, weights, padding=1))
    with torch.no_grad():
        assert not Layer().to(device)(x).requires_grad


def test_same_bits_twice_and_alone(device: str) -> None:
    """Nothing depends on the order in which programs run, nor an image on its neighbours."""
    case = SMALL
    tensors = operands(case, device)
    first, second = (results(ours(case), *tensors) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    x, weights, biases, _ = tensors
    x = x.clone(memory_format=torch.channels_last)
    x[0] = float("nan")
    assert torch.equal(reflect_conv2d(x, weights, biases, padding=1, impl="triton")[1:], first["y"][1:])


def test_no_images(device: str) -> None:
    for out in (3, 9):
        x = torch.zeros(0, 12, 4, 4, device=device, requires_grad=True)
        weight = torch.ones(out, 12, 3, 3, device=device, requires_grad=True)
        y = reflect_conv2d(
            x, [weight, weight.detach()], [torch.ones(out, device=device)] * 2, padding=1, impl="triton"
        )
        y.sum().backward()
        assert y.shape == (0, out, 4, 4)
        assert not weight.grad.any()


def test_what_is_kept(device: str) -> None:
    x, weights, _, _ = operands(SMALL, device)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        reflect_conv2d(x, [w.requires_grad_() for w in weights], padding=1, impl="triton")
    assert sorted(t.numel() for t in saved if t.numel()) == sorted([x.numel(), *(w.numel() for w in weights)])


def test_double_backward_is_refused(device: str) -> None:
    x, weights, _, _ = operands(CASES[0], device)
    (grad,) = torch.autograd.grad(
        reflect_conv2d(x.requires_grad_(), weights, padding=1, impl="triton").square().sum(),
        x,
        create_graph=True,
    )
    with pytest.raises(
        RuntimeError,
        match=r"reflect_conv2d: the Triton kernels have no double backward .* use impl='reference'",
    ):
        grad.sum().backward()


def test_tf32_follows_torchs_convolutions(device: str) -> None:
    x = torch.zeros(1, 64, 8, 8, requires_grad=True)
    for allowed, wanted in ((True, {"tf32"}), (False, {"ieee"})):
        precisions: set[str] = set()

        def note(launch: Any, precisions: set[str] = precisions) -> None:
            if "PRECISION" in launch.constants:
                precisions.add(launch.constants["PRECISION"])

        with tf32(allowed), dry_run(on_launch=note):
            for out in (3, 64):
                reflect_conv2d(
                    x, torch.zeros(out, 64, 3, 3, requires_grad=True), padding=1, impl="triton"
                ).sum().backward()
        assert precisions == wanted


# --- Bad input ----------------------------------------------------------------------------------------------

X, W = torch.zeros(2, 3, 4, 4), torch.zeros(5, 3, 3, 3)
WRONG = [
    (("x", W), {}, TypeError, "reflect_conv2d: x must be a tensor, got str"),
    ((X.int(), W.int()), {}, TypeError, "x must be floating point, got torch.int32"),
    ((X, None), {}, TypeError, "weight must be a tensor or a list of tensors, got NoneType"),
    ((X, [W, None]), {}, TypeError, "weight must be a tensor or a list of tensors, got NoneType"),
    ((X, W, 0.0), {}, TypeError, "bias must be a tensor or a list of tensors, got float"),
    (
        (X, [W, W], [torch.zeros(5), None]),
        {},
        TypeError,
        "bias must be a tensor or a list of tensors, got NoneType",
    ),
    ((X, W), {"padding": 1.0}, TypeError, "padding must be an integer, got float"),
    ((X, W), {"padding": (1, 1)}, TypeError, "padding must be an integer, got tuple"),
    ((X, W[:0]), {}, ValueError, r"weight must have output channels, got \[0, 3, 3, 3\]"),
    (
        (torch.zeros(3, 4, 4), W),
        {},
        ValueError,
        r"reflect_conv2d: x must be \[N, C, H, W\], got shape \(3, 4, 4\)",
    ),
    (
        (X, W),
        {"padding": 4},
        ValueError,
        r"padding must be at least 0 and less than the sides of x, got 4 for shape \(2, 3, 4, 4\)",
    ),
    ((X, W), {"padding": -1}, ValueError, "padding must be at least 0 and less than the sides of x, got -1"),
    (
        (X, torch.zeros(5, 3, 7, 7)),
        {},
        ValueError,
        "x with its padding must be no smaller than the kernel, got 4 [+] 2 x 1 for 7",
    ),
    ((X, torch.zeros(5, 3, 4, 4)), {}, ValueError, "weight must have an odd square kernel, got 4 x 4"),
    ((X, torch.zeros(5, 3, 3, 5)), {}, ValueError, "weight must have an odd square kernel, got 3 x 5"),
    (
        (X, torch.zeros(5, 4, 3, 3)),
        {},
        ValueError,
        r"weight must be \[O, 3, k, k\] for x of 3 channels, got \[5, 4, 3, 3\]",
    ),
    ((X, []), {}, ValueError, "weight must be a weight or a list of at least one, got an empty list"),
    ((X, [W, W, W]), {}, ValueError, "a list of 3 weights needs a multiple of 3 images, got 2"),
    ((X, [W, torch.zeros(6, 3, 3, 3)]), {}, ValueError, r"one shape, got \[5, 3, 3, 3\] and \[6, 3, 3, 3\]"),
    ((X, W.half()), {}, TypeError, "weight must be torch.float32 .* got torch.float16"),
    ((X.half(), [W, W.half()]), {}, TypeError, "weight must be torch.float16 .*all alike, got torch.float16"),
    ((X, W.to("meta")), {}, ValueError, "weight must be on the device of x, cpu, got meta"),
    (
        (X, W, torch.zeros(4)),
        {},
        ValueError,
        r"bias must be \[5\], a number for each output channel, got \[4\]",
    ),
    ((X, [W, W], [torch.zeros(5)]), {}, ValueError, "bias must have as many tensors as weight, 2, got 1"),
    ((X, W, torch.zeros(5, dtype=FP16)), {}, TypeError, "bias must be torch.float32 .* got torch.float16"),
    ((X, W, torch.zeros(5, device="meta")), {}, ValueError, "bias must be on the device of x, cpu, got meta"),
    ((X, W), {"impl": "cuda"}, ValueError, "impl must be auto, triton or reference, got 'cuda'"),
    (
        (X.double(), W.double()),
        {"impl": "triton"},
        TypeError,
        "takes float32, bfloat16 or float16, got torch.float64",
    ),
]


@pytest.mark.parametrize(("arguments", "options", "error", "message"), WRONG, ids=[w[3][:40] for w in WRONG])
def test_bad_input_is_named(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    if error is TypeError and options.get("impl") == "triton" and torch.cuda.is_available():
        # On a GPU the kernels take nothing from the CPU, whatever its dtype.
        arguments = tuple(t.cuda() for t in arguments)
    with pytest.raises(error, match=message):
        reflect_conv2d(*arguments, **{"padding": 1, **options})


# --- On a GPU -----------------------------------------------------------------------------------------------

REAL = [
    Case("residual", (1, 256, 64, 64), 256),
    Case("residual, two", (2, 256, 64, 64), 256, P=2),
    Case("residual, four", (4, 256, 64, 64), 256),
    Case("residual, sixteen", (16, 256, 64, 64), 256),
    Case("residual of 1024 x 1024 pictures", (1, 256, 256, 256), 256),
    Case("first", (2, 3, 256, 256), 64, 7, 3, bias=True),
    Case("last", (2, 64, 256, 256), 3, 7, 3, bias=True),
    Case("first and last of 1024 x 1024 pictures", (1, 64, 1024, 1024), 3, 7, 3, bias=True),
    Case("an odd size", (1, 256, 61, 53), 256, bias=True),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("case", REAL, ids=lambda c: c.why)
def test_real_shapes(case: Case, dtype: torch.dtype) -> None:
    with tf32(True):
        check(case, "cuda", dtype)


@pytest.mark.gpu
def test_ieee_products_on_a_gpu() -> None:
    check(REAL[0], "cuda", FP32)
    check(REAL[6], "cuda", FP32)


@pytest.mark.gpu
@pytest.mark.parametrize("case", [REAL[1], REAL[5], REAL[6]], ids=lambda c: c.why)
def test_graph_replayed_twice_with_new_data(case: Case) -> None:
    x, weights, _, dy = operands(case, "cuda", BF16)
    leaves = [t.requires_grad_() for t in (x, *weights)]

    def step() -> tuple[Tensor, ...]:
        y = reflect_conv2d(leaves[0], leaves[1:], padding=case.padding, impl="triton")
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
    for out in (64, 3):
        weight = torch.randn(out, 64, 3, 3, device="cuda", dtype=BF16)
        y = reflect_conv2d(x, weight, padding=1, impl="triton")[:, :, -8:]
        torch.testing.assert_close(
            y,
            reflect_conv2d(x[:, :, -16:], weight, padding=1, impl="triton")[:, :, -8:],
            rtol=2**-7,
            atol=2**-5,
        )
