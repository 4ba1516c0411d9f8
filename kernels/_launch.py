"""Register and launch kernels, and report every launch to observers, which count or list them.

Needs Triton. Host code that must be importable without Triton imports this module late.
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

from ._failures import REFUSED, is_external_error, kernel_error, raise_device_error

# Every kernel of this package by name. The ahead-of-time compiler must have seen each at least once.
REGISTRY: dict[str, Any] = {}


@dataclass(frozen=True)
class Config:
    """One way to run a kernel: its tile sizes (constexpr by name), warps and stages."""

    tile: tuple[tuple[str, int], ...]
    num_warps: int
    num_stages: int = 1

    @property
    def constants(self) -> dict[str, int]:
        return dict(self.tile)


@dataclass(frozen=True)
class Launch:
    """One requested launch: positional arguments, constexpr arguments by name, and the configuration."""

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
    """The properties of a GPU that matter to kernels: compute capability (90 is 9.0) and multiprocessors.

    ``name``: the GPU whose tables of choices apply, "" for none. ``descriptors``: whether the driver accepts
    tensor descriptors, if the chip has them.
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
    """Receives every launch."""

    def launched(self, launch: Launch) -> None: ...


class DryObserver(Observer, Protocol):
    """Receives every launch that a GPU like ``chip`` would make. Nothing runs; outputs stay as allocated.

    With ``all_configs``, a kernel that has a choice of configurations is reported once for each that could be
    chosen on ``chip``. If a table contains the choice, only the chosen one is reported. Otherwise
    ``measured`` receives the name of the choice and the number of configurations.
    """

    all_configs: bool
    all_forms: bool
    chip: Chip

    def measured(self, choice: str, configs: int) -> None: ...


class _Local(threading.local):
    """The dry runs of one thread, innermost last. Other threads keep launching kernels in the meantime."""

    def __init__(self) -> None:
        self.dry: list[DryObserver] = []


_observers: list[Observer] = []
_local = _Local()


def kernel(fn: Any) -> Any:
    """Add a Triton function to the registry. This is the outermost decorator of every kernel."""
    name = fn.fn.__name__
    assert name not in REGISTRY, f"two kernels are named {name}"
    REGISTRY[name] = fn
    return fn


def interpreted() -> bool:
    """Return whether Triton interprets kernels (TRITON_INTERPRET=1), so that they run on the CPU."""
    return bool(triton.knobs.runtime.interpret)


def dry() -> bool:
    """Return whether this thread is in a dry run, which observes launches without making them."""
    return bool(_local.dry)


def interpreting() -> bool:
    """Return whether launches of this thread are interpreted. In a dry run they are not."""
    return interpreted() and not dry()


def listing() -> bool:
    """Return whether a dry run lists every configuration of every launch."""
    return any(observer.all_configs for observer in _local.dry)


def listing_forms() -> bool:
    """Return whether a dry run lists both forms of launches through descriptors: with and without them."""
    return any(observer.all_forms for observer in _local.dry)


def report_choice(name: str, configs: int) -> None:
    """Report to dry runs that list configurations how many of them the choice ``name`` has."""
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


_depth = 0


def inside() -> bool:
    """Return whether a kernel is being interpreted.

    PyTorch operators that run in the meantime are the interpreter's own.
    """
    return _depth > 0


@contextlib.contextmanager
def _inside() -> Iterator[None]:
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


def chip(device: torch.device) -> Chip:
    """Return the chip that configurations are chosen for.

    In a dry run that is the chip of the run, otherwise the chip of ``device``, or an H200 without a GPU.
    """
    if _local.dry:
        return _local.dry[0].chip
    return Chip.of(device) if device.type == "cuda" else Chip()


def launch(name: str, grid: int, args: tuple[Any, ...], constants: dict[str, Any], config: Config) -> None:
    """Run ``grid`` programs of kernel ``name`` on the device of its first argument.

    An empty grid launches nothing. Raises KernelError if the kernel does not compile or launch. Errors that
    are not the kernel's fault are raised unchanged: a full or dead device, and a tensor descriptor that the
    driver rejects, for which there is another form.
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
