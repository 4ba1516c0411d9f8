"""Register and launch kernels, and report every launch to observers, which count or list launches.

Needs Triton. Host code that must be importable without Triton imports this module only when it needs it.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from ._cache import ensure_triton_home
from ._failures import REFUSED, is_external_error, kernel_error, raise_device_error

ensure_triton_home()

# Every kernel of this package, by name. The ahead-of-time compiler checks that it covers all of them.
REGISTRY: dict[str, Any] = {}


@dataclass(frozen=True)
class Config:
    """One way to run a kernel: tile sizes (constexpr arguments by name), number of warps and of stages."""

    tile: tuple[tuple[str, int], ...]
    num_warps: int
    num_stages: int = 1

    @property
    def constants(self) -> dict[str, int]:
        return dict(self.tile)


@dataclass(frozen=True)
class Launch:
    """One requested launch: kernel, grid, positional arguments, constexpr arguments and configuration."""

    kernel: str
    grid: int
    args: tuple[Any, ...]
    constants: dict[str, Any]
    config: Config

    @property
    def keywords(self) -> dict[str, Any]:
        """The keyword arguments of the Triton function: constants, tiles and options."""
        # FMA contraction stays on for sm_80 and later even if Triton's default changes, because parity is
        # proved with it.
        options = {
            "num_warps": self.config.num_warps,
            "num_stages": self.config.num_stages,
            "enable_fp_fusion": True,
        }
        return {**self.constants, **self.config.constants, **options}


@dataclass(frozen=True)
class Chip:
    """The properties of a GPU that the kernels depend on.

    ``capability`` is the compute capability (90 means 9.0), and ``multiprocessors`` is the number of
    multiprocessors. ``name`` is the GPU whose tuning tables are used, or "" if none are. ``descriptors`` is
    true if the driver accepts tensor descriptors; it matters only for chips that support them.
    """

    capability: int = 90
    multiprocessors: int = 132
    name: str = ""
    descriptors: bool = True

    @classmethod
    @functools.lru_cache
    def of(cls, device: torch.device) -> Chip:
        """Return the chip of the GPU ``device``."""
        gpu = torch.cuda.get_device_properties(device)
        return cls(10 * gpu.major + gpu.minor, gpu.multi_processor_count, gpu.name)


class Observer(Protocol):
    """An object that is notified of every launch."""

    def launched(self, launch: Launch) -> None: ...


class DryObserver(Observer, Protocol):
    """An observer of a dry run, which is notified of every launch that a GPU like ``chip`` would make.

    Nothing runs, and outputs are allocated but never written. If ``all_configs`` is true, a kernel with
    several candidate configurations is reported once for each of them, and ``measured`` receives the name of
    the choice and the number of candidates. But if a tuning table for ``chip`` contains the choice, only the
    chosen configuration is reported. If ``all_forms`` is true, launches that can use tensor descriptors are
    reported both with and without them.
    """

    all_configs: bool
    all_forms: bool
    chip: Chip

    def measured(self, choice: str, configs: int) -> None: ...


class _Local(threading.local):
    """What belongs to one thread: its dry runs' observers, innermost last, and how many kernels it is inside.

    Other threads launch kernels as usual.
    """

    def __init__(self) -> None:
        self.dry: list[DryObserver] = []
        self.depth = 0


_observers: list[Observer] = []
_local = _Local()


def kernel(fn: Any) -> Any:
    """Add a Triton function to the registry. This is the outermost decorator of every kernel."""
    name = fn.fn.__name__
    assert name not in REGISTRY, f"two kernels are named {name}"
    REGISTRY[name] = fn
    return fn


def interpreted() -> bool:
    """Return whether Triton interprets kernels on the CPU (TRITON_INTERPRET=1)."""
    return bool(triton.knobs.runtime.interpret)


def dry() -> bool:
    """Return whether this thread is in a dry run, which observes launches without making them."""
    return bool(_local.dry)


def interpreting() -> bool:
    """Return whether kernels that this thread launches are interpreted. In a dry run they are not."""
    return interpreted() and not dry()


def listing() -> bool:
    """Return whether a dry run of this thread lists every candidate configuration of every launch."""
    return any(observer.all_configs for observer in _local.dry)


def listing_forms() -> bool:
    """Return whether a dry run of this thread lists launches both with and without tensor descriptors."""
    return any(observer.all_forms for observer in _local.dry)


def report_choice(name: str, configs: int) -> None:
    """Report the number of candidates for choice ``name`` to the dry runs that list configurations."""
    for observer in _local.dry:
        if observer.all_configs:
            observer.measured(name, configs)


def observe_always(observer: Observer) -> None:
    """Pass every launch to ``observer`` for the rest of the process."""
    _observers.append(observer)


@contextlib.contextmanager
def observe(observer: Observer) -> Iterator[None]:
    """Pass every launch inside the block to ``observer``."""
    observe_always(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


@contextlib.contextmanager
def observe_dry(observer: DryObserver) -> Iterator[None]:
    """Pass every launch of this thread inside the block to ``observer`` instead of making it."""
    _local.dry.append(observer)
    try:
        yield
    finally:
        _local.dry.remove(observer)


# Triton's interpreter replaces functions of Triton while it runs, so one thread at a time can use it.
_interpreter = threading.RLock()


def inside() -> bool:
    """Return whether this thread interprets a kernel at this moment.

    While this is true, PyTorch operators are called by the interpreter itself.
    """
    return _local.depth > 0


@contextlib.contextmanager
def _inside() -> Iterator[None]:
    with _interpreter:
        _local.depth += 1
        try:
            yield
        finally:
            _local.depth -= 1


def chip(device: torch.device) -> Chip:
    """Return the chip for which configurations are chosen.

    In a dry run, this is the observer's chip. Otherwise it is the chip of ``device``, or that of an H200 if
    ``device`` is not a GPU.
    """
    if _local.dry:
        return _local.dry[0].chip
    return Chip.of(device) if device.type == "cuda" else Chip()


def launch(name: str, grid: int, args: tuple[Any, ...], constants: dict[str, Any], config: Config) -> None:
    """Run ``grid`` programs of kernel ``name`` on the device of its first argument.

    If ``grid`` is 0, nothing is launched. Raises KernelError if the kernel does not compile or launch. Errors
    that the kernel did not cause are raised unchanged: a device that is out of memory or can no longer be
    used, and a tensor descriptor that the driver rejects (the caller can then launch with pointers).
    """
    if grid == 0:
        return
    request = Launch(name, grid, args, constants, config)
    for observer in (*_observers, *_local.dry):
        observer.launched(request)
    if dry():
        return
    first = args[0].base if isinstance(args[0], TensorDescriptor) else args[0]
    device = first.device
    with torch.cuda.device(device) if device.type == "cuda" else _inside():
        try:
            REGISTRY[name][(grid,)](*args, **request.keywords)
        except Exception as error:
            if is_external_error(error) or REFUSED in str(error):
                raise
            raise_device_error(device, error)
            raise kernel_error(request, device, chip(device).capability, error) from error
