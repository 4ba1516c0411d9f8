"""Check that a timed training step computes the same mathematics as the official code.

The first iterations of that step are compared with the official training step in float64.

The quantities compared are the losses, the images that the generators produced, the gradients (Adam's first
moments after one iteration), the changes of the weights, and what each iteration changes in the running
statistics of batch norms, if there are any. Each may differ from float64 as much as the
parity rule of ``fastcyclegan.testing`` allows: twice as much as the official training step in the same
precision, plus a few units in the last place. The error that the dtype alone explains is thus measured in the
same run, not chosen.

In fp32 this rule is too strict for anything that has been differentiated. If the input of a ReLU is closer to
zero than the rounding error, rounding may move it to the other side of zero, and then its gradient is
completely wrong. With inputs of standard deviation 1, the share of units in each layer to which this happens
is about as large as the error (3e-6), and there are 50 layers between an image and the last loss. Such small
counts are random: one run has two such units, the next has none. A share s of them causes a relative error of
sqrt(s). The constant KINKED is a share far larger than any that occurs, and far smaller than any that a
mistake causes.

Adam divides by the size of the gradient. If such an error is larger than the gradient itself, the weight
moves in the opposite direction. At an error of 3 %, this happens to 2.4 % of normally distributed gradients,
and it costs at most twice sqrt(0.024) of the weights' change. In 16 bits both effects are so frequent that
the official training step shows them equally, and the rule applies unchanged.

The units of a flat background share one value, so all units of a channel end up on the other side of zero
together. That happens in 1e-4 of the runs, as long as the first layers still see flat background (drawn
shapes at 64x64). It changes a gradient by at most 4e-3, because the other 255 or 63 channels are unaffected.

The losses are only eight numbers, and one or two of them make up most of the norm. Their rounding errors are
random in both implementations: in 30 % of runs (2 atan(1/2) / pi), one of two normal draws is more than twice
the other. The errors of all the other quantities are averaged over millions of numbers, so they agree within
a few percent. But a loss is a mean over images, so its error may be as large as the error that the dtype
causes in the images of the same iterations.

If a gradient is mostly noise, so is the number that Adam divides by. An error of r times a typical gradient G
changes an update by the fraction r G / g if its gradient g is small, and the smallest of 10^7 gradients
dominate. In float64, 2e-9 was observed when gradients agreed to 3e-14; in bf16 the effect is so large that no
update at all would pass. Therefore each weight's change is multiplied by its gradient, which gives its
contribution to the loss to first order.

After the first update, two runs in 16 bits diverge even if they compute the same thing. A third of each
gradient is rounding error, so many weights move in the opposite direction. The effect that all images share,
a shift of their colours, is as random as the losses. In 16 bits, therefore, the losses, images and running
statistics of each later iteration are compared with the float64 results for the weights at which that
iteration started. The changes made by the updates are compared separately.

In pix2pix, the discriminator judges once more after its update, within an iteration. So the running
statistics of the first iteration count as differentiated as well. Of its losses, only one depends on that
update, and the L1 distance is a hundred times larger.

Images on which parity cannot be checked are rejected, with their paths in the message. These are
single-colour images (bench/flat_images.py), and images so faint that the rounding of the dtype leaves nothing
to compare (see ``require_decisive``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.flat_images import Undecided, flat_images, join_names, most_varied_crops
from bench.machine import DEVICE, PeakMemory, tensor_bytes
from bench.providers import OFFICIAL_BY_PRECISION, Provider, TrainStep, train_step
from bench.timing import synchronised
from fastcyclegan.config import TrainConfig
from fastcyclegan.data.batch import Batch
from fastcyclegan.testing import PARITY_ULPS, is_cancelled_bias, relative_error

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
KINKED = 1e-3
DIFFERENTIATED, MOVED = KINKED**0.5, 2 * 0.024**0.5
# In float64: the allowed difference, and the number of iterations. The second iteration depends on the
# weights, moments and pools that the first one produced. Each further iteration makes rounding errors three
# to seven times larger: at most 3e-11 was observed after two (256x256, five seeds), 3e-10 after four.
EXACT, EXACT_STEPS = 1e-9, 2
# Below this size a discriminator's last norm sees maps of 2 x 2. When the four values of such a map are
# nearly equal, rounding determines the result.
LEAST_SIZE = 32
CHANGE = "weight change of "
LOSSES, IMAGES, STATISTICS = "losses", "images", "running statistics"
FIRST = "of iteration 1"
FORWARD = (f"{LOSSES} {FIRST}", f"{IMAGES} {FIRST}")


def least_size(config: TrainConfig) -> int:
    """Return the least side, in pixels, of images on which parity is checked with ``config``."""
    required = config.make_recipe().requirements
    return math.ceil(max(LEAST_SIZE, required.least_side) / required.size_multiple) * required.size_multiple


def _vector(net: nn.Module, value: Callable[[nn.Parameter], Tensor]) -> Tensor:
    """Return ``value`` of each parameter of ``net``, concatenated into one float64 vector on the CPU.

    Biases that no output depends on are left out.
    """
    values = []
    for name, p in net.named_parameters():
        if not is_cancelled_bias(net, name):
            values.append(value(p).detach().double().cpu().flatten())
    return torch.cat(values)


def _weights_of(step: TrainStep) -> dict[str, Tensor]:
    return {name: _vector(net, lambda p: p) for name, net in step.nets.items()}


def gradients_of(step: TrainStep) -> dict[str, Tensor]:
    """Return Adam's first moments by network; after one iteration they are the gradients up to a factor."""
    moments: dict[Any, Tensor] = {}
    for optimizer in step.optimizers:
        for p, state in optimizer.state.items():
            moments[p] = state["exp_avg"]
    return {name: _vector(net, lambda p: moments[p]) for name, net in step.nets.items()}


