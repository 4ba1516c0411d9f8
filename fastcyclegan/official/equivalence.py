"""Verify, before the first iteration, that our training step makes the same updates as the checkout's own.

A checkout can have another loss, another optimizer, gradient clipping, or an entirely different step. So both
steps run two iterations on float64 copies of the networks, starting from the same weights and the same random
state, with small images derived from the first batch. The replay pools are made so small that they already
swap images. Everything that an iteration changes is compared: the update and the running statistics of every
network, the losses, and the number of random numbers drawn from Python's ``random``.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcyclegan.nn.networks import Discriminator, UnetGenerator, set_impl
from fastcyclegan.official.patch_networks import without_dropout
from fastcyclegan.official.step import LOSSES, NETS, NotReplaceableError, Settings, Step

ITERATIONS, IMAGES, CAPACITY = 2, 2, 2
# The model's own learning rate is not used because it can be 0, and then no weight would change.
LEARNING_RATE = 2e-4
# Rounding in float64 causes differences of 1e-14, or of 1e-8 with biases that an instance norm cancels: their
# gradient is noise of 1e-16, which Adam divides by its eps of 1e-8. On a GPU the learning rate is a float32,
# which causes differences of 3e-8.
TOLERANCE = 1e-6

State = dict[str, Tensor]


def compare_steps(model: Any, optimize: Callable[[Any], Any], settings: Settings) -> float:
    """Compare ``optimize``, the checkout's own step, with ours on copies of ``model``.

    Returns the largest relative difference. Changes neither the model nor any random state. Raises
    NotReplaceableError if the steps differ or cannot be compared.
    """
    with _preserved_random_states(settings.device):
        try:
            twin, our_settings = _twins(model, settings)
            side = _side(settings.nets)
            batches = [_images(model, side, seed) for seed in range(ITERATIONS)]
            official, ours = _run_official(twin, optimize, batches), _run_ours(our_settings, batches)
        except NotReplaceableError:
            raise
        # A modified step can raise anything when it runs on a copy of its model. The caller then logs the
        # reason and keeps the checkout's step.
        except Exception as error:
            reason = next(iter(str(error).splitlines()), "")
            raise NotReplaceableError(
                f"it cannot be compared with fastcyclegan's: {type(error).__name__}: {reason}"
            ) from error
    return _largest_difference(official, ours)


@contextlib.contextmanager
def _preserved_random_states(device: torch.device) -> Iterator[None]:
    """Restore all random states when the block ends."""
    python, numbers = random.getstate(), np.random.get_state()
    devices = []
    if device.type == "cuda":
        devices.append(device)
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)


def _twins(model: Any, settings: Settings) -> tuple[Any, Settings]:
    """Return a float64 copy of ``model``, and settings for our step with separate copies of its networks.

    All these networks are computed by PyTorch's operators.
    """
    memo: dict[int, Any] = {}
    nets = {name: copy.deepcopy(net, memo) for name, net in settings.nets.items()}
    twin = object.__new__(type(model))
    # The memo makes the copied optimizers train the copied parameters.
    for key, value in vars(model).items():
        if key not in (*nets, "schedulers"):
            vars(twin)[key] = copy.deepcopy(value, memo)
    vars(twin).update(nets)
    for value in vars(twin).values():
        if isinstance(value, nn.Module):
            value.double()
    for net in nets.values():
        set_impl(net, "reference")
        for module in net.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
    for optimizer in (twin.optimizer_G, twin.optimizer_D):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE
    for pool in (twin.fake_A_pool, twin.fake_B_pool):
        pool.pool_size = min(pool.pool_size, CAPACITY)
    loss = dataclasses.replace(settings.loss, pool_size=min(settings.loss.pool_size, CAPACITY))
    our_nets = {name: without_dropout(net) for name, net in nets.items()}
    return twin, dataclasses.replace(settings, nets=our_nets, loss=loss)


def _side(nets: dict[str, nn.Module]) -> int:
    """Return the smallest image side that all of ``nets`` accept."""
    multiple, least = 4, 16
    for net in nets.values():
        strided = sum(isinstance(module, nn.Conv2d) and module.stride == (2, 2) for module in net.modules())
        if isinstance(net, UnetGenerator):
            multiple = max(multiple, 2**strided)
        elif isinstance(net, Discriminator):
            least = max(least, 3 * 2**strided)
    return -(-least // multiple) * multiple


def _images(model: Any, side: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return two small images per domain, [2, C, side, side] in float64.

    They are resized from the first images of ``model``. Added noise keeps them from being flat.
    """
    generator = torch.Generator().manual_seed(seed)

    def small_images(images: Tensor) -> Tensor:
        small = F.interpolate(images[:IMAGES].detach().double(), (side, side), mode="bilinear")
        small = torch.cat([small, small.flip(-1)])[:IMAGES]
        noise = torch.randn(small.shape, dtype=torch.float64, generator=generator)
        return small + 0.2 * noise.to(small.device)

    return small_images(model.real_A), small_images(model.real_B)


def _state(nets: dict[str, nn.Module]) -> State:
    """Return two vectors per network: its weights and, if it has any, its running statistics."""
    state = {}
    for name, net in nets.items():
        weights = [p.detach().flatten() for p in net.parameters()]
        statistics = [buffer.flatten() for buffer in net.buffers() if buffer.is_floating_point()]
        if weights:
            state[f"{name}'s weights"] = torch.cat(weights).clone()
        if statistics:
            state[f"{name}'s statistics"] = torch.cat(statistics).clone()
    return state


def _results(nets: dict[str, nn.Module], before: State, losses: list[State]) -> State:
    results = {}
    for name, value in _state(nets).items():
        results[name] = value - before[name]
    for n, row in enumerate(losses, 1):
        for name, loss in row.items():
            results[f"loss {name} of iteration {n}"] = torch.as_tensor(loss).double()
    results["Python's random numbers"] = torch.tensor(random.random(), dtype=torch.float64)
    return results


def _run_official(twin: Any, optimize: Callable[[Any], Any], batches: list[tuple[Tensor, Tensor]]) -> State:
    nets = {name: getattr(twin, name) for name in NETS}
    before, losses = _state(nets), []
    random.seed(0)
    for a, b in batches:
        twin.real_A, twin.real_B = a, b
        optimize(twin)
        row = {}
        for name in LOSSES.values():
            row[name] = torch.as_tensor(getattr(twin, f"loss_{name}")).detach().clone()
        losses.append(row)
    return _results(nets, before, losses)


def _run_ours(settings: Settings, batches: list[tuple[Tensor, Tensor]]) -> State:
    step = Step(settings)
    before, losses = _state(settings.nets), []
    random.seed(0)
    for a, b in batches:
        row = dict.fromkeys(LOSSES.values(), torch.zeros(()))
        row.update(step(a, b, LEARNING_RATE))
        losses.append(row)
    return _results(settings.nets, before, losses)


def _largest_difference(official: State, ours: State) -> float:
    """Return the largest relative difference of any result, |ours - official| / |official|.

    Raises NotReplaceableError if a difference exceeds the tolerance or is NaN.
    """
    largest = 0.0
    for name, value in official.items():
        our_value = ours[name].to(value.device)
        difference = ((our_value - value).norm() / value.norm().clamp(min=1e-6)).item()
        if not difference <= TOLERANCE:
            far = f"{difference:.1e} (relative, in float64)"
            raise NotReplaceableError(
                f"its results differ from those of fastcyclegan's step: {name} by {far}"
            )
        largest = max(largest, difference)
    return largest
