"""Run a network for inference as fast as its device allows, always with its current weights.

On an NVIDIA GPU, the calls of a size become a CUDA graph, and the kernels read working copies of the weights,
which are made in one pass instead of one by one. The graph includes that pass, so it can never use old
weights, whatever changed them. (Comparing PyTorch's version counters would miss changes through ``.data`` and
by fused Adam.) If the memory of a weight, a module or a hook was replaced, everything is prepared anew. On
other devices, operators keep weights in the forms that they read, and compare them with the weights on every
use.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastcyclegan.engine.ahead import Ahead, dry_translation
from fastcyclegan.engine.choices import DTYPES
from fastcyclegan.engine.cuda_capture import CudaCapture
from fastcyclegan.engine.cuda_graph import Capture
from fastcyclegan.engine.devices import autocast
from fastcyclegan.errors import is_out_of_memory, one_line
from fastcyclegan.inference.network_state import NetworkState, eval_mode
from fastcyclegan.inference.size_graphs import SizeGraphs, settings_of_convolutions
from fastcyclegan.kernels import WorkingCopies
from fastcyclegan.kernels._working_copies import only
from fastcyclegan.kernels.cpu.forms import WeightForms
from fastcyclegan.nn.as_trained import masks_from
from fastcyclegan.nn.networks import computed_by

# Maximum number of sizes that torch.compile compiles the network for, which takes it up to a minute each.
MAX_COMPILED = 8
Log = Callable[[str], object]


def warn(text: str) -> None:
    """Report ``text`` as a Python warning. This is the ``log`` of engines in programs of other people."""
    warnings.warn(text, stacklevel=2)


class InferenceEngine:
    """Calls ``net`` in ``precision`` ("fp32" or "bf16"), in eval mode and without gradients.

    Every call uses the weights that the network has at that moment. It runs where the network is, which can
    change between calls. With ``compiled``, torch.compile compiles the network, for each of the first few
    sizes, unless Triton kernels compute it. The caller must have checked ``engine.why_not_compiled``.

    Several threads can use one engine. It keeps the network alive only if it compiles it. ``log`` receives a
    line for each choice that differs from the request. Tests pass ``capture`` to replace CUDA graphs.

    Images are used in the size that they have. Padding them to a few shared sizes would save graphs, but
    would change the result: instance norm averages over all pixels.
    """

    def __init__(
        self,
        net: nn.Module,
        precision: str = "fp32",
        compiled: bool = False,
        log: Log = warn,
        capture: Capture | None = None,
    ) -> None:
        self.precision, self.dtype, self.log = precision, DTYPES[precision], log
        self._net = weakref.ref(net)
        self._given_capture = capture
        self._compiler = _Compiler(net, log) if compiled else None
        self._forms = WeightForms()
        self._lock = threading.RLock()
        self._prepared: _Prepared | None = None
        self.keeps_forms = False
        """Whether a call on a CPU has made the forms of the weights that later calls use."""

    def __call__(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return the network's result for float ``images`` [N, C, H, W] in [-1, 1], in fp32.

        ``keys`` [N] are those of the images' dropout masks, for a network that ``as_trained`` made.
        Images in another layout than the network computes in are converted first. The result is in a layout
        that the network chooses, and is not an inference tensor. Raises whatever the network raises.
        """
        net = self._net()
        if net is None:
            raise ReferenceError("InferenceEngine: the network no longer exists")
        with torch.inference_mode(False), torch.no_grad():
            if images.dim() == 4 and _prefers_channels_last(net):
                images = images.contiguous(memory_format=torch.channels_last)
            if keys is not None:
                keys = keys.to(images.device)
            if self._is_on_gpu(net, images):
                with self._lock:
                    return self._on_gpu(net, images, keys)
            with self._forms:
                result = self._apply(net, images, keys)
            self.keeps_forms = True
            return result

    @property
    def captured(self) -> int:
        """Number of sizes that have a CUDA graph."""
        return 0 if self._prepared is None else self._prepared.graphs.captured

    def release(self) -> None:
        """Free the memory of graphs, working copies and forms. Later calls prepare them anew."""
        with self._lock:
            self._prepared = None
            self._forms = WeightForms()
            self.keeps_forms = False

    def _is_on_gpu(self, net: nn.Module, images: Tensor) -> bool:
        """Return whether the calls of ``net`` on ``images`` can be captured.

        The network itself refuses images on another device.
        """
        weight = next(net.parameters(), images)
        if weight.device != images.device or type(images) is not Tensor:
            return False
        is_nvidia = weight.device.type == "cuda" and torch.version.hip is None
        return is_nvidia or self._given_capture is not None

    def _on_gpu(self, net: nn.Module, images: Tensor, keys: Tensor | None) -> Tensor:
        prepared = self._prepared
        if prepared is None or not prepared.state.is_current(net):
            # Freed first: the new graphs and copies may need its memory.
            prepared = self._prepared = None
            prepared = self._prepared = _Prepared(net, self.dtype, self.log, self._given_capture)
        step = functools.partial(self._step, net, prepared)
        if _is_capturing(images):
            return step(images, keys)
        with _running_on(prepared.stream) as keep:
            if not prepared.state.can_capture:
                return keep(step(images, keys))
            return keep(prepared.graphs.run(step, images, settings_of_convolutions(), keys))

    def _step(self, net: nn.Module, prepared: _Prepared, images: Tensor, keys: Tensor | None) -> Tensor:
        """Launch one call. A graph captures all of this, so that a replay rounds the weights again, too."""
        prepared.compile_ahead(net, images, self.dtype)
        with only(prepared.copies):
            result = self._apply(net, images, keys)
        prepared.drop_unused_copies()
        return result

    @contextlib.contextmanager
    def parts(self, device: torch.device, keys: Tensor | None = None) -> Iterator[nn.Module]:
        """Yield the network, for calls of its parts on ``device`` that compute what a call of it computes.

        They run without gradients, in eval mode and in the precision of the engine, and on a CPU they use the
        forms of the weights that it keeps. They are not captured or compiled.
        """
        net = self._net()
        if net is None:
            raise ReferenceError("InferenceEngine: the network no longer exists")
        if keys is not None:
            keys = keys.to(device)
        with torch.inference_mode(False), torch.no_grad(), self._forms, self._mode(net, device, keys):
            yield net
        self.keeps_forms = device.type == "cpu"

    @contextlib.contextmanager
    def _mode(self, net: nn.Module, device: torch.device, keys: Tensor | None) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(eval_mode(net))
            stack.enter_context(masks_from(keys))
            if torch.amp.is_autocast_available(device.type):
                stack.enter_context(autocast(device.type, self.dtype))
            yield

    def _apply(self, net: nn.Module, images: Tensor, keys: Tensor | None) -> Tensor:
        with self._mode(net, images.device, keys):
            if self._compiler is not None and computed_by(net) != "triton":
                return self._compiler(net, images)
            result: Tensor = net(images)
            return result


