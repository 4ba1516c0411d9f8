"""instance_norm against float64, forward and every gradient, by the rule in fastcyclegan.testing; and what
PyTorch expects of an operator.

On a machine without a GPU the kernels run through Triton's interpreter, at sizes that meet several tiles of
several blocks there: blocks of 32 pixels and 16 channels, at most 4 tiles, and the one-launch kernels up to
64 pixels (128 of a plane).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastcyclegan import reference
from fastcyclegan.kernels import instance_norm, instance_norm_ref
from fastcyclegan.testing import assert_parity, assert_same_bits, captured_graph

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
NAMES = ("y", "dx", "dweight", "dbias", "dresidual")


@dataclass(frozen=True)
class Case:
    why: str
    shape: tuple[int, ...]
    act: str = "relu"
    affine: str = ""  # "", "weight", "bias" or "both"
    residual: bool = False
    planes: bool = False
    dtypes: tuple[torch.dtype, ...] = (FP32,)


# Interior points are pruned: each case stands for one path or one edge. Sizes are those of the interpreter's
# tiles.
CASES = [
    Case("one launch, channels no power of two", (2, 5, 4, 4), dtypes=(FP32, FP16, BF16)),
    Case("one launch, its largest picture, channels past a block", (1, 17, 8, 8), "leaky_relu", "both", True),
    Case(
        "one pixel past the one-launch kernels",
        (1, 16, 13, 5),
        "leaky_relu",
        "both",
        True,
        dtypes=(FP32, FP16, BF16),
    ),
    Case("blocks and tiles that end evenly", (1, 16, 16, 8), "none"),
    Case("one pixel and one channel past a block", (1, 17, 1, 129), "relu", "weight"),
    Case("several tiles of several blocks, several images", (3, 20, 13, 11), "leaky_relu", "bias", True),
    Case("the fewest pixels that have a variance", (2, 3, 1, 2), "none", "both"),
    Case("one channel: both layouts are one", (2, 1, 5, 20), "relu"),
    Case("planes, one launch", (2, 3, 10, 11), "leaky_relu", "both", True, True, (FP32, FP16)),
    Case("planes of several tiles", (2, 2, 17, 9), "relu", "both", True, True),
    Case("a signal, channels last", (2, 6, 77), "relu", "both"),
    Case("a signal, planes", (1, 3, 257), "leaky_relu", "weight", False, True),
    Case("a volume, channels last", (1, 4, 3, 5, 6), "leaky_relu", "both", True),
    Case("a volume, planes", (2, 3, 4, 3, 3), "none", "", True, True),
]


def in_layout(x: Tensor, planes: bool) -> Tensor:
    return x.contiguous() if planes else x.movedim(1, -1).contiguous().movedim(-1, 1)


def torch_instance_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, **options: Any) -> Tensor:
    """PyTorch's own operators in the dtype of x: what the rule measures us against."""
    y = reference.ContiguousGradient.apply(F.instance_norm(x, weight=weight, bias=bias, eps=options["eps"]))
    y = {"none": lambda y: y, "relu": F.relu, "leaky_relu": lambda y: F.leaky_relu(y, options["slope"])}[
        options["act"]
    ](y)
    return y if options["residual"] is None else y + options["residual"]


def gradients(
    run: Any,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    dy: Tensor,
    **options: Any,
) -> list:
    """Return y and the gradients of what is not None, by ``run``."""
    leaves = [t if t is None else t.detach().requires_grad_() for t in (x, weight, bias, residual)]
    y = run(leaves[0], leaves[1], leaves[2], residual=leaves[3], **options)
    y.backward(dy)
    return [
        (name, t)
        for name, t in zip(NAMES, [y, *(t.grad if t is not None else None for t in leaves)], strict=True)
        if t is not None
    ]


def check(
    x: Tensor, weight: Any = None, bias: Any = None, residual: Any = None, dy: Any = None, **options: Any
) -> None:
    """Assert parity of y and every gradient for the given tensors."""
    options = {"eps": 1e-5, "slope": 0.2, "act": "none", **options}
    tensors = [x, weight, bias, residual, torch.randn_like(x) if dy is None else dy]
    ours = gradients(lambda *a, **k: instance_norm(*a, impl="triton", **k), *tensors, **options)
    theirs = gradients(torch_instance_norm, *tensors, **options)
    truth = gradients(instance_norm_ref, *(t if t is None else t.double() for t in tensors), **options)
    for (name, got), (_, other), (_, true) in zip(ours, theirs, truth, strict=True):
        assert_parity(name, got, other, true, x.dtype)
    assert ours[0][1].stride() == x.stride()
    assert ours[0][1].dtype == x.dtype


