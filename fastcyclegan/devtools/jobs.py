"""Record, compile and look up kernels exactly as Triton's JIT specialises them.

Each launch is passed to the JIT itself, with a stand-in for the driver and a hook that records what would be
compiled. What distinguishes specialisations is left to the JIT, so a launch on a GPU finds the kernel that
was compiled for it ahead of time. This module needs Triton but no GPU.
"""

from __future__ import annotations

import contextlib
import functools
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.driver import driver

from fastcyclegan.kernels._launch import REGISTRY, Launch


@dataclass(frozen=True)
class Job:
    """One specialisation of a kernel, for chips of ``capability`` (for example 90).

    ``data`` is Triton's own record of it, as JSON.
    """

    kernel: str
    capability: int
    data: str

    @functools.cached_property
    def record(self) -> dict[str, Any]:
        """Triton's record of the specialisation."""
        parsed: dict[str, Any] = json.loads(self.data)
        return parsed

    @property
    def types(self) -> dict[str, str]:
        """The types of the arguments that are not compile-time constants, by argument name.

        For example "*bf16", "i32" or "tensordesc<bf16[64, 64]>".
        """
        return {name: kind for name, kind in self.record["signature"].items() if kind != "constexpr"}

    @property
    def constants(self) -> dict[str, Any]:
        """The values of compile-time constants by name: constexprs, and arguments that are None or 1."""
        names = REGISTRY[self.kernel].arg_names
        keys = [names[path[0]] for path in self.record["constant_keys"]]
        return dict(zip(keys, self.record["constant_vals"], strict=True))

    @property
    def num_warps(self) -> int:
        return int(self.record["options"]["num_warps"])


class _StandIn:
    """A Triton driver that reports a chip of ``capability``, which this machine does not need to have.

    In other threads, and for all other attributes, the driver that was active before is used.
    """

    def __init__(self, capability: int, before: Any) -> None:
        self._target = GPUTarget("cuda", capability, 32)
        self._before = before
        self._thread = threading.get_ident()

    @property
    def _other(self) -> Any:
        if self._before is None:
            return driver.default
        return self._before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._other, name)

    def _is_own_thread(self) -> bool:
        return threading.get_ident() == self._thread

    def get_current_target(self) -> Any:
        if not self._is_own_thread():
            return self._other.get_current_target()
        return self._target

    def get_current_device(self) -> Any:
        if not self._is_own_thread():
            return self._other.get_current_device()
        # A unique value, because the JIT uses it as the key for its data about a device.
        return f"stand-in for sm_{self._target.arch}"

    def get_current_stream(self, device: Any) -> Any:
        if not self._is_own_thread():
            return self._other.get_current_stream(device)
        return 0


@contextlib.contextmanager
def stand_in(capability: int) -> Iterator[None]:
    """Make Triton treat the current device as a chip of ``capability`` inside the block, in this thread."""
    before = driver._active
    driver.set_active(_StandIn(capability, before))
    try:
        yield
    finally:
        driver._active = before


def job_of(launch: Launch, capability: int) -> Job:
    """Return the specialisation that the JIT would compile for ``launch`` on a chip of ``capability``."""
    fn, specialisations, thread = REGISTRY[launch.kernel], [], threading.get_ident()
    before = triton.knobs.runtime.jit_cache_hook

    def record(**event: Any) -> bool | None:
        if threading.get_ident() == thread:
            specialisations.append(event["compile"]["specialization_data"])
            return True  # compile nothing
        if before is None:
            return None
        return before(**event)

    triton.knobs.runtime.jit_cache_hook = record
    try:
        with stand_in(capability):
            fn.warmup(*launch.args, grid=(launch.grid,), **launch.keywords)
    finally:
        triton.knobs.runtime.jit_cache_hook = before
    return Job(launch.kernel, capability, specialisations[0])


def _source(job: Job, kind: type[ASTSource]) -> ASTSource:
    """Return the source that Triton compiles for ``job``.

    It is rebuilt from the job's record in the same way as in ``JITFunction.preload``.
    """
    record = job.record
    constants = _by_path(record["constant_keys"], record["constant_vals"])
    attributes = _by_path(record["attrs_keys"], record["attrs_vals"])
    return kind(REGISTRY[job.kernel], record["signature"], constants, attributes)


def _by_path(paths: list[list[int]], values: list[Any]) -> dict[tuple[int, ...], Any]:
    return dict(zip(map(tuple, paths), values, strict=True))


def compile_job(job: Job, kind: type[ASTSource] = ASTSource) -> Any:
    """Return the kernel that Triton compiles for ``job``, from Triton's cache if it is there."""
    target = GPUTarget("cuda", job.capability, 32)
    settings = dict(job.record["options"])
    for name, value in settings.items():
        if isinstance(value, list):
            settings[name] = tuple(value)
    options = make_backend(target).parse_options(settings).__dict__
    return triton.compile(_source(job, kind), target=target, options=options)


def build_launcher(kernel: Any) -> None:
    """Build the launcher of ``kernel`` if Triton needs one and the driver is installed.

    Up to version 3.6, Triton uses a C compiler to build a launcher for each signature.
    """
    from triton.backends.nvidia import driver as backend

    if not hasattr(backend, "make_launcher"):
        return
    try:
        backend.library_dirs()
    except AssertionError:
        # This machine has no driver, so it fills the cache for other machines. There, the first launches
        # build the launchers.
        return
    backend.CudaLauncher(kernel.src, kernel.metadata)


class _NotCachedError(Exception):
    """Raised if a kernel is not in Triton's cache."""


class _CacheProbe(ASTSource):
    """A source that Triton can look up in its cache, but that raises an error instead of being compiled."""

    def make_ir(self, *_: Any, **__: Any) -> Any:
        raise _NotCachedError


def is_compiled(job: Job) -> bool:
    """Return whether the kernel of ``job`` is in Triton's cache, so that launching it compiles nothing."""
    try:
        compile_job(job, _CacheProbe)
    except _NotCachedError:
        return False
    return True
