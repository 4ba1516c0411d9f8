"""List every kernel specialisation that fastcyclegan launches, for the kernel gate to compile and check.

The list is collected in dry runs at real sizes: training iterations with each option that changes kernels,
translations, and calls of the operators in ways that only other projects use. It is an error if a registered
kernel is launched by none of them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from fastcyclegan.config import EngineConfig, LossConfig, ModelConfig, OptimConfig
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.devtools.compile_kernels import Arch, jobs_of
from fastcyclegan.devtools.jobs import Job
from fastcyclegan.engine import Engine
from fastcyclegan.engine.ahead import dry_translation
from fastcyclegan.kernels import _launch, accumulating, descriptor_launch, instance_norm, reflect_conv2d
from fastcyclegan.kernels.dispatch import as_on_gpu
from fastcyclegan.nn.networks import Generator
from fastcyclegan.recipes.cyclegan import CycleGANRecipe, build_networks
from fastcyclegan.testing import random_batch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SIZE = 256
# One block launches the same kernels as nine.
SMALL = ModelConfig(netG="resnet_1blocks")
# Networks with layers of other shapes or in another order.
OTHERS = (
    dataclasses.replace(SMALL, netG="unet_256", netD="pixel"),
    dataclasses.replace(SMALL, upsample="resize"),
    dataclasses.replace(SMALL, downsample="antialias", upsample="antialias"),
    dataclasses.replace(SMALL, affine=True),
    dataclasses.replace(SMALL, input_nc=1, output_nc=1),
)
Case = Callable[[], object]


def _step(
    model: ModelConfig, precision: str, batch: int, identity: bool = True, pairing: str = "auto"
) -> None:
    """Run one training iteration with the kernels that an engine on a GPU would use."""
    loss = LossConfig()
    if not identity:
        loss = LossConfig(lambda_identity=0.0)
    options = EngineConfig(pairing=pairing)  # type: ignore[arg-type]
    with as_on_gpu():
        engine = Engine(
            CycleGANRecipe(loss),
            build_networks(model),
            OptimConfig(),
            torch.device("cpu"),
            precision,
            options=options,
        )
        engine.step(random_batch(SIZE, Plan(0, 100, 100, batch), 0, (model.input_nc, model.output_nc)), 2e-4)


def _translate(model: ModelConfig, precision: str, batch: int) -> None:
    net = build_networks(model)["G_AB"]
    images = torch.zeros(batch, model.input_nc, SIZE, SIZE, dtype=torch.float32)
    images = images.to(memory_format=torch.channels_last)
    dry_translation(net, images, DTYPES[precision])


def _without_recompute(dtype: torch.dtype) -> None:
    """Run forward and backward passes of a generator that recomputes nothing in the backward pass."""
    net = Generator(n_blocks=1, impl="triton", recompute=False).to(dtype)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    y = net(_image(3, SIZE, dtype))
    y.backward(torch.empty_like(y))


def _image(channels: int, side: int, dtype: torch.dtype) -> Tensor:
    image = torch.zeros(1, channels, side, side, dtype=dtype)
    return image.contiguous(memory_format=torch.channels_last).requires_grad_()


def _operators(dtype: torch.dtype) -> None:
    """Run the operators in the modes that no network uses.

    These are NCHW images, affine norms, a single convolution with a bias, and a gradient that is added
    to another.
    """
    for shape in ((1, 64, 256, 256), (1, 256, 32, 32)):
        x = torch.zeros(shape, dtype=dtype, requires_grad=True)
        residual = torch.zeros(shape, dtype=dtype, requires_grad=True)
        weight = torch.zeros(shape[1], dtype=torch.float32, requires_grad=True)
        bias = torch.zeros(shape[1], dtype=torch.float32, requires_grad=True)
        y = instance_norm(x, weight, bias, act="leaky_relu", residual=residual, impl="triton")
        y.backward(torch.empty_like(y))
    for inputs, outputs in ((256, 256), (64, 3)):
        weight = torch.zeros(outputs, inputs, 3, 3, dtype=torch.float32, requires_grad=True)
        bias = torch.zeros(outputs, dtype=torch.float32, requires_grad=True)
        x = _image(inputs, 64, dtype)
        for _ in range(2):
            y = reflect_conv2d(x, weight, bias, padding=1, impl="triton")
            with accumulating():
                y.backward(torch.empty_like(y))


def _cases(precision: str, batches: Sequence[int]) -> Iterator[Case]:
    """Yield functions that each run one case. The first one runs the default training iteration."""
    dtype = DTYPES[precision]
    for batch, identity, pairing in itertools.product(batches, (True, False), ("auto", "off")):
        yield functools.partial(_step, SMALL, precision, batch, identity, pairing)
    for model in OTHERS:
        yield functools.partial(_step, model, precision, 1)
    for model, batch in itertools.product((SMALL, *OTHERS), batches):
        yield functools.partial(_translate, model, precision, batch)
    yield functools.partial(_without_recompute, dtype)
    yield functools.partial(_operators, dtype)


Configs = Literal["all", "first", "telling"]


def in_fp16(job: Job) -> Job:
    """Return a copy of ``job`` with bf16 replaced by fp16 in all types of tensors."""
    return dataclasses.replace(job, data=re.sub(r"(?<=[*<])bf16\b", "fp16", job.data))


def shipped_jobs(dtypes: Iterable[str], arch: Arch, configs: Configs = "all") -> list[Job]:
    """Return every specialisation that fastcyclegan launches on ``arch`` in ``dtypes``.

    ``configs`` selects the configurations: "all", only the "first", or "telling", which means all for the
    default training iteration and the first for every other case. Only "all" includes batches of several
    samples; at present they launch the same specialisations. Raises RuntimeError if a registered kernel is
    launched by none of the cases.
    """
    batches: Sequence[int] = (1,)
    if configs == "all":
        batches = (1, 2, 4)
    jobs: dict[Job, None] = {}
    for dtype in dtypes:
        precision, allow_tf32 = dtype, [True]
        if dtype == "fp32":
            allow_tf32.append(False)
        elif dtype == "fp16":
            # fp16 launches the same kernels as bf16 (a test checks this), but its dry runs take minutes on a
            # CPU.
            precision = "bf16"
        for tf32 in allow_tf32:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
                for number, case in enumerate(_cases(precision, batches)):
                    every = configs == "all" or (configs == "telling" and number == 0)
                    for job in jobs_of(case, arch.chip, every, all_forms=every).jobs:
                        jobs[in_fp16(job) if dtype == "fp16" else job] = None
    expected = set(_launch.REGISTRY)
    if arch.chip.capability >= 90:
        tiles = jobs_of(lambda: list(descriptor_launch.tiles(torch.device("cpu"))), arch.chip, False)
        jobs.update(dict.fromkeys(tiles.jobs))
    else:
        # This chip has no tensor descriptors, so nothing launches this kernel.
        expected.discard("_descriptor_copy_kernel")
    uncovered = sorted(expected - {job.kernel for job in jobs})
    if uncovered:
        names = ", ".join(uncovered)
        raise RuntimeError(f"no case launches {names}: add one to fastcyclegan/kernel_gate/shipped.py")
    return list(jobs)
