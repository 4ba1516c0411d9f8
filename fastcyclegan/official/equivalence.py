"""Before the first iteration: a checkout's own step and ours, side by side on float64 copies, must make the
same updates.

A checkout may have another loss, another optimizer, clipping, or a step of its own altogether. So both run
two iterations on small images made of the first batch's, from the same weights and the same random state,
with replay pools so small that they swap. What is compared is what an iteration does: every network's update,
its running statistics, the losses, and how much of Python's ``random`` it used.
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
from fastcyclegan.official.patch_networks import without_chance
from fastcyclegan.official.step import LOSSES, NETS, NotServedError, Settings, Step

ITERATIONS, IMAGES, CAPACITY = 2, 2, 2
# Not the model's own, which may be 0: nothing would move.
RATE = 2e-4
# Float64 leaves 1e-14, and 1e-8 with biases that an instance norm takes out again: their gradient is noise of
# 1e-16, which Adam divides by its eps of 1e-8. On a GPU the learning rate is a float32: 3e-8.
TOLERANCE = 1e-6

State = dict[str, Tensor]


def prove(model: Any, optimize: Callable[[Any], Any], given: Settings) -> float:
    """Compare ``optimize``, the checkout's own step, with ours on copies of what ``model`` is; return the
    largest relative difference.

    Changes neither the model nor any random state. Raises NotServedError where they differ, or where the
    comparison cannot be made.
    """
    with _kept_chance(given.device):
        try:
            twin, mine = _twins(model, given)
            side = _side(given.nets)
            batches = [_images(model, side, seed) for seed in range(ITERATIONS)]
            theirs, ours = _run_theirs(twin, optimize, batches), _run_ours(mine, batches)
        except NotServedError:
            raise
        # Whatever the step of a checkout that somebody changed may raise on copies of its model: said, and it
        # runs by itself.
        except Exception as error:
            reason = next(iter(str(error).splitlines()), "")
            raise NotServedError(
                f"it cannot be compared with ours: {type(error).__name__}: {reason}"
            ) from error
    return _largest_difference(theirs, ours)


@contextlib.contextmanager
def _kept_chance(device: torch.device) -> Iterator[None]:
    """Put all random states back as they were."""
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


def _twins(model: Any, given: Settings) -> tuple[Any, Settings]:
    """Return a copy of ``model`` in float64, computed by PyTorch's operators, and the settings of our step
    over copies of the same.
    """
    memo: dict[int, Any] = {}
    nets = {name: copy.deepcopy(net, memo) for name, net in given.nets.items()}
    twin = object.__new__(type(model))
    # The optimizers' parameters are found in the memo: they train the copies.
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
        optimizer.param_groups[0]["lr"] = RATE
    for pool in (twin.fake_A_pool, twin.fake_B_pool):
        pool.pool_size = min(pool.pool_size, CAPACITY)
    loss = dataclasses.replace(given.loss, pool_size=min(given.loss.pool_size, CAPACITY))
    mine = {name: without_chance(net) for name, net in nets.items()}
    return twin, dataclasses.replace(given, nets=mine, loss=loss)


def _side(nets: dict[str, nn.Module]) -> int:
    """Return the smallest side of images that ``nets`` take."""
    multiple, least = 4, 16
    for net in nets.values():
        strided = sum(isinstance(module, nn.Conv2d) and module.stride == (2, 2) for module in net.modules())
        if isinstance(net, UnetGenerator):
            multiple = max(multiple, 2**strided)
        elif isinstance(net, Discriminator):
            least = max(least, 3 * 2**strided)
    return -(-least // multiple) * multiple


def _images(model: Any, side: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return two images a side, [2, C, side, side] in float64, made of the first ones of ``model`` and
    noise, which keeps them from being flat."""
    generator = torch.Generator().manual_seed(seed)

    def of(images: Tensor) -> Tensor:
        small = F.interpolate(images[:IMAGES].detach().double(), (side, side), mode="bilinear")
        small = torch.cat([small, small.flip(-1)])[:IMAGES]
        noise = torch.randn(small.shape, dtype=torch.float64, generator=generator)
        return small + 0.2 * noise.to(small.device)

    return of(model.real_A), of(model.real_B)


def _state(nets: dict[str, nn.Module]) -> State:
    """Return the weights of each network in one vector, and its running statistics in another."""
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


def _run_theirs(twin: Any, optimize: Callable[[Any], Any], batches: list[tuple[Tensor, Tensor]]) -> State:
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


def _run_ours(mine: Settings, batches: list[tuple[Tensor, Tensor]]) -> State:
    step = Step(mine)
    before, losses = _state(mine.nets), []
    random.seed(0)
    for a, b in batches:
        row = dict.fromkeys(LOSSES.values(), torch.zeros(()))
        row.update(step(a, b, RATE))
        losses.append(row)
    return _results(mine.nets, before, losses)


def _largest_difference(theirs: State, ours: State) -> float:
    """Return the largest |ours - theirs| / |theirs|. Raises NotServedError where one is not within the
    tolerance, or not a number.
    """
    largest = 0.0
    for name, value in theirs.items():
        mine = ours[name].to(value.device)
        difference = ((mine - value).norm() / value.norm().clamp(min=1e-6)).item()
        if not difference <= TOLERANCE:
            far = f"{difference:.1e} (relative, in float64)"
            raise NotServedError(f"it is not the public one: {name} differ by {far} from our step's")
        largest = max(largest, difference)
    return largest
