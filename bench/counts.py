"""Exact counts of a whole training step, without a GPU: Triton launches, ATen calls, and the bytes kept for
its two backward passes.

A dry run (fastcyclegan/devtools/dry_run.py): no kernel and no convolution is computed, so the real sizes take
seconds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from bench.providers import LR, plain_networks, train_step
from fastcyclegan.config import LossConfig, ModelConfig, OptimConfig
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.devtools.dry_run import Counts, counted, dry_run
from fastcyclegan.engine import Engine
from fastcyclegan.recipes.cyclegan import CycleGANRecipe, build_networks
from fastcyclegan.testing import random_batch


def step_counts(
    provider: str, size: int, batch: int, blocks: int = 9, identity: bool = True, precision: str = "bf16"
) -> Counts:
    """Return the counts of one iteration of "ours" on its kernels, of "official" or of "official_bf16", past
    the first.

    ``precision`` is for ours; the official order has the one that its name says.
    """
    config = ModelConfig(netG=f"resnet_{blocks}blocks", impl="triton")
    loss = LossConfig()
    if not identity:
        loss = LossConfig(lambda_identity=0.0)
    images = random_batch(size, Plan(0, 100, 100, batch), 0)
    if provider == "ours":
        networks = build_networks(config)
        with dry_run():  # in which the kernels serve the CPU
            engine = Engine(CycleGANRecipe(loss), networks, OptimConfig(), torch.device("cpu"), precision)
        weights = [p for net in engine.nets.values() for p in net.parameters()]

        def step() -> Any:
            return engine.step(images, LR)
    else:
        official = train_step(provider, plain_networks(config), "cpu", loss, config=config)
        weights = [p for net in official.nets.values() for p in net.parameters()]

        def step() -> Any:
            return official.run(images)

    with dry_run():
        step()  # makes the optimizers' moments
    with dry_run() as run:
        step()
    # Apart: what is asked for the bytes hides from the kernels which gradients they may add to.
    with counted(weights) as kept:
        step()
    return replace(run.counts, saved_bytes=kept.saved_bytes)