class _Prepared:
    """What an engine keeps on a GPU for a network in one state: working copies, graphs and a stream."""

    def __init__(self, net: nn.Module, dtype: torch.dtype, log: Log, capture: Capture | None) -> None:
        self.state = NetworkState(net)
        device = next(p.device for p in net.parameters())
        self.stream: torch.cuda.Stream | None = None
        self._ahead: Ahead | None = None
        has_kernels = computed_by(net) == "triton"
        if capture is None:
            self.stream = torch.cuda.Stream(device)
            capture = CudaCapture(self.stream)
            if has_kernels:
                self._ahead = Ahead(device, log)
        self.graphs = SizeGraphs(capture, log)
        self.copies = _working_copies(net, dtype) if has_kernels else None
        self._is_new = True

    def drop_unused_copies(self) -> None:
        """After the first call, stop copying weights of which the network's layers use no copies."""
        if self._is_new and self.copies is not None:
            self.copies.drop_unused()
            if not self.copies.groups:
                self.copies = None
        self._is_new = False

    def compile_ahead(self, net: nn.Module, images: Tensor, dtype: torch.dtype) -> None:
        """Compile the kernels for images of this size, if that has not been done."""
        if self._ahead is not None:
            launches = functools.partial(dry_translation, net, images, dtype)
            self._ahead.prepare(images.shape, {"net": net}, launches)


def _working_copies(net: nn.Module, dtype: torch.dtype) -> WorkingCopies | None:
    """Return copies of the weights in the form that the kernels read, or None if the weights have it."""
    weights = [p for p in net.parameters() if p.dim() == 4 and not p.is_inference()]
    if all(p.dtype == dtype and p.is_contiguous(memory_format=torch.channels_last) for p in weights):
        return None
    return WorkingCopies([[p] for p in weights], dtype)


def _prefers_channels_last(net: nn.Module) -> bool:
    """Return whether ``net`` computes in channels_last: with kernels, or because its weights are so.

    PyTorch's operators follow the images, and are slower if the weights have another layout.
    """
    if computed_by(net) != "reference":
        return True
    weight = next((p for p in net.parameters() if p.dim() == 4), None)
    return weight is not None and weight.is_contiguous(memory_format=torch.channels_last)


def _is_capturing(images: Tensor) -> bool:
    """Return whether the caller is capturing a CUDA graph of its own, which then records this call, too."""
    return images.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@contextlib.contextmanager
def _running_on(stream: torch.cuda.Stream | None) -> Iterator[Callable[[Tensor], Tensor]]:
    """Run the body on ``stream``, in order with the caller's earlier and later launches.

    Calls in several threads share the memory of graphs and copies, and may be on different streams. The body
    passes its result to the function that this yields, which keeps the memory from being reused too early.
    """
    if stream is None:
        yield lambda result: result
        return
    outer = torch.cuda.current_stream(stream.device)

    def keep(result: Tensor) -> Tensor:
        result.record_stream(outer)
        return result

    stream.wait_stream(outer)
    try:
        with torch.cuda.stream(stream):
            yield keep
    finally:
        outer.wait_stream(stream)


class _Compiler:
    """Calls ``net`` compiled by torch.compile, for a limited number of sizes."""

    def __init__(self, net: nn.Module, log: Log) -> None:
        self._call: Any = torch.compile(net, dynamic=False)
        self._log = log
        self._sizes: set[Any] = set()
        self._off = False

    def __call__(self, net: nn.Module, images: Tensor) -> Tensor:
        size = images.shape, images.stride(), images.dtype, images.device
        result: Tensor
        if size in self._sizes:
            result = self._call(images)
        elif self._off:
            result = net(images)
        elif len(self._sizes) >= MAX_COMPILED:
            result = net(images)
            self._stop(f"more than {MAX_COMPILED} sizes are not compiled; further sizes run uncompiled")
        else:
            result = self._first_call(net, images)
            self._sizes.add(size)
        return result

    def _first_call(self, net: nn.Module, images: Tensor) -> Tensor:
        """Compile the network for a size, or stop compiling if that fails."""
        try:
            result: Tensor = self._call(images)
        # The compiler or its libraries can raise anything.
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reason = f"{type(error).__name__}: {one_line(error)}"
        else:
            return result
        result = net(images)  # raises if the network, and not the compiler, is the reason
        self._call = net
        self._stop(f"not compiled: {reason}; images are translated without torch.compile")
        return result

    def _stop(self, text: str) -> None:
        self._off = True
        self._log(text)
