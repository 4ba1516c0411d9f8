"""Load arrays in worker processes, and yield them in order.

The arrays travel through pipes as raw bytes, so neither shared memory nor semaphores are needed, and /dev/shm
may be small or full. A worker that dies is reported, and workers whose main process is gone end by
themselves.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcyclegan.data.background import PATIENCE, POLL, Stopping, in_background, never, start_thread
from fastcyclegan.errors import UserError, one_line, system_reason

Arrays = list[NDArray[np.uint8]]
Load = Callable[[int], tuple[Any, Arrays]]
"""Loads the item of a number and returns a description of it, which is pickled, and its uint8 arrays."""
Loaded = tuple[Any, list[Tensor]]
"""What arrives in the main process: the description and the arrays, as tensors."""

AHEAD = 2
"""Items per worker that are handed out before they are needed."""
PIPE_BYTES = 2**20
"""Size of a worker's pipe, with which most items fit into it. Linux's default is 64 KiB, its limit 1 MiB."""
WAY_OUT = "use a lower --num_threads; --num_threads 0 reads images in the main process"
# What the main process handles, also if it is sent to the whole process group.
_IGNORED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")

# The main process's ends of all pipes. No other process may hold them, because workers detect the end of the
# main process by them.
_main_ends: set[Connection] = set()
_started: set[BaseProcess] = set()


def _close_main_ends() -> None:
    for end in _main_ends:
        end.close()
    _main_ends.clear()
    _started.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_main_ends)


@atexit.register
def _kill_workers() -> None:
    """Kill the remaining workers before Python exits.

    Python would send them SIGTERM, which they ignore, and then wait for them forever.
    """
    for process in list(_started):
        process.kill()


# --- In a worker --------------------------------------------------------------------------------------------


def _work(load: Load, tasks: Connection, results: Connection, lifeline: Connection) -> None:
    """Load the items whose numbers arrive in ``tasks``, and send them to ``results``.

    The process ends at once, whatever it is doing, when the main process closes the pipes or is gone.
    """
    for name in _IGNORED:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)

    def end_with_the_main_process() -> None:
        with contextlib.suppress(EOFError, OSError):
            lifeline.recv_bytes()
        os._exit(1)

    with contextlib.suppress(EOFError, OSError):
        try:
            start_thread(end_with_the_main_process, "fastcyclegan-lifeline")
        except UserError as error:
            return results.send_bytes(pickle.dumps(_Failure(str(error))))
        while True:
            header, arrays = _answer(load, tasks.recv())
            results.send_bytes(header)
            for array in arrays:
                results.send_bytes(array.data)


def _answer(load: Load, number: int) -> tuple[bytes, Arrays]:
    """Load item ``number``, and return the header to send for it and the arrays that follow.

    If that fails, the header contains the error.
    """
    try:
        description, arrays = load(number)
        arrays = [np.ascontiguousarray(array) for array in arrays]
        header = pickle.dumps((number, description, [array.shape for array in arrays]))
        return header, [array.reshape(-1) for array in arrays]
    except UserError as error:
        return pickle.dumps(_Failure(str(error))), []
    except MemoryError:
        return pickle.dumps(_Failure(f"a loader process ran out of memory: {WAY_OUT}")), []
    except OSError as error:
        return pickle.dumps(_Failure(f"a loader process failed ({system_reason(error)}): {WAY_OUT}")), []
    except BaseException:  # a bug in the code that loads, which the main process must report
        return pickle.dumps(_Failure(traceback.format_exc(), is_bug=True)), []


@dataclass(frozen=True)
class _Failure:
    """An error in a worker: the message for the user, or the traceback of a bug."""

    text: str
    is_bug: bool = False

    def error(self) -> Exception:
        """Return the error to raise in the main process."""
        if self.is_bug:
            return RuntimeError(f"a loader process failed:\n{self.text}")
        return UserError(self.text)


# --- In the main process ------------------------------------------------------------------------------------


@dataclass
class _Worker:
    """A worker process, the main process's ends of its pipes, and how many items it has yet to send."""

    process: BaseProcess
    tasks: Connection
    results: Connection
    busy_with: int = 0


@contextlib.contextmanager
def loaded_by_workers(
    load: Load, numbers: range, workers: int, *, pin: bool = False, stopping: Stopping = never
) -> Generator[Iterator[Loaded]]:
    """Iterate over the items ``numbers``, in order, which ``workers`` processes load with ``load``.

    ``load`` must be picklable. With ``pin``, the tensors are in pinned memory. The processes are started in
    the calling thread, and are gone when the ``with`` block has been left. Raises UserError if they cannot be
    started, if one dies, and if one raises UserError or OSError or runs out of memory; RuntimeError with the
    traceback for other errors in a process; and StoppedError once ``stopping`` returns True during a wait.
    """
    with (
        _WorkerPool(load, numbers, workers, pin) as pool,
        in_background(pool.results(), pool.count, stopping) as items,
    ):
        try:
            yield items
        finally:
            pool.kill()  # before the thread is joined, because it may be in the middle of a message