@pytest.mark.parametrize(
    ("case", "dtype"), [pytest.param(c, d, id=f"{c.why}-{d}") for c in CASES for d in c.dtypes]
)
def test_equals_float64(case: Case, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    x = in_layout(torch.randn(case.shape, device=device) * 2 + 3, case.planes).to(dtype)
    residual = (
        in_layout(torch.randn(case.shape, device=device), case.planes).to(dtype) if case.residual else None
    )
    weight = torch.randn(case.shape[1], device=device) if case.affine in ("weight", "both") else None
    bias = torch.randn(case.shape[1], device=device) if case.affine in ("bias", "both") else None
    check(x, weight, bias, residual, act=case.act, slope=0.1)


@pytest.mark.parametrize("size", [4, 13])
def test_no_images(size: int, device: str) -> None:
    """torch's own instance norm fails here; ours gives no images, and gradients of zero."""
    x, weight = torch.zeros(0, 3, size, size, device=device), torch.ones(3, device=device)
    found = dict(gradients(lambda *a, **k: instance_norm(*a, impl="triton", **k), x, weight, weight, x, x))
    assert [found[name].shape for name in ("y", "dx", "dresidual")] == [x.shape] * 3
    assert not found["dweight"].any()
    assert not found["dbias"].any()


# The interpreter casts lanes past the end too, which are not stored.
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("dtype", [FP32, FP16])
def test_flat_pictures_become_exactly_zero(planes: bool, dtype: torch.dtype, device: str) -> None:
    """Variance 0. A mean that is off by a rounding would be scaled by 1 / sqrt(eps) = 316."""
    for size in (7, 13):
        x = in_layout(torch.full((1, 3, size, size), 1000.3, device=device), planes).to(dtype)
        assert not instance_norm(x, impl="triton").any()
        check(x)


@pytest.mark.parametrize("size", [7, 13])
def test_mean_of_a_thousand_deviations(size: int, device: str) -> None:
    """E[x^2] - E[x]^2 is off by a quarter here."""
    torch.manual_seed(0)
    check(in_layout(1000 + torch.randn(1, 5, size, size, device=device), False), act="relu")


def test_an_outlier_in_the_first_pixel(device: str) -> None:
    """Sums that are shifted by the first value lose what all others have in common."""
    torch.manual_seed(0)
    x = torch.randn(1, 4, 13, 11, device=device)
    x[:, :, 0, 0] = 1e5
    check(in_layout(x, False))


@pytest.mark.parametrize("kind", ["expanded", "planes", "cut out"])
def test_upstream_gradient_in_any_layout(kind: str, device: str) -> None:
    torch.manual_seed(0)
    x = in_layout(torch.randn(1, 5, 9, 11, device=device), False)
    dy = {
        "expanded": torch.randn(1, 5, 1, 1, device=device).expand(1, 5, 9, 11)
        * torch.ones((), device=device),
        "planes": torch.randn(1, 5, 9, 11, device=device),
        "cut out": torch.randn(2, 7, 12, 15, device=device)[:1, 1:6, 2:11, 3:14],
    }[kind]
    check(
        x,
        act="relu",
        dy=dy if kind != "expanded" else torch.randn(1, 5, 1, 1, device=device).expand(1, 5, 9, 11),
    )


def test_input_and_residual_in_any_layout(device: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 7, 12, 15, device=device)[:, 1:6, 2:11, 3:14]
    residual = torch.randn(2, 5, 9, 11, device=device)
    y = instance_norm(x, residual=residual, impl="triton")
    torch.testing.assert_close(y, instance_norm_ref(x, residual=residual))
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(3, 5, 4, 4), (3, 20, 13, 11)])
def test_same_bits_twice_and_alone(shape: tuple[int, ...], device: str) -> None:
    """One image's result depends on nothing else in the batch."""
    torch.manual_seed(0)
    x, dy = (in_layout(torch.randn(shape, device=device), False) for _ in range(2))

    def run(x: Tensor, dy: Tensor) -> list[Tensor]:
        return [
            t
            for _, t in gradients(
                lambda *a, **k: instance_norm(*a, impl="triton", **k), x, None, None, None, dy, act="relu"
            )
        ]

    for first, second, alone in zip(run(x, dy), run(x, dy), run(x[1:2], dy[1:2]), strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first[1:2], alone)


