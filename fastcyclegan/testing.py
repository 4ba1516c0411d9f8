"""Helpers shared by tests and benches: seeded networks and samples, and comparisons by the parity rule.

The parity rule limits the error of our result against the float64 truth. It must be at most twice the error
of PyTorch's own operators in the same dtype, plus a few units in the last place. So the bound is derived from
the arithmetic and scales with it; no tolerance is tuned.
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

from fastcyclegan.data.batch import Batch
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.engine import Engine
from fastcyclegan.recipes.cyclegan import CycleGANRecipe, LossConfig, build_networks
from fastcyclegan.settings.crop_size import CropSize, sides_of
from fastcyclegan.settings.engine import EngineConfig
from fastcyclegan.settings.networks import ModelConfig
from fastcyclegan.settings.optim import OptimConfig

# fp32 is allowed more, because the sums of a whole network are computed in another order. In 16 bits, sums
# are kept in fp32, and 8 ulp would hide an error of 6 %.
PARITY_ULPS = {torch.float32: 8, torch.bfloat16: 2, torch.float16: 2}


def relative_error(result: Tensor, truth: Tensor) -> float:
    """Return the relative error |result - truth| / |truth| (2-norms, in float64).

    If the truth is zero, return |result|. NaN counts as an infinite error.
    """
    result, truth = result.detach().double().cpu(), truth.detach().double().cpu()
    if result.shape != truth.shape:
        raise AssertionError(f"shapes differ: {list(result.shape)} and {list(truth.shape)}")
    error = (result - truth).norm() / (truth.norm() if truth.any() else 1.0)
    return float("inf") if error.isnan() else error.item()


def assert_parity(name: str, ours: Tensor, pytorch: Tensor, truth: Tensor, dtype: torch.dtype) -> None:
    """Raise AssertionError unless error(ours) <= 2 error(pytorch) + PARITY_ULPS of ``dtype``.

    Errors are relative to the float64 ``truth``. The message contains what is needed to debug the failure on
    another machine: both errors, shape, dtype and strides, and the first wrong element.
    """
    error, pytorch_error = relative_error(ours, truth), relative_error(pytorch, truth)
    if not math.isfinite(pytorch_error) or not truth.isfinite().all():
        raise AssertionError(
            f"{name}: PyTorch's own result is not finite, so there is nothing to compare with"
        )
    allowed = 2 * pytorch_error + PARITY_ULPS[dtype] * torch.finfo(dtype).eps
    if not error <= allowed:
        errors = (
            f"relative error {error:.3e} against float64, allowed {allowed:.3e}, PyTorch's own"
            f" {pytorch_error:.3e}"
        )
        raise AssertionError(f"{name}: {errors}; {describe_difference(ours, pytorch, truth, dtype)}")


def describe_difference(ours: Tensor, pytorch: Tensor, truth: Tensor, dtype: torch.dtype) -> str:
    """Return one line that describes where ``ours`` is wrong.

    The line contains the layout, the number of wrong elements, and the first and the worst of them with their
    indices. An element is wrong if it differs from ``truth`` by more than twice the largest difference of
    PyTorch's result, plus PARITY_ULPS units in the last place of the largest element.
    """
    layout = f"{str(ours.dtype).removeprefix('torch.')} {list(ours.shape)} strides {list(ours.stride())}"
    a, b, c = (t.detach().double().cpu() for t in (ours, pytorch, truth))
    if not c.numel():
        return layout
    limit = 2 * (b - c).abs().max() + PARITY_ULPS[dtype] * torch.finfo(dtype).eps * c.abs().max()
    difference = (a - c).abs().nan_to_num(nan=float("inf"))
    wrong = (difference > limit).flatten().nonzero().flatten()

    def element(flat: int) -> str:
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), c.shape))
        return f"{list(index)}: {a[index]:.6g}, true {c[index]:.6g}, PyTorch's {b[index]:.6g}"

    worst = f"worst at {element(int(difference.argmax()))}"
    if not len(wrong):
        return f"{layout}; no single element stands out, {worst}"
    return (
        f"{layout}; {len(wrong)} of {c.numel()} elements are wrong, first at {element(int(wrong[0]))},"
        f" {worst}"
    )


def assert_same_bits(name: str, ours: Tensor, expected: Tensor) -> None:
    """Raise AssertionError unless both tensors are exactly equal.

    The message contains the first element that differs, and the number of elements that differ.
    """
    if (ours.dtype, ours.shape) != (expected.dtype, expected.shape):
        raise AssertionError(
            f"{name}: shapes or dtypes differ: {ours.dtype} {list(ours.shape)} and {expected.dtype}"
            f" {list(expected.shape)}"
        )
    if torch.equal(ours, expected):
        return
    a, b = ours.detach().cpu(), expected.detach().cpu()
    different = (a != b).flatten().nonzero().flatten()
    index: tuple[int, ...] = ()
    if len(different):
        index = tuple(int(i) for i in torch.unravel_index(different[0], a.shape))
    layout = f"{str(ours.dtype).removeprefix('torch.')} {list(ours.shape)} strides {list(ours.stride())}"
    first = f"first at {list(index)}: {a[index].item()!r} and {b[index].item()!r}"
    raise AssertionError(f"{name}: {layout}; {len(different)} of {a.numel()} elements differ, {first}")


def tf32(allowed: bool) -> AbstractContextManager[None]:
    """Return a context that allows torch's convolutions to round fp32 to TF32, or forbids it.

    ``cudnn.flags`` would disable cuDNN by default. Here it stays enabled, and its other flags keep their
    values.
    """
    others = {name: getattr(torch.backends.cudnn, name) for name in ("benchmark", "deterministic")}
    context: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, allow_tf32=allowed, **others
    )
    return context


def packed_gradient(dx: Tensor) -> Tensor:
    """Convert the gradient ``dx`` [N, C, H, W] to the packed layout described in kernels/README.md.

    The result [N, (H + 2)(W + 4), C] consists of dx, two columns of zeros, two folded rows and two folded
    columns.
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
    """Capture ``step`` as a CUDA graph and return it with the tensors that each replay overwrites.

    ``step`` runs once on a separate stream before it is captured.
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
    size: CropSize,
    plan: Plan,
    iteration: int,
    channels: tuple[int, ...] = (3, 3),
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """Return a batch of noise images for ``iteration`` of ``plan``.

    ``size`` is the side of square images, or their height and width, in pixels. ``channels`` has one entry
    for each domain. The same arguments always return the same batch.
    """
    epoch, numbers = plan.batch(iteration)
    samples = [plan.sample(epoch, i) for i in numbers]
    generator = torch.Generator().manual_seed(1 + iteration)

    def noise(channels: int) -> Tensor:
        shape = (len(samples), channels, *sides_of(size))
        images = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
        return images.to(dtype, memory_format=torch.channels_last)

    paths = [""] * len(samples)
    images = {side: noise(count) for side, count in zip("AB", channels, strict=False)}
    return Batch(images, dict.fromkeys(images, paths), samples)


def seeded_networks(
    config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, nn.Module]:
    """Return the four networks of ``config``, initialised from ``seed``."""
    torch.manual_seed(seed)
    return {name: net.to(dtype) for name, net in build_networks(config).items()}


def copy_of(nets: Mapping[str, nn.Module], dtype: torch.dtype | None = None) -> dict[str, nn.Module]:
    """Return independent copies of ``nets``, converted to ``dtype`` if it is given."""
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
    """Return an engine that trains copies of ``nets``."""
    return Engine(
        CycleGANRecipe(loss), copy_of(nets), optim, torch.device(device), precision, compiled, options, **more
    )


def is_cancelled_bias(net: nn.Module, name: str) -> bool:
    """Return whether parameter ``name`` is a convolution's bias that a following instance norm cancels.

    Both layers must be neighbours in an ``nn.Sequential``. Such a bias cancels exactly: no output depends on
    it, and its true gradient is 0. In training it receives only rounding noise, which Adam turns into steps
    of size lr, so it can only be compared between runs of the very same program. In evaluation, a norm with
    running statistics subtracts its stored mean instead, so there the bias does not cancel.
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
    """Return the parameters of ``net`` by name, without the biases that an instance norm cancels.

    These are the parameters to compare between two ways of training.
    """
    return {name: p for name, p in net.named_parameters() if not is_cancelled_bias(net, name)}