class _WorkerPool:
    """The worker processes, and what was handed out to them."""

    def __init__(self, load: Load, numbers: range, workers: int, pin: bool) -> None:
        self.load, self.numbers, self.pin = load, numbers, pin
        self.count = min(workers, len(numbers))
        self.workers: list[_Worker] = []
        self.ends: list[Connection] = []
        self.next = numbers.start
        self.closed = False

    def __enter__(self) -> _WorkerPool:
        try:
            self._start()
        except (OSError, EOFError) as error:
            self._close()
            reason = system_reason(error) if isinstance(error, OSError) else one_line(error)
            raise UserError(f"the loader processes cannot be started ({reason}): {WAY_OUT}") from None
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def _start(self) -> None:
        context = multiprocessing.get_context()
        with contextlib.ExitStack() as theirs:
            lifeline, ours = context.Pipe(duplex=False)
            theirs.enter_context(lifeline)
            self._keep(ours)
            for _ in range(self.count):
                self._start_worker(context, lifeline)

    def _start_worker(self, context: Any, lifeline: Connection) -> None:
        with contextlib.ExitStack() as theirs:
            their_tasks, tasks = context.Pipe(duplex=False)
            theirs.enter_context(their_tasks)
            self._keep(tasks)
            results, their_results = context.Pipe(duplex=False)
            theirs.enter_context(their_results)
            self._keep(results)
            _enlarge(results)
            process = context.Process(
                target=_work,
                args=(self.load, their_tasks, their_results, lifeline),
                name="fastcyclegan-worker",
                daemon=True,
            )
            with _signals_blocked(context):
                process.start()
        _started.add(process)
        self.workers.append(_Worker(process, tasks, results))

    def _keep(self, end: Connection) -> None:
        self.ends.append(end)
        _main_ends.add(end)

    def kill(self) -> None:
        """Kill the workers, which ends ``results`` if another thread iterates over it."""
        self.closed = True
        for worker in self.workers:
            worker.process.kill()

    def _close(self) -> None:
        self.kill()
        deadline = time.monotonic() + PATIENCE
        for worker in self.workers:
            worker.process.join(max(deadline - time.monotonic(), 0))
            if worker.process.exitcode is not None:
                _started.discard(worker.process)
                worker.process.close()
        for end in self.ends:
            _main_ends.discard(end)
            end.close()

    def results(self) -> Generator[Loaded]:
        """Yield the items in order. While one is awaited, the finished items of all workers are received."""
        received: dict[int, Loaded] = {}
        for number in self.numbers:
            self._hand_out(number)
            while number not in received:
                received.update(self._receive())
                if self.closed:
                    return
                self._hand_out(number)
            yield received.pop(number)

    def _hand_out(self, awaited: int) -> None:
        """Give each worker up to AHEAD items, which are at most that many per worker ahead of ``awaited``."""
        end = min(awaited + AHEAD * self.count, self.numbers.stop)
        while self.next < end:
            worker = min(self.workers, key=lambda one: one.busy_with)
            if worker.busy_with == AHEAD:
                return
            with _naming_death(worker):
                worker.tasks.send(self.next)
            worker.busy_with += 1
            self.next += 1

    def _receive(self) -> Iterator[tuple[int, Loaded]]:
        """Wait a moment for the workers, and yield the numbers and the items that arrived."""
        results = {worker.results: worker for worker in self.workers}
        sentinels = {worker.process.sentinel: worker for worker in self.workers}
        ready = wait([*results, *sentinels], POLL)
        for end, worker in results.items():
            if end in ready:
                yield self._item(worker)
        for sentinel, worker in sentinels.items():
            # What a dead worker sent before it died is received first.
            if sentinel in ready and not worker.results.poll():
                raise _died(worker)

    def _item(self, worker: _Worker) -> tuple[int, Loaded]:
        with _naming_death(worker):
            answer = pickle.loads(worker.results.recv_bytes())
            if isinstance(answer, _Failure):
                raise answer.error()
            number, description, shapes = answer
            tensors = []
            for shape in shapes:
                tensor = torch.empty(shape, dtype=torch.uint8, pin_memory=self.pin)
                worker.results.recv_bytes_into(tensor.view(-1).numpy())
                tensors.append(tensor)
        worker.busy_with -= 1
        return number, (description, tensors)


def _enlarge(pipe: Connection) -> None:
    """Make the buffer of ``pipe`` larger, so that workers rarely wait for the main process."""
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError):  # the user's limit on the memory of pipes is reached
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)


@contextlib.contextmanager
def _signals_blocked(context: Any) -> Generator[None]:
    """Block the signals that workers ignore, so that a process inherits this and survives them as it starts.

    A fork server, which would pass it on to the processes of others, is left alone.
    """
    if context.get_start_method() == "forkserver" or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    numbers = [getattr(signal, name) for name in _IGNORED if hasattr(signal, name)]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _naming_death(worker: _Worker) -> Generator[None]:
    """Turn the error of a pipe whose ``worker`` died into a UserError."""
    try:
        yield
    except (EOFError, OSError):
        raise _died(worker) from None


def _died(worker: _Worker) -> UserError:
    """Return the error to raise for ``worker``, which died, with the reason as far as it is known."""
    worker.process.join(1)
    code = worker.process.exitcode
    if code is None:
        return UserError(f"a loader process does not answer any more: {WAY_OUT}")
    if code >= 0:
        return UserError(f"a loader process died (exit code {code}): {WAY_OUT}")
    name = _signal_name(-code)
    if name in ("SIGKILL", "SIGBUS"):
        return UserError(
            f"a loader process died (killed by {name}), perhaps because memory ran out: {WAY_OUT}"
        )
    return UserError(f"a loader process died (killed by {name}): {WAY_OUT}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
