"""How kernels are found, launched, counted and listed. Needs Triton; host code that must import without it imports this late."""

from __future__ import annotations

import contextlib
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
    """One launch as it was asked for: positional arguments by position, constexpr by name, and the configuration."""

    kernel: str
    grid: int
    args: tuple[Any, ...]
    constants: dict[str, Any]
    config: Config


class Observer(Protocol):
    """Hears of every launch. Where ``dry``, launches are heard of and not made: outputs stay as allocated.

    Where ``all_configs`` too, a kernel that has a choice of configurations is heard of once with each: those for a chip of ``capability``.
    """

    dry: bool
    all_configs: bool
    capability: int

    def launched(self, launch: Launch) -> None: ...


_observers: list[Observer] = []


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
    """Whether launches are only heard of at present."""
    return any(observer.dry for observer in _observers)


def listing() -> bool:
    """Whether somebody wants to hear of every configuration of every launch."""
    return any(observer.dry and observer.all_configs for observer in _observers)


@contextlib.contextmanager
def observe(observer: Observer) -> Iterator[None]:
    """Tell ``observer`` of every launch inside the block."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


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


def capability(device: torch.device) -> int:
    """Return the compute capability that configurations are chosen for, as 90: of ``device``, or what a dry run is about."""
    for observer in _observers:
        if observer.dry:
            return observer.capability
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def multiprocessors(device: torch.device) -> int:
    """Return the number of multiprocessors that a grid should fill; an H200's where there is no GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def launch(name: str, grid: int, args: tuple[Any, ...], constants: dict[str, Any], config: Config) -> None:
    """Run ``grid`` programs of kernel ``name`` on the device of its first argument; none for an empty grid.

    Raises KernelError where the kernel does not compile or launch. What is not the kernel's fault is raised as it is: a full or a dead
    device, and a tensor descriptor that the driver refuses, for which there is another form.
    """
    if grid == 0:
        return
    for observer in _observers:
        observer.launched(Launch(name, grid, args, constants, config))
    if dry():
        return
    first = args[0].base if isinstance(args[0], TensorDescriptor) else args[0]
    device = first.device
    # FMA contraction is on for sm_80 and later whatever Triton's default becomes: parity is proved with it.
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True}
    with torch.cuda.device(device) if device.type == "cuda" else _inside():
        try:
            REGISTRY[name][(grid,)](*args, **constants, **config.constants, **options)
        except Exception as error:
            if is_no_kernels_fault(error) or REFUSED in str(error):
                raise
            ask_device(device, error)
            raise kernel_error(Launch(name, grid, args, constants, config), device, capability(device), error) from error
