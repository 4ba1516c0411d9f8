"""What tests and benches share: seeded networks and samples, and the rule by which a result counts as equal.

The rule (parity): our error against the float64 truth may be at most twice the error that PyTorch's own
operators make in the same dtype, plus a few units in the last place. So the bound comes from the arithmetic
and scales with it; nothing is tuned to pass.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from fastcyclegan.config import EngineConfig, LossConfig, ModelConfig, OptimConfig
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.engine import Engine
from fastcyclegan.recipes.cyclegan import CycleGANRecipe, build_networks

# fp32 sums of a whole network run in another order; in 16 bits, where sums are kept in fp32, as many ulp
# would hide an error of 6 %.
PARITY_ULPS = {torch.float32: 8, torch.bfloat16: 2, torch.float16: 2}


def relative_error(result: Tensor, truth: Tensor) -> float:
    """Return |result - truth| / |truth| (2-norms, in float64); |result| where the truth is zero. NaN is an
    infinite error.
    """
    result, truth = result.detach().double().cpu(), truth.detach().double().cpu()
    if result.shape != truth.shape:
        raise AssertionError(f"shapes differ: {list(result.shape)} and {list(truth.shape)}")
    error = (result - truth).norm() / (truth.norm() if truth.any() else 1.0)
    return float("inf") if error.isnan() else error.item()


def assert_parity(name: str, ours: Tensor, theirs: Tensor, truth: Tensor, dtype: torch.dtype) -> None:
    """Raise AssertionError unless error(ours) <= 2 error(theirs) + PARITY_ULPS of ``dtype``, errors relative
    to float64 ``truth``.

    The message has what it takes to mend it elsewhere: both errors, shape, dtype and strides, and the first
    number that is wrong.
    """
    found, of_the_dtype = relative_error(ours, truth), relative_error(theirs, truth)
    if not math.isfinite(of_the_dtype) or not truth.isfinite().all():
        raise AssertionError(f"{name}: PyTorch's own result is not finite, which can be no yardstick")
    allowed = 2 * of_the_dtype + PARITY_ULPS[dtype] * torch.finfo(dtype).eps
    if not found <= allowed:
        errors = (
            f"relative error {found:.3e} against float64, allowed {allowed:.3e}, PyTorch's own"
            f" {of_the_dtype:.3e}"
        )
        raise AssertionError(f"{name}: {errors}; {describe_difference(ours, theirs, truth, dtype)}")


def describe_difference(ours: Tensor, theirs: Tensor, truth: Tensor, dtype: torch.dtype) -> str:
    """Return a line on where ``ours`` is wrong: its layout, how many numbers are, the first of them and the
    worst, by index.

    A number is wrong that is further from ``truth`` than twice PyTorch's worst, plus the units in the last
    place of the largest number.
    """
    layout = f"{str(ours.dtype).removeprefix('torch.')} {list(ours.shape)} strides {list(ours.stride())}"
    a, b, c = (t.detach().double().cpu() for t in (ours, theirs, truth))
    if not c.numel():
        return layout
    limit = 2 * (b - c).abs().max() + PARITY_ULPS[dtype] * torch.finfo(dtype).eps * c.abs().max()
    difference = (a - c).abs().nan_to_num(nan=float("inf"))
    wrong = (difference > limit).flatten().nonzero().flatten()

    def number(flat: int) -> str:
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), c.shape))
        return f"{list(index)}: {a[index]:.6g}, true {c[index]:.6g}, PyTorch's {b[index]:.6g}"

    worst = f"worst at {number(int(difference.argmax()))}"
    if not len(wrong):
        return f"{layout}; no single number stands out, {worst}"
    return (
        f"{layout}; {len(wrong)} of {c.numel()} numbers are wrong, first at {number(int(wrong[0]))}, {worst}"
    )


def assert_same_bits(name: str, ours: Tensor, theirs: Tensor) -> None:
    """Raise AssertionError unless both tensors are equal; the message names the first number that is not, and
    how many there are.
    """
    if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
        raise AssertionError(
            f"{name}: shapes or dtypes differ: {ours.dtype} {list(ours.shape)} and {theirs.dtype}"
            f" {list(theirs.shape)}"
        )
    if torch.equal(ours, theirs):
        return
    a, b = ours.detach().cpu(), theirs.detach().cpu()
    different = (a != b).flatten().nonzero().flatten()
    index: tuple[int, ...] = ()
    if len(different):
        index = tuple(int(i) for i in torch.unravel_index(different[0], a.shape))
    layout = f"{str(ours.dtype).removeprefix('torch.')} {list(ours.shape)} strides {list(ours.stride())}"
    first = f"first at {list(index)}: {a[index].item()!r} and {b[index].item()!r}"
    raise AssertionError(f"{name}: {layout}; {len(different)} of {a.numel()} numbers differ, {first}")


def tf32(allowed: bool) -> AbstractContextManager[None]:
    """Let torch's convolutions round fp32 to TF32 inside the block, or not. cuDNN stays on, which ``flags``
    turns off unless it is told.
    """
    kept = {name: getattr(torch.backends.cudnn, name) for name in ("benchmark", "deterministic")}
    context: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, allow_tf32=allowed, **kept
    )
    return context


def packed_gradient(dx: Tensor) -> Tensor:
    """kernels/README.md's packed gradient, [N, (H + 2)(W + 4), C]: dx, two columns of zeros, two folded rows,
    two folded columns.
    """

    def folded(t: Tensor, dim: int) -> list[Tensor]:
        size = t.shape[dim]
        first, last = t.narrow(dim, 0, 1), t.narrow(dim, size - 1, 1)
        if size > 2:
            first, last = first + t.narrow(dim, 2, 1), last + t.narrow(dim, size - 3, 1)
        return [first, last]

    rows = torch.cat([dx, *folded(dx, 2)], dim=2)
    parts = [F.pad(rows, (0, 2)), *folded(rows, 3)]
    return torch.cat([part.permute(0, 2, 3, 1).flatten(1, 2) for part in parts], dim=1)


def captured_graph(step: Callable[[], tuple[Tensor, ...]]) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
    """Return a CUDA graph of ``step``, which has run once on a stream of its own before, and the tensors that
    each replay writes.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph, results