def _statistics_of(step: TrainStep) -> Tensor:
    """Return the running statistics of all batch norms, as one float64 vector on the CPU."""
    statistics = [torch.empty(0, dtype=torch.float64)]
    for net in step.nets.values():
        for name, buffer in net.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                statistics.append(buffer.double().cpu().flatten())
    return torch.cat(statistics)


def by_label(when: str, losses: Tensor, images: Tensor, statistics: Tensor) -> dict[str, Tensor]:
    """Return the quantities of the iterations ``when`` by label, without statistics if there are none."""
    values = {f"{LOSSES} {when}": losses, f"{IMAGES} {when}": images}
    if statistics.numel():
        values[f"{STATISTICS} {when}"] = statistics
    return values


def later(count: int) -> str:
    """Return the words for all of ``count`` iterations except the first."""
    return "of iteration 2" if count <= 2 else f"of iterations 2 to {count}"


def _on_the_host(net: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().to("cpu", copy=True) for name, t in net.state_dict().items()}


def call_directly(run: Callable[[], Any]) -> Any:
    """Call ``run`` and return its result. This is the default for iterations that are not timed."""
    return run()


@dataclass
class Trace:
    """The results of the first iterations of a training step.

    ``values`` maps the label of each quantity to its value. ``starts`` contains the networks' weights at the
    start of each later iteration. ``own_truth`` contains the float64 values of those quantities that are
    compared with a separate truth; see the module docstring.
    """

    values: dict[str, Tensor]
    starts: list[dict[str, dict[str, Tensor]]] = field(default_factory=list)
    own_truth: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls, step: TrainStep, batches: Sequence[Batch], call: Callable[[Any], Any] = call_directly
    ) -> Trace:
        """Run one iteration per batch and return the results.

        ``call`` runs each iteration, for example to time it.
        """
        start = _weights_of(step)
        losses: list[Tensor] = []
        statistics = [_statistics_of(step)]
        gradients: dict[str, Tensor] = {}
        starts = []
        for n, batch in enumerate(batches):
            if n > 0:
                starts.append({name: _on_the_host(net) for name, net in step.nets.items()})
            losses.append(call(partial(step.run, batch)).double().cpu())
            statistics.append(_statistics_of(step))
            if n == 0:
                gradients = gradients_of(step)
        fakes = step.fakes(sum(len(batch.samples) for batch in batches)).detach().double().cpu()
        first = len(batches[0].samples)
        changes = torch.stack(statistics).diff(dim=0)
        values = by_label(FIRST, losses[0], fakes[:, :first], changes[0])
        for name, gradient in gradients.items():
            values[f"gradients of {name}"] = gradient
        if len(batches) > 1:
            values |= by_label(later(len(batches)), torch.stack(losses[1:]), fakes[:, first:], changes[1:])
        for name, weights in _weights_of(step).items():
            values[f"{CHANGE}{name}"] = weights - start[name]
        return cls(values, starts)

    def difference(self, quantity: str, truth: Trace) -> Tensor:
        """Return the difference between ``quantity`` and its value in ``truth``, or in ``own_truth``."""
        return self.values[quantity] - self.own_truth.get(quantity, truth.values[quantity])

    def error_of(self, quantity: str, truth: Trace) -> float:
        """Return the relative error of ``quantity`` against ``truth``, or against ``own_truth``.

        Weight changes are multiplied by their gradients first; see the module docstring.
        """
        value, true = self.values[quantity], self.own_truth.get(quantity, truth.values[quantity])
        name = quantity.removeprefix(CHANGE)
        if name != quantity:
            gradient = truth.values[f"gradients of {name}"]
            value, true = value * gradient, true * gradient
        return relative_error(value, true)