def test_saves_its_input_and_two_vectors(device: str) -> None:
    saved: list[Tensor] = []
    x = torch.randn(2, 5, 9, 11, device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        instance_norm(x, act="relu", residual=x, impl="triton")
    assert sorted(t.numel() for t in saved) == [10, 10, 990]


def test_only_what_is_asked_for_gets_a_gradient(device: str) -> None:
    x, weight = torch.randn(2, 5, 4, 4, device=device), torch.randn(5, device=device, requires_grad=True)
    residual = torch.randn(2, 5, 4, 4, device=device, requires_grad=True)
    y = instance_norm(x, weight, residual=residual, impl="triton")
    y.sum().backward()
    assert x.grad is None
    assert torch.equal(residual.grad, torch.ones_like(residual))
    with torch.no_grad():
        assert not instance_norm(x, weight, impl="triton").requires_grad


# --- What PyTorch expects of an operator --------------------------------------------------------------------


def _operands(device: str, planes: bool = False) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    x, residual = (in_layout(torch.randn(2, 5, 9, 11, device=device), planes) for _ in range(2))
    return x, torch.randn(5, device=device), torch.randn(5, device=device), residual


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("plain", [False, True])
def test_opcheck(planes: bool, plain: bool, device: str) -> None:
    x, weight, bias, residual = _operands(device, planes)
    optional = (
        (None, None, None)
        if plain
        else (weight.requires_grad_(), bias.requires_grad_(), residual.requires_grad_())
    )
    torch.library.opcheck(
        torch.ops.fastcyclegan.instance_norm_fwd,
        (x.requires_grad_(), *optional, 1e-5, "leaky_relu", 0.2, True),
    )
    mean, rstd = torch.randn(2, 5, device=device), torch.rand(2, 5, device=device)
    affine = (None, None) if plain else (weight.detach(), bias.detach())
    arguments = (residual.detach(), x.detach(), *affine, mean, rstd, "leaky_relu", 0.2, True)
    torch.library.opcheck(torch.ops.fastcyclegan.instance_norm_bwd, arguments)


def test_compiles_whole_and_keeps_strides(device: str) -> None:
    """Forward and backward inside one graph, beside operators that the compiler may lay out as it likes."""
    x, weight, bias, residual = _operands(device)

    def run(x: Tensor) -> Tensor:
        return instance_norm(x * 2, weight, bias, act="relu", residual=residual, impl="triton").mul(3)

    results = []
    for f in (run, torch.compile(run, fullgraph=True)):
        leaf = x.detach().requires_grad_()
        y = f(leaf)
        y.backward(residual)
        results.append((y.detach(), leaf.grad))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled)
        assert eager.stride() == compiled.stride()


def test_one_graph_serves_all_sizes(device: str) -> None:
    torch._dynamo.reset()
    graphs: list[Any] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    f = torch.compile(
        lambda x: instance_norm(x, act="relu", impl="triton"), fullgraph=True, dynamic=True, backend=count
    )
    for height, width in ((9, 11), (8, 30), (21, 5)):
        x = in_layout(torch.randn(2, 5, height, width, device=device), False)
        torch.testing.assert_close(f(x), instance_norm_ref(x, act="relu"))
    assert len(graphs) == 1


