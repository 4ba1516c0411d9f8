"""Kernels as Triton's JIT specialises them: recorded without compiling, compiled without launching, found in
its cache.

A launch is handed to the JIT itself, with a stand-in for the driver and a hook that hears what it would
compile; nothing here decides what a specialisation is, so what is compiled ahead of time is found by the
launch that needs it. Needs Triton, and no GPU.
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
    """One specialisation of a kernel for chips of ``capability`` (as 90). ``data``: Triton's own record of
    it, as JSON.
    """

    kernel: str
    capability: int
    data: str

    @functools.cached_property
    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.data)
        return found

    @property
    def types(self) -> dict[str, str]:
        """The types of the arguments that are no constants, by name: "*bf16", "i32", "tensordesc<bf16[64,
        64]>".
        """
        return {name: kind for name, kind in self.record["signature"].items() if kind != "constexpr"}

    @property
    def constants(self) -> dict[str, Any]:
        """What is compiled in, by name: constexprs, and arguments that are None or 1."""
        names = REGISTRY[self.kernel].arg_names
        keys = [names[path[0]] for path in self.record["constant_keys"]]
        return dict(zip(keys, self.record["constant_vals"], strict=True))

    @property
    def num_warps(self) -> int:
        return int(self.record["options"]["num_warps"])


class _StandIn:
    """A driver for a chip that need not be there. Other threads, and who asks for anything else, get the
    driver that was active before.
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

    def _is_asked_for(self) -> bool:
        return threading.get_ident() == self._thread

    def get_current_target(self) -> Any:
        if not self._is_asked_for():
            return self._other.get_current_target()
        return self._target

    def get_current_device(self) -> Any:
        if not self._is_asked_for():
            return self._other.get_current_device()
        # Its own: the JIT keeps what it knows of a device by this.
        return f"stand-in for sm_{self._target.arch}"

    def get_current_stream(self, device: Any) -> Any:
        if not self._is_asked_for():
            return self._other.get_current_stream(device)
        return 0


@contextlib.contextmanager
def stand_in(capability: int) -> Iterator[None]:
    """Let Triton take the current device for a chip of ``capability`` inside the block, in this thread."""
    before = driver._active
    driver.set_active(_StandIn(capability, before))
    try:
        yield
    finally:
        driver._active = before


def job_of(launch: Launch, capability: int) -> Job:
    """Return what the JIT would compile for ``launch`` on a chip of ``capability``."""
    fn, heard, thread = REGISTRY[launch.kernel], [], threading.get_ident()
    before = triton.knobs.runtime.jit_cache_hook

    def hear(**found: Any) -> bool | None:
        if threading.get_ident() == thread:
            heard.append(found["compile"]["specialization_data"])
            return True  # compile nothing
        if before is None:
            return None
        return before(**found)

    triton.knobs.runtime.jit_cache_hook = hear
    try:
        with stand_in(capability):
            fn.warmup(*launch.args, grid=(launch.grid,), **launch.keywords)
    finally:
        triton.knobs.runtime.jit_cache_hook = before
    return Job(launch.kernel, capability, heard[0])


def _source(job: Job, kind: type[ASTSource]) -> ASTSource:
    """Return what Triton compiles for ``job``; as ``JITFunction.preload`` reads such a record."""
    record = job.record
    constants = _by_path(record["constant_keys"], record["constant_vals"])
    attributes = _by_path(record["attrs_keys"], record["attrs_vals"])
    return kind(REGISTRY[job.kernel], record["signature"], constants, attributes)


def _by_path(paths: list[list[int]], values: list[Any]) -> dict[tuple[int, ...], Any]:
    return dict(zip(map(tuple, paths), values, strict=True))


def compile_job(job: Job, kind: type[ASTSource] = ASTSource) -> Any:
    """Return Triton's compiled kernel, from its cache if it is there."""
    target = GPUTarget("cuda", job.capability, 32)
    given = dict(job.record["options"])
    for name, value in given.items():
        if isinstance(value, list):
            given[name] = tuple(value)
    options = make_backend(target).parse_options(given).__dict__
    return triton.compile(_source(job, kind), target=target, options=options)


def build_launcher(kernel: Any) -> None:
    """Build what starts ``kernel``, where Triton (up to 3.6) has the C compiler make it for each signature
    and the driver is there.
    """
    from triton.backends.nvidia import driver as backend

    if not hasattr(backend, "make_launcher"):
        return
    try:
        backend.library_dirs()
    except AssertionError:
        # A machine without a driver, where a cache is filled for others: their first launches build it.
        return
    backend.CudaLauncher(kernel.src, kernel.metadata)


class _NotThereError(Exception):
    """Triton's cache lacks a kernel."""


class _Question(ASTSource):
    """A source that is not to be compiled: what is in the cache is found, what is not says so."""

    def make_ir(self, *_: Any, **__: Any) -> Any:
        raise _NotThereError


def is_compiled(job: Job) -> bool:
    """Whether Triton's cache has ``job``, so that its first launch does not compile."""
    try:
        compile_job(job, _Question)
    except _NotThereError:
        return False
    return True