@dataclass
class Difference:
    """The error of one quantity of a training step against float64, and the error that is allowed.

    ``error`` is the error of the checked step, ``of_the_dtype`` that of the official training step in the
    same dtype, and ``allowed`` is the limit from the parity rule. These errors are relative, in 2-norms.
    ``largest`` and ``largest_of_the_dtype`` are the largest absolute errors of a single number, in the units
    of ``quantity``.
    """

    quantity: str
    error: float
    of_the_dtype: float
    allowed: float
    largest: float
    largest_of_the_dtype: float

    @property
    def passes(self) -> bool:
        # A result that is not finite is wrong, even if the official training step has it too.
        return math.isfinite(self.error) and self.error <= self.allowed


def _largest(difference: Tensor) -> float:
    return difference.abs().max().item()


def require(name: str, differences: Sequence[Difference]) -> None:
    """Raise AssertionError if any of ``differences`` has a larger error than is allowed."""
    for d in differences:
        if not d.passes:
            error = f"relative error {d.error:.3e} against float64, allowed {d.allowed:.3e}"
            raise AssertionError(f"{name}: {d.quantity}: {error}")


def differences(
    ours: Trace, baselines: Sequence[Trace], truth: Trace, dtype: torch.dtype
) -> list[Difference]:
    """Compare each quantity of ``ours`` with float64, and return its error and the error that is allowed.

    ``baselines`` are traces of PyTorch's implementations in ``dtype``. The one with the largest error against
    float64 sets the limit.
    """

    def furthest(quantity: str) -> tuple[float, Trace]:
        errors = [trace.error_of(quantity, truth) for trace in baselines]
        most = max(errors)
        return most, baselines[errors.index(most)]

    compared = []
    for quantity in ours.values:
        of_the_dtype, trace = furthest(quantity)
        by_rule = 2 * of_the_dtype + PARITY_ULPS[dtype] * torch.finfo(dtype).eps
        allowed = max(by_rule, least_allowed(quantity, dtype))
        if quantity.startswith(LOSSES):
            of_the_images, _ = furthest(quantity.replace(LOSSES, IMAGES))
            allowed = max(allowed, of_the_images)
        difference = Difference(
            quantity,
            ours.error_of(quantity, truth),
            of_the_dtype,
            allowed,
            _largest(ours.difference(quantity, truth)),
            _largest(trace.difference(quantity, truth)),
        )
        compared.append(difference)
    return compared


def least_allowed(quantity: str, dtype: torch.dtype) -> float:
    """Return an error that is always allowed for ``quantity``, because it occurs at random.

    The module docstring explains why. The result is 0 for quantities that have not been differentiated, and
    in 16 bits.
    """
    if dtype != torch.float32 or quantity in FORWARD:
        return 0.0
    if quantity.startswith(CHANGE):
        return MOVED
    return DIFFERENTIATED


@dataclass
class First:
    """The results of the first iterations of a training step, with measurements.

    ``differences`` compare them with float64, ``seconds`` are the times of the iterations, and ``peak_bytes``
    is the peak memory during one.
    """

    differences: list[Difference]
    seconds: list[float]
    peak_bytes: int | None


def require_decisive(differences: Sequence[Difference], batches: Sequence[Batch]) -> None:
    """Raise Undecided if rounding in the dtype leaves nothing to compare.

    A result of all zeros has an error of 1, so if that much is allowed, every result passes.
    """
    for d in differences:
        if d.quantity in FORWARD and not d.allowed < 1:
            paths: list[str] = []
            for batch in batches:
                paths += itertools.chain.from_iterable(batch.paths.values())
            rounding = f"rounding alone causes an error of {d.of_the_dtype:.0%} in the official step"
            raise Undecided(f"{d.quantity}: {rounding}, for {join_names(paths)}")


