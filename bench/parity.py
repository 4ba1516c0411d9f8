"""Is what is timed the same mathematics? The first iterations of the very step that is timed, held to the
official order in float64.

What an iteration gives is its losses, the images that its generators made, its gradients (Adam's first
moments after it), and the way that the weights went. Each may be as far from float64 as the rule of
``fastcyclegan.testing`` allows: twice as far as the official order is in the same precision, plus a few units
in the last place. So the difference that the dtype alone explains is measured, in the same run, and not
chosen.

In fp32 that rule is too sharp for what has been differentiated. A ReLU whose input is nearer to zero than the
rounding error may come out on the other side, and its gradient is then wrong altogether: of inputs of
deviation 1 a share of about the error (3e-6) a layer, of which there are 50 between an image and the last
loss. So few are chance: one run has two, the next has none. A share s of such units makes a relative error of
sqrt(s); KINKED is far more than there are, and far less than any mistake makes. Adam divides by the
gradient's size, so where such an error is larger than the gradient itself, which is for 2.4 % of normal ones
at 3 %, the weight goes the other way: twice sqrt(0.024) of the way, at most. In 16 bits there are so many of
both that the official order has as many, and the rule is as it is. The units of a flat ground share one
value, so all of a channel come out on the other side together: 1e-4 of runs, where the first layers still
have flat ground (drawn shapes, 64x64), and 4e-3 of a gradient at most, because others have 255 or 63 channels
more.

Losses are eight numbers, and one or two of them are most of the norm. Rounding draws ours and the official
ones by chance: of two normal draws one is more than twice the other in 2 atan(1/2) / pi = 30 % of runs, where
the millions of all else agree to some percent. But a loss is a mean over images, and may be as far off as the
dtype takes the images of the same iterations.

What Adam divides by is noise where the gradient is: an error of r times a usual gradient G moves an update by
r G / g of itself where the gradient g is small, and the smallest of 10^7 decide (in float64 2e-9 was seen
where gradients agreed to 3e-14; in bf16 so much that no update at all would pass). So each weight's way
counts times its gradient, which is what it takes off the loss to first order.

After the first update two runs in 16 bits part, whether they compute the same or not: a third of the
gradients is rounding, so many weights go the other way, and what all images have of it alike, a shift of
their colours, is as much chance as the losses. So in 16 bits the losses and images of each later iteration
are held to what float64 makes of the weights that this very iteration began at; what the updates added is
judged by itself.

Images that decide nothing are refused, by name: those of one colour (bench/flat_images.py), and those so
faint that the rounding of the dtype leaves nothing to judge: see ``require_telling``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.flat_images import Undecided, flat_images, listed, liveliest_crops
from bench.machine import DEVICE, PeakMemory, held_bytes
from bench.providers import YARDSTICKS, Provider, TrainStep, train_step
from bench.timing import synchronised
from fastcyclegan.config import LossConfig, ModelConfig
from fastcyclegan.data.batch import Batch
from fastcyclegan.testing import PARITY_ULPS, is_cancelled_bias, relative_error

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
KINKED = 1e-3
DIFFERENTIATED, MOVED = KINKED**0.5, 2 * 0.024**0.5
# In float64: the difference allowed, and after how many iterations. The second sees weights, moments and
# pools that the first left. Each one more makes rounding three to seven times larger: at most 3e-11 was seen
# after two (256x256, five seeds), 3e-10 after four.
EXACT, EXACT_STEPS = 1e-9, 2
WAY = "way of the weights of "
LOSSES, IMAGES = "losses", "images"
FORWARD = (f"{LOSSES} of iteration 1", f"{IMAGES} of iteration 1")


def _vector(net: nn.Module, value: Callable[[nn.Parameter], Tensor]) -> Tensor:
    """Return ``value`` of the parameters of ``net`` in one float64 vector on the CPU, without those biases
    that no output depends on.
    """
    kept = []
    for name, p in net.named_parameters():
        if not is_cancelled_bias(net, name):
            kept.append(value(p).detach().double().cpu().flatten())
    return torch.cat(kept)


def _weights_of(step: TrainStep) -> dict[str, Tensor]:
    return {name: _vector(net, lambda p: p) for name, net in step.nets.items()}


def gradients_of(step: TrainStep) -> dict[str, Tensor]:
    """Return Adam's first moments by network: after one iteration the gradients, but for a factor."""
    moments: dict[Any, Tensor] = {}
    for optimizer in step.optimizers:
        for p, state in optimizer.state.items():
            moments[p] = state["exp_avg"]
    return {name: _vector(net, lambda p: moments[p]) for name, net in step.nets.items()}


def later(count: int) -> tuple[str, str]:
    """Return what losses and images of all of ``count`` iterations but the first are called."""
    when = "of iteration 2"
    if count > 2:
        when = f"of iterations 2 to {count}"
    return f"{LOSSES} {when}", f"{IMAGES} {when}"


