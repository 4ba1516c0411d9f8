"""The engine: one iteration of a recipe on a device, and what is chosen for it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastcyclegan.config import EngineConfig, OptimConfig
from fastcyclegan.data.batch import Batch
from fastcyclegan.engine.ahead import Ahead, Progress, apart, copy_on_cpu, dry_translation
from fastcyclegan.engine.batching import Passes, why_not_batched
from fastcyclegan.engine.choices import choose
from fastcyclegan.engine.cuda_capture import CudaCapture
from fastcyclegan.engine.cuda_graph import Capture, Graphs, key_of
from fastcyclegan.engine.host_inputs import Numbers
from fastcyclegan.engine.phase_optimizer import Trained
from fastcyclegan.engine.summary import describe
from fastcyclegan.engine.weight_average import Average
from fastcyclegan.kernels import WorkingCopies, accumulating, overlapping
from fastcyclegan.nn.networks import set_impl
from fastcyclegan.recipes.cyclegan import CycleGAN
from fastcyclegan.recipes.recipe import Inputs, Phase


class Engine:
    """Runs iterations of a recipe on a device.

    ``nets`` are the recipe's networks as ordinary modules, moved to the device in channels_last. ``compiled``
    compiles what the kernels do not compute, and on a GPU captures the iteration in a CUDA graph
    (``options.graph``); the caller has asked ``why_not_compiled`` before. Members of the networks may be
    frozen and listened to at any time; they are replaced before an engine is made, not after. ``say`` hears
    what was chosen otherwise than asked for, and why. ``capture`` replaces the CUDA graph (for tests). On a
    GPU kernels are compiled ahead, before the first iteration with a size of batch; ``progress`` hears (done,
    total, text) of it, ``say`` without one.

    Raises ValueError for a precision other than fp32 and bf16, for ``options.graph`` "on" without a GPU, for
    ``options.micro_batch`` where a network looks at all pictures of a batch, and in ``step`` where parameters
    were replaced.
    """

    # What layers compute in, by the name of the precision.
    dtypes: ClassVar[dict[str, torch.dtype]] = {"fp32": torch.float32, "bf16": torch.bfloat16}

    def __init__(
        self,
        recipe: CycleGAN,
        nets: dict[str, nn.Module],
        optim: OptimConfig,
        device: torch.device,
        precision: str = "fp32",
        compiled: bool = False,
        options: EngineConfig = EngineConfig(),
        *,
        say: Callable[[str], None] = lambda text: None,
        capture: Capture | None = None,
        fixed_sizes: bool = True,
        progress: Progress | None = None,
    ) -> None:
        can_capture = device.type == "cuda" or capture is not None
        _check(nets, precision, options, can_capture, self.dtypes)
        self.recipe = recipe
        self.device = device
        self.precision = precision
        self.compiled = compiled
        self.options = options
        self.optim, self.dtype = optim, self.dtypes[precision]
        self.fixed_sizes = fixed_sizes
        if device.type == "cuda":
            torch.backends.cudnn.benchmark = True
        self.nets = {name: net.to(device, memory_format=torch.channels_last) for name, net in nets.items()}  # type: ignore[call-overload]
        for name in recipe.twice_differentiated:
            set_impl(self.nets[name], "reference")
        self.choices = choices = choose(self.nets, device, precision, compiled, options, can_capture)
        self._fuse_losses()
        runs = {name: self._compile(name, net) for name, net in self.nets.items()}
        self.passes = Passes(
            self.nets,
            runs,
            batching=choices.batching,
            pairing=choices.pairing,
            singly=choices.singly,
            say=say,
        )
        self.numbers = Numbers(device)
        self.trained = {phase.name: self._trained(phase, optim) for phase in recipe.phases}
        self.copies = self._working_copies()
        self.average = (
            Average({name: self.nets[name] for name in recipe.averaged}, optim.ema) if optim.ema else None
        )
        self._parameters = [id(p) for net in self.nets.values() for p in net.parameters()]
        self._streams(capture, say)
        self.ahead = Ahead(device, say, progress) if choices.compile_ahead else None

    # --- Set-up ---------------------------------------------------------------------------------------------

    def _compile(self, name: str, net: nn.Module) -> Any:
        if not self.compiled or name in self.recipe.twice_differentiated or name in self.choices.kernels:
            return net
        _guard_freezing()
        return torch.compile(net, dynamic=False if self.fixed_sizes else None)

    def _fuse_losses(self) -> None:
        """Where the kernels compute the networks, the compiler is left with the losses."""
        if self.compiled and self.choices.kernels:
            self.recipe.fuse(
                lambda function: torch.compile(function, dynamic=False if self.fixed_sizes else None)
            )

    def _trained(self, phase: Phase, optim: OptimConfig) -> Trained:
        in_place = set(phase.trains) <= self.choices.kernels
        return Trained([self.nets[name] for name in phase.trains], optim, self.numbers.lr, in_place=in_place)

    def _working_copies(self) -> list[WorkingCopies]:
        """Return copies of what the kernels read, stacked for pairs: weights rounded, biases as they are;
        none where none are needed.
        """
        if self.dtype == torch.float32 and not self.choices.pairing:
            return []
        places = [
            place
            for phase in self.recipe.phases
            if set(phase.trains) <= self.choices.kernels
            for place in self.trained[phase.name].places
        ]
        weights, biases = ([place for place in places if place[0].dim() == dims] for dims in (4, 1))
        return [
            WorkingCopies(some, kind)
            for some, kind in ((weights, self.dtype), (biases, torch.float32))
            if some
        ]

    def _streams(self, capture: Capture | None, say: Callable[[str], None]) -> None:
        """Make the streams of the device, and the graphs where they are wanted."""
        # All iterations run on one stream, the captured ones and those before: autograd remembers where
        # gradients were first added.
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        if capture is None and self.stream is not None:
            capture = CudaCapture(self.stream)
        self.graphs: Graphs | None = None
        if self.choices.graph:
            assert capture is not None
            self.graphs = Graphs(
                self._iterate, capture, self._after_failed_capture, say, self.options.graph == "on"
            )
        self.weight_stream = torch.cuda.Stream(self.device) if self.choices.weight_stream else None
        self.phase_stream = torch.cuda.Stream(self.device) if self.choices.phase_stream else None

    # --- One iteration --------------------------------------------------------------------------------------

    def step(self, batch: Batch, lr: float) -> Tensor:
        """Run one iteration and return its losses, [len(recipe.loss_names)] on the device, without waiting
        for them.
        """
        if [id(p) for net in self.nets.values() for p in net.parameters()] != self._parameters:
            raise ValueError(
                "Engine: the networks have other parameters than when the engine was made: make a new one"
            )
        if self.ahead is not None:
            self.ahead.prepare((batch.A.shape, batch.B.shape), self.nets, lambda: self.dry_step(batch))
        numbers = self.recipe.decide(batch)
        with self._on_own_stream(), self._named("iteration"):
            # Views of one memory: what is sent later must not overtake what is read, so all goes through one
            # stream.
            inputs = Inputs(batch.A, batch.B, self.numbers.send(lr, numbers))
            if self.graphs is None:
                losses = self._iterate(inputs)
            else:
                losses = self.graphs.run(
                    key_of(inputs, self._watched()), inputs, self.recipe.is_steady(batch)
                )
            for copies in self.copies:
                copies.forget()
        if self.stream is not None:
            for t in (batch.A, batch.B):
                t.record_stream(self.stream)
        return losses

    def dry_step(self, batch: Batch) -> None:
        """Run an iteration of a copy of this engine on the CPU, for a batch like ``batch``; to be called in a
        dry run.
        """
        options = dataclasses.replace(self.options, graph="off")
        nets = {name: copy_on_cpu(net) for name, net in self.nets.items()}
        with apart():
            other = type(self)(
                self.recipe.anew(), nets, self.optim, torch.device("cpu"), self.precision, False, options
            )
            A, B = (torch.zeros_like(images, device="cpu") for images in (batch.A, batch.B))
            other.step(dataclasses.replace(batch, A=A, B=B), 0.0)

    def _iterate(self, inputs: Inputs) -> Tensor:
        """What a graph holds: every launch of an iteration, and no decision of the host."""
        for copies in self.copies:
            copies.refresh()
        with overlapping(self.weight_stream):
            terms = self._interleaved(inputs) if self._interleaves(inputs) else self._in_order(inputs)
        if self.average is not None:
            with self._named("average"):
                self.average.update()
        return torch.cat(terms)

    def _in_order(self, inputs: Inputs) -> list[Tensor]:
        losses: list[Tensor] = []
        for phase in self.recipe.phases:
            trained = self.trained[phase.name]
            with trained.gradients_ready():
                parts: list[Tensor] = []
                for part, share in self._parts(phase.begin(inputs)):
                    values = self._forward(phase, part, share)
                    self._backward(phase, values)
                    parts.append(values.detach())
                self._update(phase, trained)
            losses.append(parts[0] if len(parts) == 1 else torch.stack(parts).sum(0))
        return losses

    def _interleaves(self, inputs: Inputs) -> bool:
        small = self.options.micro_batch is None or inputs.A.shape[0] <= self.options.micro_batch
        return self.options.overlap == "phases" and small

    def _interleaved(self, inputs: Inputs) -> list[Tensor]:
        """The second phase between forward and backward of the first, on a stream of its own: both need the
        weights from before alone.
        """
        first, second = self.recipe.phases
        with self.trained[first.name].gradients_ready(), self.trained[second.name].gradients_ready():
            values = self._forward(first, first.begin(inputs), 1.0)
            # What the first phase made is read on another stream: kept until both are done.
            kept = self.recipe.carried()
            with self._beside():
                others = self._forward(second, second.begin(inputs), 1.0)
                self._backward(second, others)
            self._backward(first, values)
            if self.phase_stream is not None:
                torch.cuda.current_stream(self.device).wait_stream(self.phase_stream)
            del kept
            for phase in (first, second):
                self._update(phase, self.trained[phase.name])
        return [values.detach(), others.detach()]

    def _parts(self, inputs: Inputs) -> Iterator[tuple[Inputs, float]]:
        """Yield the samples in parts of ``micro_batch``, and each part's share of the batch."""
        count, most = inputs.A.shape[0], self.options.micro_batch
        if most is None or count <= most:
            yield inputs, 1.0
            return
        for start in range(0, count, most):
            stop = min(start + most, count)
            yield inputs.part(start, stop), (stop - start) / count

    def _forward(self, phase: Phase, inputs: Inputs, share: float) -> Tensor:
        frozen = [p for name in phase.freezes for p in self.nets[name].parameters()]
        with self._named(f"{phase.name} forward"), _frozen(frozen), self._autocast():
            losses = phase.losses(self.passes, inputs)
        return losses if share == 1.0 else share * losses

    def _backward(self, phase: Phase, losses: Tensor) -> None:
        # The sum of the terms, in one backward: each term's gradient is 1.
        # A generator runs twice: the kernels add its weights' gradients where the first ones are.
        if losses.requires_grad:  # not where all that the phase trains is frozen
            with self._named(f"{phase.name} backward"), accumulating():
                losses.sum().backward()

    def _update(self, phase: Phase, trained: Trained) -> None:
        if self.weight_stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.weight_stream)
        with self._named(f"{phase.name} Adam"):
            trained.step()

    # --- Where and how --------------------------------------------------------------------------------------

    def _autocast(self) -> torch.autocast:
        half = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype if half else None, enabled=half)

    @contextlib.contextmanager
    def _on_own_stream(self) -> Iterator[None]:
        if self.stream is None:
            yield
            return
        around = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(around)
        with torch.cuda.stream(self.stream):
            yield
        around.wait_stream(self.stream)

    @contextlib.contextmanager
    def _beside(self) -> Iterator[None]:
        if self.phase_stream is None:
            yield
            return
        self.phase_stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.phase_stream):
            yield

    @contextlib.contextmanager
    def _named(self, name: str) -> Iterator[None]:
        """Name what is launched inside the block in profiles (torch.profiler's, and with ``nvtx``
        Nsight's)."""
        nvtx: AbstractContextManager[Any] = contextlib.nullcontext()
        if self.options.nvtx and self.device.type == "cuda":
            nvtx = torch.cuda.nvtx.range(name)
        with nvtx, torch.profiler.record_function(f"fastcyclegan: {name}"):
            yield

    def _watched(self) -> tuple[bool, ...]:
        """What a captured iteration must not outlive: which parameters are trained, where they lie, whether
        somebody listens.
        """
        modules = itertools.chain.from_iterable(net.modules() for net in self.nets.values())
        hooked = any(
            m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
            for m in modules
        )
        return hooked, *(p.requires_grad for net in self.nets.values() for p in net.parameters())

    def _after_failed_capture(self) -> None:
        """Take back what a capture left half done: nothing ran, so only what the host noted."""
        self.recipe.forget_carried()
        for copies in self.copies:
            copies.forget()

    def uploading(self, batches: Generator[Batch]) -> Generator[Batch]:
        """Yield ``batches``, whose way to the device goes on a stream of its own: beside the iteration that
        runs.
        """
        if self.stream is None:
            yield from batches
            return
        copying = torch.cuda.Stream(self.device)
        with contextlib.closing(batches):
            while True:
                with torch.cuda.stream(copying):
                    batch = next(batches, None)
                if batch is None:
                    return
                here = torch.cuda.current_stream(self.device)
                here.wait_stream(copying)
                for t in (batch.A, batch.B):
                    t.record_stream(here)
                yield batch

    # --- Using and keeping ----------------------------------------------------------------------------------

    def translate(self, name: str, images: Tensor) -> Tensor:
        """Return what generator ``name`` makes of ``images`` [N, C, H, W], with dropout off and running
        statistics.
        """
        net = self.nets[name]
        if self.ahead is not None:
            self.ahead.prepare(
                (name, images.shape), {name: net}, lambda: dry_translation(net, images, self.dtype)
            )
        training = net.training
        net.eval()
        with torch.inference_mode(), self._autocast():
            result: Tensor = net(images)
        net.train(training)
        return result

    @property
    def optimizers(self) -> dict[str, torch.optim.Adam]:
        """The Adam of each phase."""
        return {name: trained.optimizer for name, trained in self.trained.items()}

    def describe(self) -> dict[str, str]:
        """Return what was chosen, for the table at the start."""
        return describe(self.choices, self.recipe, self.nets, self.optim.ema)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next iteration depends on but the plan. The tensors are live: copy them
        before the next step.
        """
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {
            "nets": {name: net.state_dict() for name, net in self.nets.items()},
            "optimizers": {name: trained.state_dict() for name, trained in self.trained.items()},
            "recipe": self.recipe.state_dict(),
            "rng": {"cpu": torch.get_rng_state(), "cuda": cuda},
            **({"ema": self.average.weights} if self.average is not None else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave. An average that the state does not have begins at its weights."""
        for name, net in self.nets.items():
            net.load_state_dict(state["nets"][name])
        for name, trained in self.trained.items():
            trained.load_state_dict(state["optimizers"][name])
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