@dataclass
class Judge:
    """Compares training steps with the official training step in float64.

    All steps train the recipe that ``config`` names. They start at the weights of ``nets`` and run on
    ``batches``.
    """

    nets: Mapping[str, nn.Module]
    batches: Sequence[Batch]
    device: str
    config: TrainConfig
    _traces: dict[str, Trace] = field(default_factory=dict)

    @cached_property
    def truth(self) -> Trace:
        # The batches need no conversion: their pixels are fp32 numbers, which float64 represents exactly.
        step = train_step("official", self.nets, self.device, self.config, torch.float64)
        return Trace.of(step, self.batches)

    def _trace(self, provider: str | Provider) -> Trace:
        key = provider if isinstance(provider, str) else provider.title
        if key not in self._traces:
            step = train_step(provider, self.nets, self.device, self.config)
            self._traces[key] = self._with_own_truth(Trace.of(step, self.batches), step.precision)
        return self._traces[key]

    def _with_own_truth(self, trace: Trace, precision: str) -> Trace:
        """Return ``trace``, and in 16 bits set its ``own_truth`` for the later iterations.

        For each of these iterations, the truth is computed in float64 from the weights at which it started.
        """
        if DTYPES[precision] != torch.float32 and trace.starts:
            step = train_step("official", self.nets, self.device, self.config, torch.float64)
            losses, changes = [], []
            for start, batch in zip(trace.starts, self.batches[1:], strict=True):
                for name, net in step.nets.items():
                    net.load_state_dict(start[name])
                before = _statistics_of(step)
                losses.append(step.run(batch).double().cpu())
                changes.append(_statistics_of(step) - before)
            fakes = step.fakes(sum(len(batch.samples) for batch in self.batches[1:])).detach().double().cpu()
            trace.own_truth = by_label(
                later(len(self.batches)), torch.stack(losses), fakes, torch.stack(changes)
            )
        return trace

    def _baselines(self, precision: str) -> list[Trace]:
        return [self._trace(provider) for provider in OFFICIAL_BY_PRECISION[precision]]

    def judge_losses(self, losses: Tensor, precision: str) -> Difference:
        """Compare the losses of a first iteration with float64."""
        trace = Trace({FORWARD[0]: losses})
        (difference,) = differences(trace, self._baselines(precision), self.truth, DTYPES[precision])
        return difference

    def judge(
        self, name: str, step: TrainStep, call: Callable[[Any], Any] = call_directly
    ) -> list[Difference]:
        """Run the first iterations of ``step``, each through ``call``, and compare them with float64."""
        trace = self._with_own_truth(Trace.of(step, self.batches, call), step.precision)
        if name in ("official", "official_bf16"):
            # Such a step is its own baseline, so there is no need to run it again.
            self._traces.setdefault(name, trace)
        baselines = [self._traces[name]] if name in self._traces else self._baselines(step.precision)
        return differences(trace, baselines, self.truth, DTYPES[step.precision])

    def first_iterations(self, name: str, step: TrainStep, memory: PeakMemory) -> First:
        """Compare the first iterations with float64, and measure their time and peak memory.

        ``memory`` must have been created before ``step``.
        """
        seconds: list[float] = []

        def timed(run: Callable[[], Any]) -> Any:
            with memory:
                start = synchronised()
                result = run()
                seconds.append(synchronised() - start)
            return result

        compared = self.judge(name, step, timed)
        peak = memory.bytes
        if peak is not None and DEVICE == "cpu":
            # On a CPU the networks existed before the measured iteration; on a GPU the measured memory
            # includes them.
            peak += tensor_bytes(step.state())
        return First(compared, seconds, peak)

    def float64_difference(self, size: int | None = None) -> float:
        """Return the largest relative difference between fastcyclegan and the official step in float64.

        Both run uncompiled, on crops of the first images, whose sides have at most ``size`` pixels (default:
        ``least_size``). Rounding is not a factor there, so a difference above EXACT means different
        mathematics. Raises Undecided if an image is flat.
        """
        batches = self.batches[:EXACT_STEPS]
        if flat := flat_images(batches):
            raise Undecided(
                f"{join_names(flat)}: images of a single colour, of which instance norm leaves only rounding"
                " noise"
            )
        if size is None:
            size = least_size(self.config)
        crops = [most_varied_crops(batch, size) for batch in batches]
        traces = []
        for name in ("ours", "official"):
            step = train_step(name, self.nets, self.device, self.config, torch.float64)
            traces.append(Trace.of(step, crops))
        ours, official = traces
        return max(ours.error_of(quantity, official) for quantity in official.values)