def _on_the_host(net: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().to("cpu", copy=True) for name, t in net.state_dict().items()}


def at_once(run: Callable[[], Any]) -> Any:
    """What calls an iteration and does nothing else."""
    return run()


@dataclass
class Trace:
    """What the first iterations gave, by a name that says what it is.

    ``starts``: the networks' weights that each later iteration began at. ``own``: what of it is held to a
    truth of its own, see the module.
    """

    found: dict[str, Tensor]
    starts: list[dict[str, dict[str, Tensor]]] = field(default_factory=list)
    own: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, step: TrainStep, batches: Sequence[Batch], each: Callable[[Any], Any] = at_once) -> Trace:
        """Run one iteration a batch. ``each`` is what calls them, as to time them."""
        start = _weights_of(step)
        losses: list[Tensor] = []
        gradients: dict[str, Tensor] = {}
        starts = []
        for n, batch in enumerate(batches):
            if n > 0:
                starts.append({name: _on_the_host(net) for name, net in step.nets.items()})
            losses.append(each(partial(step.run, batch)).double().cpu())
            if n == 0:
                gradients = gradients_of(step)
        fakes = step.fakes(sum(len(batch.A) for batch in batches)).detach().double().cpu()
        first = len(batches[0].A)
        found = dict(zip(FORWARD, (losses[0], fakes[:, :first]), strict=True))
        for name, gradient in gradients.items():
            found[f"gradients of {name}"] = gradient
        if len(batches) > 1:
            found |= zip(later(len(batches)), (torch.stack(losses[1:]), fakes[:, first:]), strict=True)
        for name, weights in _weights_of(step).items():
            found[f"{WAY}{name}"] = weights - start[name]
        return cls(found, starts)

    def difference(self, what: str, truth: Trace) -> Tensor:
        """Return how ``what`` differs from ``truth``, or from the truth of its own."""
        return self.found[what] - self.own.get(what, truth.found[what])

    def error_of(self, what: str, truth: Trace) -> float:
        """Return how far ``what`` is from ``truth``, relatively; each way of a weight times its gradient, see
        the module.
        """
        mine, true = self.found[what], self.own.get(what, truth.found[what])
        name = what.removeprefix(WAY)
        if name != what:
            gradient = truth.found[f"gradients of {name}"]
            mine, true = mine * gradient, true * gradient
        return relative_error(mine, true)


@dataclass
class Difference:
    """How far ``what`` is from float64: ours, the official order in the same dtype, and what the rule allows.

    Relative, by 2-norms; and the largest single difference of both, in the units of ``what``.
    """

    what: str
    found: float
    of_the_dtype: float
    allowed: float
    largest: float
    largest_of_the_dtype: float

    @property
    def holds(self) -> bool:
        # What is not finite is wrong, whoever else has it.
        return math.isfinite(self.found) and self.found <= self.allowed


def _largest(difference: Tensor) -> float:
    return difference.abs().max().item()


def require(name: str, found: Sequence[Difference]) -> None:
    """Raise AssertionError where the rule does not hold."""
    for d in found:
        if not d.holds:
            error = f"relative error {d.found:.3e} against float64, allowed {d.allowed:.3e}"
            raise AssertionError(f"{name}: {d.what}: {error}")


def differences(ours: Trace, theirs: Sequence[Trace], truth: Trace, dtype: torch.dtype) -> list[Difference]:
    """Return the rule's verdicts; of several yardsticks that PyTorch has in ``dtype``, the one furthest from
    float64 counts.
    """

    def furthest(what: str) -> tuple[float, Trace]:
        errors = [trace.error_of(what, truth) for trace in theirs]
        most = max(errors)
        return most, theirs[errors.index(most)]

    found = []
    for what in ours.found:
        of_the_dtype, trace = furthest(what)
        by_rule = 2 * of_the_dtype + PARITY_ULPS[dtype] * torch.finfo(dtype).eps
        allowed = max(by_rule, least_allowed(what, dtype))
        if what.startswith(LOSSES):
            of_the_images, _ = furthest(what.replace(LOSSES, IMAGES))
            allowed = max(allowed, of_the_images)
        difference = Difference(
            what,
            ours.error_of(what, truth),
            of_the_dtype,
            allowed,
            _largest(ours.difference(what, truth)),
            _largest(trace.difference(what, truth)),
        )
        found.append(difference)
    return found


def least_allowed(what: str, dtype: torch.dtype) -> float:
    """Return the error that chance makes of ``what``, see the module: none in what has not been
    differentiated, or is of 16 bits.
    """
    if dtype != torch.float32 or what in FORWARD:
        return 0.0
    if what.startswith(WAY):
        return MOVED
    return DIFFERENTIATED


@dataclass
class First:
    """What the first iterations of a step said: verdicts, seconds of each, and the most memory while one
    runs.
    """

    differences: list[Difference]
    seconds: list[float]
    peak_bytes: int | None


