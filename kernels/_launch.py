"""How kernels are found, launched, counted and listed. Needs Triton; host code that must import without it
imports this late.
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

from ._failures import REFUSED, ask_device, is_no_kernels_fault, kernel_error

# Every kernel of this package by name: what the ahead-of-time compiler must have seen at least once.
REGISTRY: dict[str, Any] = {}


@dataclass(frozen=True)
class Config:
    """One way to run a kernel: its tile sizes (constexpr by name) and warps."""

    tile: tuple[tuple[str, int], ...]
    num_warps: int
    num_stages: int = 1

    @property
    def constants(self) -> dict[str, int]:
        return dict(self.tile)


@dataclass(frozen=True)
class Launch:
    """One launch as it was asked for: positional arguments by position, constexpr by name, and the
    configuration.
    """

    kernel: str
    grid: int
    args: tuple[Any, ...]
    constants: dict[str, Any]
    config: Config

    @property
    def keywords(self) -> dict[str, Any]:
        """What the Triton function gets by name: constants, tiles and options."""
        # FMA contraction is on for sm_80 and later whatever Triton's default becomes: parity is proved with
        # it.
        options = {
            "num_warps": self.config.num_warps,
            "num_stages": self.config.num_stages,
            "enable_fp_fusion": True,
        }
        return {**self.constants, **self.config.constants, **options}


@dataclass(frozen=True)
class Chip:
    """A GPU as kernels know it: compute capability (90 is 9.0) and multiprocessors.

    ``name``: whose tables of choices hold, "" for none. ``descriptors``: whether its driver takes tensor
    descriptors, if the chip has them.
    """

    capability: int = 90
    multiprocessors: int = 132
    name: str = ""
    descriptors: bool = True

    @classmethod
    @functools.lru_cache
    def of(cls, device: torch.device) -> Chip:
        """Return the GPU ``device``."""
        found = torch.cuda.get_device_properties(device)
        return cls(10 * found.major + found.minor, found.multi_processor_count, found.name)


class Observer(Protocol):
    """Hears of every launch."""

    def launched(self, launch: Launch) -> None: ...


class DryObserver(Observer, Protocol):
    """Hears of every launch that a GPU like ``chip`` would make; none is made, outputs stay as allocated.

    Where ``all_configs``, a kernel that has a choice of configurations is heard of once with each that could
    be chosen on ``chip``: with one alone where a table holds the choice, else ``measured`` hears how many
    there are, by the name of the choice.
    """

    all_configs: bool
    all_forms: bool
    chip: Chip

    def measured(self, choice: str, configs: int) -> None: ...


class _Local(threading.local):
    """The dry runs of a thread, the last of which is the innermost: launches of others are made meanwhile."""

    def __init__(self) -> None:
        self.dry: list[DryObserver] = []


_observers: list[Observer] = []
_local = _Local()


def kernel(fn: Any) -> Any:
    """Enter a Triton function into the registry; the outermost decorator of every kernel here."""
    name = fn.fn.__name__
    assert name not in REGISTRY, f"two kernels are called {name}"
    REGISTRY[name] = fn
    return fn


def interpreted() -> bool:
    """Whether Triton was told to interpret kernels (TRITON_INTERPRET=1), so that they run on the CPU."""
    return bool(triton.knobs.runtime.interpret)


def dry() -> bool:
    """Whether launches of this thread are only heard of at present."""
    return bool(_local.dry)


def interpreting() -> bool:
    """Whether launches of this thread are interpreted: not where they are only heard of."""
    return interpreted() and not dry()


def listing() -> bool:
    """Whether somebody wants to hear of every configuration of every launch."""
    return any(observer.all_configs for observer in _local.dry)


def listing_forms() -> bool:
    """Whether somebody wants to hear of launches through descriptors as they would be without."""
    return any(observer.all_forms for observer in _local.dry)


def report_choice(name: str, configs: int) -> None:
    """Tell who lists configurations that the choice ``name`` is open between so many."""
    for observer in _local.dry:
        if observer.all_configs:
            observer.measured(name, configs)


def observe_always(observer: Observer) -> None:
    """Let ``observer`` hear every launch for the rest of the process."""
    _observers.append(observer)


@contextlib.contextmanager
def observe(observer: Observer) -> Iterator[None]:
    """Tell ``observer`` of every launch inside the block."""
    observe_always(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


@contextlib.contextmanager
def observe_dry(observer: DryObserver) -> Iterator[None]:
    """Tell ``observer`` of every launch of this thread inside the block, and make none."""
    _local.dry.append(observer)
    try:
        yield
    finally:
        _local.dry.remove(observer)


_depth = 0


def inside() -> bool:
    """Whether a kernel is being interpreted: what PyTorch does meanwhile is the interpreter's own."""
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
    """Return the chip that configurations are chosen for: what a dry run is about, else ``device``; an H200
    where there is no GPU.
    """
    if _local.dry:
        return _local.dry[0].chip
    return Chip.of(device) if device.type == "cuda" else Chip()


def launch(name: str, grid: int, args: tuple[Any, ...], constants: dict[str, Any], config: Config) -> None:
    """Run ``grid`` programs of kernel ``name`` on the device of its first argument; none for an empty grid.

    Raises KernelError where the kernel does not compile or launch. What is not the kernel's fault is raised
    as it is: a full or a dead device, and a tensor descriptor that the driver refuses, for which there is
    another form.
    """
    if grid == 0:
        return
    made = Launch(name, grid, args, constants, config)
    for observer in (*_observers, *_local.dry):
        observer.launched(made)
    if dry():
        return
    first = args[0].base if isinstance(args[0], TensorDescriptor) else args[0]
    device = first.device
    with torch.cuda.device(device) if device.type == "cuda" else _inside():
        try:
            REGISTRY[name][(grid,)](*args, **made.keywords)
        except Exception as error:
            if is_no_kernels_fault(error) or REFUSED in str(error):
                raise
            ask_device(device, error)
            raise kernel_error(made, device, chip(device).capability, error) from error