def _check(
    nets: dict[str, nn.Module],
    precision: str,
    options: EngineConfig,
    can_capture: bool,
    precisions: Iterable[str],
) -> None:
    """Raise ValueError for what an engine cannot do."""
    if precision not in precisions:
        raise ValueError(f"Engine: precision must be {' or '.join(precisions)}, got {precision!r}")
    if options.graph == "on" and not can_capture:
        raise ValueError("Engine: graph='on' needs a CUDA GPU")
    reason = next(filter(None, (why_not_batched(name, net) for name, net in nets.items())), "")
    if options.micro_batch is not None and reason:
        raise ValueError(f"Engine: micro_batch would change the result: {reason}")


def _guard_freezing() -> None:
    """Let torch's compiler ask again whether parameters are frozen.

    torch 2.11 does not where a module's dicts are the same objects (pytorch issue 139476): a network that the
    user freezes or thaws between iterations would go on with the graph from before, and train what is frozen,
    or not what is thawed.
    """
    from torch._dynamo import config

    config.skip_tensor_guards_with_matching_dict_tags = False


@contextlib.contextmanager
def _frozen(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Take ``parameters`` out of the graph inside the block; those that the user froze stay frozen after
    it."""
    thawed = [p for p in parameters if p.requires_grad]
    for p in thawed:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in thawed:
            p.requires_grad_(True)