def require_telling(found: Sequence[Difference], batches: Sequence[Batch]) -> None:
    """Raise Undecided where the dtype leaves nothing to judge: an error of 1 is what zeros have, and where it
    is allowed, all passes.
    """
    for d in found:
        if d.what in FORWARD and not d.allowed < 1:
            paths = []
            for batch in batches:
                paths += [*batch.paths_A, *batch.paths_B]
            rounding = f"rounding alone takes the official order {d.of_the_dtype:.0%} from float64"
            raise Undecided(f"{d.what}: {rounding}, on {listed(paths)}")


@dataclass
class Judge:
    """Holds training steps that begin at the weights of ``nets`` and see ``batches`` to the official order in
    float64.
    """

    nets: Mapping[str, nn.Module]
    batches: Sequence[Batch]
    device: str
    loss: LossConfig
    config: ModelConfig
    _traces: dict[str, Trace] = field(default_factory=dict)

    @cached_property
    def truth(self) -> Trace:
        # In float64 every batch is given as it is: its pixels are fp32 numbers.
        step = train_step("official", self.nets, self.device, self.loss, torch.float64, self.config)
        return Trace.of(step, self.batches)

    def _trace(self, provider: str | Provider) -> Trace:
        key = provider if isinstance(provider, str) else provider.title
        if key not in self._traces:
            step = train_step(provider, self.nets, self.device, self.loss, config=self.config)
            self._traces[key] = self._with_own_truth(Trace.of(step, self.batches), step.precision)
        return self._traces[key]

    def _with_own_truth(self, trace: Trace, precision: str) -> Trace:
        """Return ``trace``, its later iterations in 16 bits with what float64 makes of the weights that each
        of them began at.
        """
        if DTYPES[precision] != torch.float32 and trace.starts:
            step = train_step("official", self.nets, self.device, self.loss, torch.float64, self.config)
            losses = []
            for start, batch in zip(trace.starts, self.batches[1:], strict=True):
                for name, net in step.nets.items():
                    net.load_state_dict(start[name])
                losses.append(step.run(batch).double().cpu())
            fakes = step.fakes(sum(len(batch.A) for batch in self.batches[1:])).detach().double().cpu()
            trace.own = dict(zip(later(len(self.batches)), (torch.stack(losses), fakes), strict=True))
        return trace

    def _yardsticks(self, precision: str) -> list[Trace]:
        return [self._trace(provider) for provider in YARDSTICKS[precision]]

    def judge_losses(self, losses: Tensor, precision: str) -> Difference:
        """Return the verdict on the losses of the first iteration alone."""
        trace = Trace({FORWARD[0]: losses})
        (found,) = differences(trace, self._yardsticks(precision), self.truth, DTYPES[precision])
        return found

    def judge(self, name: str, step: TrainStep, each: Callable[[Any], Any] = at_once) -> list[Difference]:
        """Run the first iterations of ``step`` and return the verdicts on them."""
        trace = self._with_own_truth(Trace.of(step, self.batches, each), step.precision)
        if name in ("official", "official_bf16"):
            # It is its own yardstick, and was not to be run twice for it.
            self._traces.setdefault(name, trace)
        theirs = [self._traces[name]] if name in self._traces else self._yardsticks(step.precision)
        return differences(trace, theirs, self.truth, DTYPES[step.precision])

    def first_iterations(self, name: str, step: TrainStep, memory: PeakMemory) -> First:
        """Judge, time and weigh the first iterations. ``memory`` was made before ``step`` was."""
        seconds: list[float] = []

        def timed(run: Callable[[], Any]) -> Any:
            with memory:
                start = synchronised()
                result = run()
                seconds.append(synchronised() - start)
            return result

        found = self.judge(name, step, timed)
        peak = memory.bytes
        if peak is not None and DEVICE == "cpu":
            # There the networks were there before the measured iteration; on a GPU they are in the measured
            # memory.
            peak += held_bytes(step.state())
        return First(found, seconds, peak)

    def mathematics(self, size: int = 32) -> float:
        """Return how far ours is from the official order where both are in float64, uncompiled, on crops of
        the first images: at most.

        Nothing is left to the dtype there, so more than EXACT is other mathematics. Raises Undecided where an
        image is flat.
        """
        batches = self.batches[:EXACT_STEPS]
        if flat := flat_images(batches):
            raise Undecided(
                f"{listed(flat)}: of one colour all over, and instance norm makes rounding noise of that"
            )
        crops = [liveliest_crops(batch, size) for batch in batches]
        traces = []
        for name in ("ours", "official"):
            step = train_step(name, self.nets, self.device, self.loss, torch.float64, self.config)
            traces.append(Trace.of(step, crops))
        ours, official = traces
        return max(ours.error_of(what, official) for what in official.found)