def random_batch(
    size: int,
    plan: Plan,
    iteration: int,
    channels: tuple[int, int] = (3, 3),
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """Return fresh noise images of ``size`` squared for ``iteration`` of ``plan``: the same for the same
    arguments.
    """
    epoch, numbers = plan.batch(iteration)
    samples = [plan.sample(epoch, i) for i in numbers]
    generator = torch.Generator().manual_seed(1 + iteration)

    def noise(channels: int) -> Tensor:
        shape = (len(samples), channels, size, size)
        images = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
        return images.to(dtype, memory_format=torch.channels_last)

    paths = [""] * len(samples)
    return Batch(noise(channels[0]), noise(channels[1]), paths, paths, samples)


def seeded_networks(
    config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, nn.Module]:
    """Return the recipe's four networks for ``config`` with the initial weights of ``seed``."""
    torch.manual_seed(seed)
    return {name: net.to(dtype) for name, net in build_networks(config).items()}


def copy_of(nets: Mapping[str, nn.Module], dtype: torch.dtype | None = None) -> dict[str, nn.Module]:
    """Return copies of ``nets`` that share nothing, in ``dtype`` if given."""
    return {name: copy.deepcopy(net).to(dtype=dtype) for name, net in nets.items()}


def make_engine(
    nets: Mapping[str, nn.Module],
    loss: LossConfig = LossConfig(),
    optim: OptimConfig = OptimConfig(),
    device: str = "cpu",
    precision: str = "fp32",
    compiled: bool = False,
    options: EngineConfig = EngineConfig(),
    **more: Any,
) -> Engine:
    """Return an engine over a copy of ``nets``."""
    return Engine(
        CycleGANRecipe(loss), copy_of(nets), optim, torch.device(device), precision, compiled, options, **more
    )


def is_cancelled_bias(net: nn.Module, name: str) -> bool:
    """Whether parameter ``name`` is the bias of a convolution whose output is instance-normalised next, in an
    ``nn.Sequential``.

    Such a bias cancels exactly: no output depends on it, its true gradient is 0, and what it does in training
    is rounding noise, which Adam makes steps of size lr. So it may be compared only between runs of the very
    same program. A norm with running statistics subtracts a mean of its own in evaluation, where the bias
    counts.
    """
    owner, _, leaf = name.rpartition(".")
    parent = net.get_submodule(owner.rpartition(".")[0])
    if leaf != "bias" or not isinstance(parent, nn.Sequential):
        return False
    conv, norm = net.get_submodule(owner), None
    layers = [layer for layer in parent if not isinstance(layer, nn.Identity)]
    for layer, following in itertools.pairwise(layers):
        if layer is conv:
            norm = following
    if not isinstance(conv, _ConvNd) or not isinstance(norm, _InstanceNorm):
        return False
    return norm.training or not norm.track_running_stats


def parameters_that_count(net: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of ``net`` by name but the biases that cancel: what two ways to train it are
    compared by.
    """
    return {name: p for name, p in net.named_parameters() if not is_cancelled_bias(net, name)}