def test_fake_tensors(device: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    x, weight, _, _ = _operands(device)
    with FakeTensorMode() as mode:
        y = instance_norm(mode.from_tensor(x), mode.from_tensor(weight), impl="triton")
    assert y.shape == x.shape
    assert y.stride() == x.stride()


def test_autocast_leaves_the_dtype_of_the_input(device: str) -> None:
    """As torch's instance norm does: a convolution's bf16 output stays bf16 with fp32 parameters, and fp32
    stays fp32.
    """
    x, weight, bias, _ = _operands(device)
    with torch.autocast(device, BF16):
        assert instance_norm(x, weight, bias, impl="triton").dtype == FP32
        y = instance_norm(x.to(BF16), weight.requires_grad_(), bias, impl="triton")
    assert y.dtype == BF16
    y.sum().backward()
    assert weight.grad.dtype == FP32


def test_double_backward_is_refused_and_names_the_reference(device: str) -> None:
    x = torch.randn(2, 5, 4, 4, device=device, requires_grad=True)
    (grad,) = torch.autograd.grad(instance_norm(x, impl="triton").square().sum(), x, create_graph=True)
    with pytest.raises(
        RuntimeError,
        match=r"instance_norm: the Triton kernels have no double backward .* use impl='reference'",
    ):
        grad.sum().backward()
    (grad,) = torch.autograd.grad(instance_norm(x, impl="reference").square().sum(), x, create_graph=True)
    grad.square().sum().backward()


# --- Bad input ----------------------------------------------------------------------------------------------

X = torch.zeros(2, 3, 4, 4)
WRONG = [
    (
        (torch.zeros(3, 256),),
        {},
        ValueError,
        r"instance_norm: x must be \[N, C, L\], \[N, C, H, W\] or .*, got shape \(3, 256\)",
    ),
    (
        (torch.zeros(2, 3, 4, 4, dtype=torch.int64),),
        {},
        TypeError,
        "x must be floating point, got torch.int64",
    ),
    ((X,), {"act": "gelu"}, ValueError, "act must be one of none, relu, leaky_relu, got 'gelu'"),
    ((X,), {"impl": "cuda"}, ValueError, "impl must be auto, triton or reference, got 'cuda'"),
    ((X, torch.zeros(4)), {}, ValueError, r"weight must be \[3\], a number for each channel of x, got \[4\]"),
    ((X, None, torch.zeros(3, dtype=FP16)), {}, TypeError, "bias must be torch.float32 .* got torch.float16"),
    ((X, torch.zeros(3, device="meta")), {}, ValueError, "weight must be on the device of x, cpu, got meta"),
    (
        (X,),
        {"residual": X[:1]},
        ValueError,
        r"residual must have the shape of x, \(2, 3, 4, 4\), got \(1, 3, 4, 4\)",
    ),
    (
        (X,),
        {"residual": X.half()},
        TypeError,
        "residual must have the dtype of x, torch.float32, got torch.float16",
    ),
    ((X,), {"residual": X.to("meta")}, ValueError, "residual must be on the device of x, cpu, got meta"),
    (
        (X.double(),),
        {"impl": "triton"},
        TypeError,
        "takes float32, bfloat16 or float16, got torch.float64; use impl='reference'",
    ),
    ((X.to("meta"),), {"impl": "triton"}, ValueError, "impl='triton' needs an NVIDIA GPU, got meta"),
    (
        (torch.zeros(2, 0, 4, 4),),
        {},
        ValueError,
        r"x must have channels and pixels, got shape \(2, 0, 4, 4\)",
    ),
    (
        (torch.zeros(2, 3, 0, 4),),
        {},
        ValueError,
        r"x must have channels and pixels, got shape \(2, 3, 0, 4\)",
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
        instance_norm(*arguments, **options)


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_a_single_pixel_raises_as_in_torch(impl: str) -> None:
    x = torch.zeros(1, 3, 1, 1)
    with pytest.raises(ValueError) as theirs:
        F.instance_norm(x)
    with pytest.raises(ValueError) as ours:
        instance_norm(x, impl=impl)
    assert str(ours.value) == str(theirs.value)


# --- On a GPU -----------------------------------------------------------------------------------------------

REAL = [(1, 64, 256, 256), (4, 256, 64, 64), (2, 512, 31, 31), (16, 128, 128, 128), (1, 32, 96, 96, 96)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("shape", REAL)
def test_real_shapes(shape: tuple[int, ...], planes: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, residual = (in_layout(torch.randn(shape, device="cuda") * 2 + 3, planes).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(shape[1], device="cuda") for _ in range(2))
    check(x, weight, bias, residual, act="leaky_relu")


@pytest.mark.gpu
def test_a_large_image_has_the_same_bits_in_any_batch() -> None:
    test_same_bits_twice_and_alone((3, 64, 128, 96), "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("planes", [False, True])
def test_more_than_two_to_the_31_elements(planes: bool) -> None:
    """Offsets past 32 bits. Checked on the last channels, where a wrapped offset would show."""
    torch.manual_seed(0)
    x = in_layout(torch.randn(1, 64, 5900, 5900, device="cuda", dtype=BF16), planes).requires_grad_()
    dy = torch.randn_like(x)
    y = instance_norm(x, act="relu", impl="triton")
    y.backward(dy)
    leaf = x.detach()[:, -4:].contiguous().float().requires_grad_()
    true = instance_norm_ref(leaf, act="relu")
    true.backward(dy[:, -4:].float())
    for ours, theirs in ((y[:, -4:], true), (x.grad[:, -4:], leaf.grad)):
        torch.testing.assert_close(ours.float(), theirs, rtol=2**-7, atol=2**-7)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", REAL[1:3])
def test_graph_replayed_twice_with_new_data(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, device="cuda", dtype=BF16).to(memory_format=torch.channels_last).requires_grad_()
    dy = torch.randn_like(x)

    def step() -> tuple[Tensor, Tensor]:
        y = instance_norm(x, act="relu", impl="triton")
        return y, torch.autograd.grad(y, x, dy)[0]

    graph, captured = captured_graph(step)
    for seed in (1, 2):
        torch.manual_seed(seed)
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
            dy.copy_(torch.randn_like(dy))
        graph.replay()
        for got, wanted in zip(captured, step(), strict=True):
            assert_same_bits("replayed", got, wanted)
