"""Run one iteration of a recipe on a device, in the order in which it happens."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from fastcyclegan.data.batch import Batch
from fastcyclegan.engine.ahead import Ahead, Progress, copy_on_cpu, dry_translation, isolated
from fastcyclegan.engine.choices import choose, require_possible
from fastcyclegan.engine.cuda_capture import CudaCapture
from fastcyclegan.engine.cuda_graph import Capture, Graphs, key_of
from fastcyclegan.engine.devices import autocast
from fastcyclegan.engine.frozen import FrozenNetworks
from fastcyclegan.engine.host_inputs import HostInputs
from fastcyclegan.engine.phase_optimizer import PhaseOptimizer
from fastcyclegan.engine.phase_outputs import Outputs, joined
from fastcyclegan.engine.preparation import (
    check_phases,
    loss_compiler,
    network_calls,
    parameter_ids,
    prepare_networks,
    working_copies,
)
from fastcyclegan.engine.streams import Streams
from fastcyclegan.engine.summary import describe
from fastcyclegan.engine.weight_average import WeightAverage
from fastcyclegan.kernels import accumulating, overlapping
from fastcyclegan.nn.as_trained import as_trained, masks_from
from fastcyclegan.recipes.recipe import Inputs, Phase, PhaseResult, Recipe, RecipeError
from fastcyclegan.settings.engine import EngineConfig
from fastcyclegan.settings.optim import OptimConfig


class Engine:
    """Runs the iterations of a recipe on a device.

    ``nets`` are the recipe's networks as ordinary modules. They are moved to the device in channels_last.
    Their modules may be frozen or given hooks at any time, but may be replaced only before the engine is
    created. If ``compiled`` is true, torch.compile compiles what the kernels do not compute, and on a GPU the
    iteration is captured in a CUDA graph (see ``options.graph``); the caller must have checked
    ``why_not_compiled``. ``log`` receives a line for each choice that differs from the request, with the
    reason. Tests pass ``capture`` to replace CUDA graphs. On a GPU, kernels are compiled before the first
    iteration of each batch size. Meanwhile ``progress`` is called with (completed, total, text); without it,
    ``log`` receives one line.

    Raises ValueError for a precision other than fp32 and bf16, for ``options.graph`` "on" without a GPU, and
    for ``options.micro_batch`` if a network mixes the images of a batch. ``step`` raises ValueError if
    parameters were replaced.
    """

    def __init__(
        self,
        recipe: Recipe,
        nets: dict[str, nn.Module],
        optim: OptimConfig,
        device: torch.device,
        precision: str = "fp32",
        compiled: bool = False,
        options: EngineConfig = EngineConfig(),
        *,
        log: Callable[[str], None] = lambda text: None,
        capture: Capture | None = None,
        fixed_sizes: bool = True,
        progress: Progress | None = None,
    ) -> None:
        can_capture = device.type == "cuda" or capture is not None
        require_possible(nets, precision, options, can_capture)
        self.recipe, self.optim, self.device = recipe, optim, device
        self.nets = prepare_networks(recipe, nets, device)
        self.frozen = FrozenNetworks(self.nets)
        self.choices = choose(recipe, self.nets, device, precision, compiled, options, can_capture)
        self.phases = recipe.phases(loss_compiler(self.choices, fixed_sizes))
        check_phases(self.phases, self.nets, self.choices.overlap_phases)
        self.calls = network_calls(self.choices, self.nets, fixed_sizes, log)
        self._set_up_training()
        self._set_up_streams(capture, log)
        self.ahead = Ahead(device, log, progress) if self.choices.compile_ahead else None

    def _set_up_training(self) -> None:
        """Create the optimizers, the working copies and the averages of the weights."""
        self.host_inputs = HostInputs(self.device)
        self.phase_optimizers: dict[str, PhaseOptimizer] = {}
        trains = {phase.name: phase.trains for phase in self.phases if phase.trains}
        for name, trained in trains.items():
            nets = [self.nets[each] for each in trained]
            in_place = self.choices.uses_kernels(trained)
            optimizer = PhaseOptimizer(nets, self.optim, self.host_inputs.lr, in_place=in_place)
            self.phase_optimizers[name] = optimizer
        self.working_copies = working_copies(
            self.choices, self.phase_optimizers, trains, together=self.recipe.phases_may_overlap
        )
        self.average: WeightAverage | None = None
        if self.optim.ema:
            averaged = {name: self.nets[name] for name in self.recipe.averaged}
            self.average = WeightAverage(averaged, self.optim.ema)
        self._parameters = parameter_ids(self.nets.values())

    def _set_up_streams(self, capture: Capture | None, log: Callable[[str], None]) -> None:
        """Create the device's streams and, if chosen, the graphs."""
        self.streams = Streams(self.choices)
        self.graphs: Graphs | None = None
        if self.choices.graph:
            if capture is None:
                assert self.streams.iteration is not None
                capture = CudaCapture(self.streams.iteration)
            required = self.choices.options.graph == "on"
            self.graphs = Graphs(self._iterate, capture, self._forget_working_copies, log, required)

    # --- One iteration --------------------------------------------------------------------------------------

    def step(self, batch: Batch, lr: float) -> Tensor:
        """Run one iteration and return its losses, without waiting for the device.

        The losses have shape [len(recipe.loss_names)] and are on the device.
        """
        if parameter_ids(self.nets.values()) != self._parameters:
            raise ValueError(
                "Engine: parameters of the networks were replaced after the engine was created;"
                " create a new engine"
            )
        if self.ahead is not None:
            shapes = tuple((side, images.shape) for side, images in batch.images.items())
            kind = (shapes, self.frozen.names)
            self.ahead.prepare(kind, self.nets, lambda: self.dry_step(batch))
        decisions = self.recipe.decide(batch)
        _check_decisions(decisions, len(batch.samples))
        with self.streams.running_iteration(), self._named("iteration"):
            # The numbers are views of one block of memory, so they are sent and read on the same stream: a
            # later copy must not overtake an earlier read.
            inputs = Inputs(batch.images, self.host_inputs.send(lr, decisions))
            if self.graphs is None:
                losses = self._iterate(inputs)
            else:
                key = key_of(inputs, self.nets.values())
                losses = self.graphs.run(key, inputs, self.recipe.is_steady(batch))
            self._forget_working_copies()
        self.streams.keep(batch)
        return losses

    def _iterate(self, inputs: Inputs) -> Tensor:
        """Launch one iteration. A graph captures all of this, so the host must not decide anything here."""
        for name in self.working_copies:
            self._refresh(name)
        with overlapping(self.streams.weight_gradients):
            if self._overlaps_phases(inputs):
                losses = self._overlapping_phases(inputs)
            else:
                losses = self._phases_in_order(inputs)
        if self.average is not None:
            with self._named("average"):
                self.average.update()
        return torch.cat(losses)

    def _phases_in_order(self, inputs: Inputs) -> list[Tensor]:
        losses: dict[str, Tensor] = {}  # those of a phase that is repeated are from its last time
        outputs = Outputs(inputs, self._parts(inputs))
        for position, phase in enumerate(self.phases, start=1):
            with self._gradients_ready(phase):
                of_phase = self._in_parts(phase, outputs)
                self._update(phase)
            if phase.losses:
                losses[phase.name] = of_phase
            if position < len(self.phases):
                self._refresh(phase.name)
        return list(losses.values())

    def _in_parts(self, phase: Phase, outputs: Outputs) -> Tensor:
        """Run forward and backward of ``phase``, for one part of the batch after another.

        Returns its losses, and adds its outputs to ``outputs``.
        """
        results = []
        for inputs, share in outputs.parts_for(phase):
            result = self._forward(phase, inputs)
            losses = result.losses if share == 1 else share * result.losses
            self._backward(phase, losses)
            results.append(PhaseResult(losses.detach(), result.outputs))
        outputs.add(results)
        return joined([result.losses for result in results])

    def _parts(self, inputs: Inputs) -> list[tuple[int, int]]:
        """Return the ranges of samples of at most ``micro_batch`` that are run one after another."""
        count, part = inputs.count, self.choices.options.micro_batch
        if part is None or count <= part:
            return [(0, count)]
        return [(start, min(start + part, count)) for start in range(0, count, part)]

    def _overlaps_phases(self, inputs: Inputs) -> bool:
        return self.choices.overlap_phases and len(self._parts(inputs)) == 1

    def _refresh(self, name: str) -> None:
        """Update the working copies of the phase ``name``, if there are any."""
        for copies in self.working_copies.get(name, ()):
            copies.refresh()

    def _overlapping_phases(self, inputs: Inputs) -> list[Tensor]:
        """Run the second phase between forward and backward of the first, on a separate stream.

        Both phases need only the weights from before the iteration (``recipe.phases_may_overlap``).
        """
        first, second = self.phases
        with self._gradients_ready(first), self._gradients_ready(second):
            # The other stream reads the outputs. This variable keeps them alive until both phases have
            # finished.
            outputs = Outputs(inputs, self._parts(inputs))
            one = self._forward(first, outputs.prepared(first))
            outputs.add([one])
            with self.streams.running_second_phase():
                two = self._forward(second, outputs.prepared(second))
                self._backward(second, two.losses)
            self._backward(first, one.losses)
            self.streams.join_phases()
            self._update(first)
            self._update(second)
        return [one.losses.detach(), two.losses.detach()]

    def _gradients_ready(self, phase: Phase) -> AbstractContextManager[None]:
        if not phase.trains:
            return contextlib.nullcontext()
        return self.phase_optimizers[phase.name].gradients_ready()

    def _forward(self, phase: Phase, inputs: Inputs) -> PhaseResult:
        frozen = [p for name in phase.freezes for p in self.nets[name].parameters()]
        with self._named(f"{phase.name} forward"), _frozen(frozen), self._autocast():
            result = phase.run(self.calls, inputs)
        if not isinstance(result, PhaseResult):
            raise RecipeError(f"phase {phase.name} returns a {type(result).__name__}, not a PhaseResult")
        if result.losses.shape != (len(phase.losses),):
            raise RecipeError(
                f"phase {phase.name} names {len(phase.losses)} losses ({', '.join(phase.losses)}), but"
                f" returns a tensor of shape {list(result.losses.shape)}"
            )
        return result

    def _backward(self, phase: Phase, losses: Tensor) -> None:
        # One backward pass over the sum of the terms: the gradient of each term is 1. The weights of a
        # generator are used twice, and the kernels add the second gradient to the first in place.
        if not losses.requires_grad:
            self._require_frozen(phase)
        else:
            with self._named(f"{phase.name} backward"), accumulating():
                total = losses.sum()
                (total if phase.factor == 1 else phase.factor * total).backward()

    def _require_frozen(self, phase: Phase) -> None:
        """Raise RecipeError if ``phase`` trains a network, on which its losses do not depend."""
        for name in phase.trains:
            if any(p.requires_grad for p in self.nets[name].parameters()):
                raise RecipeError(
                    f"the losses of phase {phase.name} do not depend on {name}, which it trains"
                )

    def _update(self, phase: Phase) -> None:
        if not phase.trains:
            return
        self.streams.join_weight_gradients()
        with self._named(f"{phase.name} Adam"):
            self.phase_optimizers[phase.name].step()

    def _forget_working_copies(self) -> None:
        """Discard the working copies.

        They are out of date once the weights have changed, and were never filled if a capture only recorded
        the copying.
        """
        for copies in itertools.chain.from_iterable(self.working_copies.values()):
            copies.forget()

    def _autocast(self) -> torch.autocast:
        return autocast(self.device.type, self.choices.dtype)

    @contextlib.contextmanager
    def _named(self, name: str) -> Iterator[None]:
        """Label the launches of the block in torch.profiler and, if ``options.nvtx`` is set, in Nsight."""
        nvtx: AbstractContextManager[Any] = contextlib.nullcontext()
        if self.choices.options.nvtx and self.device.type == "cuda":
            nvtx = torch.cuda.nvtx.range(name)
        with nvtx, torch.profiler.record_function(f"fastcyclegan: {name}"):
            yield

    # --- Outside iterations ---------------------------------------------------------------------------------

    def dry_step(self, batch: Batch) -> None:
        """Run one iteration of a copy of this engine on the CPU, with a batch of zeros shaped like ``batch``.

        Call this inside a dry run, which records kernel launches without making them.
        """
        options = dataclasses.replace(self.choices.options, graph="off")
        cpu, nets = torch.device("cpu"), {name: copy_on_cpu(net) for name, net in self.nets.items()}
        with isolated():
            copied = type(self)(
                self.recipe.new_instance(), nets, self.optim, cpu, self.choices.precision, options=options
            )
            copied.step(batch.with_images(lambda images: torch.zeros_like(images, device=cpu)), 0.0)

    def uploading(self, batches: Generator[Batch]) -> Generator[Batch]:
        """Yield ``batches``, copied to the device while an iteration runs."""
        return self.streams.uploading(batches)

    def translate(self, name: str, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return the translations of ``images`` [N, C, H, W] by generator ``name``.

        Dropout is off, and norms use their running statistics, unless the recipe ``translates_as_trained``;
        then ``keys`` [N] are those of the masks of dropout (see ``nn.as_trained``).
        """
        net = self.nets[name]
        if self.recipe.translates_as_trained:
            net = as_trained(net)
        if self.ahead is not None:
            dtype = self.choices.dtype
            self.ahead.prepare((name, images.shape), {name: net}, lambda: dry_translation(net, images, dtype))
        if keys is not None:
            keys = keys.to(images.device)
        training = net.training
        net.eval()
        with torch.inference_mode(), self._autocast(), masks_from(keys):
            result: Tensor = net(images)
        net.train(training)
        return result

    def describe(self) -> dict[str, str]:
        """Return the choices as rows of the table that is printed at the start of a run."""
        return describe(self.choices, self.phases, self.nets, self.optim.ema)

    # --- State ----------------------------------------------------------------------------------------------

    @property
    def optimizers(self) -> dict[str, torch.optim.Adam]:
        """The Adam optimizer of each phase."""
        return {name: optimizer.adam for name, optimizer in self.phase_optimizers.items()}

    def random_state(self) -> dict[str, Tensor | None]:
        """Return a copy of the states of torch's random generators, which belong to the whole process."""
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {"cpu": torch.get_rng_state(), "cuda": cuda}

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next iteration depends on, except the sampling plan.

        The tensors are live: copy them before the next step.
        """
        state = {
            "nets": {name: net.state_dict() for name, net in self.nets.items()},
            "optimizers": {name: one.state_dict() for name, one in self.phase_optimizers.items()},
            "recipe": self.recipe.state_dict(),
            "rng": self.random_state(),
        }
        if self.average is not None:
            state["ema"] = self.average.weights
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state from ``state_dict``.

        If it contains no running averages, they are initialised with the restored weights.
        """
        for name, net in self.nets.items():
            net.load_state_dict(state["nets"][name])
        for name, optimizer in self.phase_optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.recipe.load_state_dict(state["recipe"], self.device)
        if self.average is not None:
            self.average.restart()
            if "ema" in state:
                self.average.load_state_dict(state["ema"])
        torch.set_rng_state(state["rng"]["cpu"])
        if self.device.type == "cuda" and state["rng"]["cuda"] is not None:
            torch.cuda.set_rng_state(state["rng"]["cuda"], self.device)
        if self.graphs is not None:
            self.graphs.forget()


def _check_decisions(decisions: Mapping[str, Tensor], count: int) -> None:
    """Raise RecipeError unless each of ``decisions`` has one column for each of ``count`` samples."""
    for name, values in decisions.items():
        if not isinstance(values, Tensor) or not values.dim() or values.shape[-1] != count:
            found = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise RecipeError(
                f"decide must return tensors [..., N] for {count} samples, but {name} is {found}"
            )


@contextlib.contextmanager
def _frozen(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Freeze ``parameters`` inside the block. Those that were already frozen stay frozen afterwards."""
    trainable = [p for p in parameters if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)
