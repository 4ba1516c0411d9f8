"""Count the launches, calls and saved bytes of a training step, and of a translation, without a GPU.

The counts are those of Triton launches, ATen calls and bytes saved for backward. They come from a dry run
(fastcyclegan/devtools/dry_run.py) that skips the computation of kernels and convolutions, so that even the
real sizes take only seconds.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from bench.baselines import plain_networks
from bench.cyclegan_baseline import cyclegan_config
from bench.pix2pix_baseline import pix2pix_config
from bench.providers import LR, train_step
from fastcyclegan.config import TrainConfig
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.devtools.dry_run import Counts, counted, dry_run
from fastcyclegan.engine import Engine
from fastcyclegan.inference.image_counts import image_counts
from fastcyclegan.nn.networks import Generator, UnetGenerator
from fastcyclegan.testing import random_batch


class _AutocastOfGPU(TorchFunctionMode):
    """Pad images in the dtype that they have, as autocast does on a GPU. On a CPU it pads them in fp32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if kwargs is None:
            kwargs = {}
        if func is F.pad:
            with torch.autocast("cpu", enabled=False):
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def info_of(counts: Counts) -> dict[str, Any]:
    """Return the extra information of a bench whose only results are ``counts``."""
    return {
        "launches": counts.launches.total(),
        "aten_calls": counts.aten.total(),
        "saved_bytes": counts.saved_bytes,
        "counts_only": True,
    }


def step_counts(
    provider: str, size: int, batch: int, blocks: int = 9, identity: bool = True, precision: str = "bf16"
) -> Counts:
    """Return the counts of one training iteration after the first.

    ``provider`` is "ours" (fastcyclegan with its kernels), "official" or "official_bf16". ``precision``
    applies only to "ours"; the precision of the official training step is part of the provider's name.

    In the official training step, two things are counted as on a GPU, where they take fewer calls than on a
    CPU: autocast does not pad in fp32, and torch's Adam updates all weights together.
    """
    config = cyclegan_config(identity, netG=f"resnet_{blocks}blocks", impl="triton")
    return counts_of(config, provider, random_batch(size, Plan(0, 100, 100, batch), 0), precision)


def pix2pix_step_counts(
    provider: str, size: int = 256, norm: str = "batch", precision: str = "bf16", **model: Any
) -> Counts:
    """Return the counts of one training iteration of pix2pix with batch 1, as ``step_counts`` does.

    The generator is the U-Net for images of ``size``. ``model`` are more settings of the networks.
    """
    config = pix2pix_config(netG=f"unet_{size}", norm=norm, impl="triton", **model)
    return counts_of(config, provider, random_batch(size, Plan(0, 100, 100, paired=True), 0), precision)


def counts_of(config: TrainConfig, provider: str, images: Batch, precision: str) -> Counts:
    """Return the counts of one training iteration on ``images`` after the first; see ``step_counts``."""
    if provider == "ours":
        recipe = config.make_recipe()
        networks = recipe.build_networks()
        with dry_run():  # here the kernels accept CPU tensors
            engine = Engine(recipe, networks, config.optim, torch.device("cpu"), precision)
        weights = [p for net in engine.nets.values() for p in net.parameters()]

        def step() -> Any:
            return engine.step(images, LR)
    else:
        official = train_step(provider, plain_networks(config), "cpu", config)
        weights = [p for net in official.nets.values() for p in net.parameters()]
        for group in (group for optimizer in official.optimizers for group in optimizer.param_groups):
            group["foreach"] = True

        def step() -> Any:
            with _AutocastOfGPU():
                return official.run(images)

    with dry_run():
        step()  # creates the optimizers' moments
    with dry_run() as run:
        step()
    # In a separate step, because counting the bytes hides from the kernels which gradients they may add to.
    with counted(weights) as saved:
        step()
    return replace(run.counts, saved_bytes=saved.saved_bytes)


def translation_counts(
    provider: str, precision: str, size: int = 256, batch: int = 1, blocks: int = 9
) -> Counts:
    """Return the counts of the translation of one batch by the generator on a GPU, after the first.

    ``provider`` is "official", "ours" (fastcyclegan's network, called directly), or "uncaptured" or
    "captured" (the inference engine without and with a CUDA graph). Each runs without gradients in its own
    way: the official test under no_grad, ours in inference_mode. The image is already on the device. In bf16
    the network runs under autocast.
    """
    if provider == "official":
        nets = plain_networks(cyclegan_config(netG=f"resnet_{blocks}blocks"))
        return counts_of_network(nets["G_AB"].eval(), provider, precision, size, batch)
    net = Generator(n_blocks=blocks, impl="triton")
    return counts_of_network(net.eval(), provider, precision, size, batch)


def pix2pix_translation_counts(
    provider: str, precision: str, size: int = 256, norm: str = "batch", **model: Any
) -> Counts:
    """Return the counts of the translation of one image by the generator of pix2pix.

    See ``translation_counts``. There is no dropout. Batch norms use the statistics of the image, except in
    the inference engine. ``model`` are more settings of the network.
    """
    config = pix2pix_config(netG=f"unet_{size}", norm=norm, **model)
    net = plain_networks(config)["G"]
    if provider != "official":
        used: Any = config.model
        net = UnetGenerator(num_downs=used.levels, ngf=used.ngf, norm=norm, impl="triton")
    return counts_of_network(net.train(norm == "batch"), provider, precision, size)


def counts_of_network(net: nn.Module, provider: str, precision: str, size: int, batch: int = 1) -> Counts:
    """Return the counts of the translation of one batch by ``net``; see ``translation_counts``."""
    if provider in ("uncaptured", "captured"):
        return image_counts(net, size, size, precision, provider)  # type: ignore[arg-type]
    mode: AbstractContextManager[Any] = torch.no_grad()
    if provider != "official":
        mode = torch.inference_mode()
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.zeros(batch, 3, size, size)

    def translate() -> None:
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
        with mode, autocast, _AutocastOfGPU():
            net(image)

    with dry_run():
        translate()
    with dry_run() as run:
        translate()
    return run.counts
