"""Training processes that start in milliseconds, for tests that kill hundreds of them.

``python -m tests.training.forked_runs SOCKET`` is a server that imports what a run needs once. It forks for
each run that ``ForkedRuns`` requests. The forked process has its own session, default signal handlers and
its output in a file, and it calls the function of the command ``train.py``.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import Mock

import numpy as np

ROOT = Path(__file__).parents[2]
PRELOADED = """fastcyclegan.cli torch.utils.data torch.utils.tensorboard matplotlib.figure
    matplotlib.backends.backend_agg nvidia.dali.fn torch._dynamo
    torchmetrics.functional.regression tests.training.crashes""".split()
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The longest that a run may take to end, on a slow machine.
DEADLINE = 120.0


class Process:
    """A forked run. ``code`` is its exit code as a shell shows it, or None while it runs."""

    def __init__(self, server: socket.socket, pid: int, output: Path) -> None:
        self.server, self.pid, self._output = server, pid, output
        self.code: int | None = None

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def ended(self, within: float) -> bool:
        """Wait until the run has ended, at most ``within`` seconds, and return whether it has."""
        if self.code is None and select.select([self.server], [], [], within)[0]:
            self.code = json.loads(self.server.recv(64))
        return self.code is not None

    def send(self, number: int, group: bool = False) -> None:
        """Send a signal to the process or to its group. The server keeps its number from being reused."""
        if group:
            with suppress(ProcessLookupError):  # in its first moment, the process has no group of its own
                return os.killpg(self.pid, number)
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Return the exit code once the run has ended."""
        assert self.ended(DEADLINE), f"the run did not end within {DEADLINE:.0f} seconds:\n{self.output}"
        assert self.code is not None
        return self.code


class ForkedRuns:
    """The running server. It starts one run at a time. Closing it kills what is left."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.sessions, self.started_runs = folder, set[int](), 0
        folder.mkdir(parents=True)
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.training.forked_runs", str(theirs.fileno())],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        assert self._answer() == "ready"

    def _answer(self) -> Any:
        """Return the next message of the server."""
        answered, _, _ = select.select([self.socket], [], [], DEADLINE)
        assert answered, f"the server did not answer within {DEADLINE:.0f} seconds"
        return json.loads(self.socket.recv(64))

    @contextmanager
    def started(self, arguments: Sequence[str], crash: dict[str, Any] | None = None) -> Iterator[Process]:
        """Start a run with the command line ``arguments``; ``crash`` is described in crashes.py.

        On leaving, the run and its processes are killed unless they have ended.
        """
        output = self.folder / f"output_{self.started_runs}"
        output.touch()
        request = {"arguments": [*arguments], "output": str(output), "crash": crash}
        self.socket.send(json.dumps(request).encode())
        process = Process(self.socket, self._answer(), output)
        self.sessions.add(process.pid)
        self.started_runs += 1
        try:
            yield process
        finally:
            if process.code is None:
                process.send(signal.SIGKILL, group=True)
                process.wait()

    def run(self, arguments: Sequence[str], crash: dict[str, Any] | None = None) -> Process:
        """Run to the end and return the process."""
        with self.started(arguments, crash) as process:
            process.wait()
        return process

    def assert_no_process_left(self) -> None:
        """Assert that all processes of the runs so far end. Loader processes notice a kill after seconds."""
        deadline = time.monotonic() + DEADLINE
        while (alive := self._alive()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not alive, f"processes are left: {alive}"
        self.sessions.clear()

    def _alive(self) -> dict[int, str]:
        """Return the names of the living processes in the sessions of the runs, by their numbers."""
        alive = {}
        for file in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                name, _, rest = file.read_text().rpartition(")")
                state, _, _, session = rest.split()[:4]
                if int(session) in self.sessions and state not in "ZX":
                    alive[int(file.parent.name)] = name
        return alive

    def close(self) -> None:
        for pid in self._alive():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.socket.close()
        try:
            self.server.wait(DEADLINE)
        finally:
            self.server.kill()


@functools.cache
def shared_server(folder: Path) -> ForkedRuns:
    """Return the server for all tests whose temporary files are in ``folder``. It ends with this process."""
    server = ForkedRuns(folder / "forked_runs", {"XDG_CACHE_HOME": str(folder / "cache")})
    atexit.register(server.close)
    return server


# --- The server ---------------------------------------------------------------------------------------------


def serve(server: socket.socket) -> None:
    """Import PRELOADED, send "ready", and fork for each request until the client is gone."""
    from fastcyclegan.cli import parse_train

    for name in PRELOADED:
        with suppress(ImportError):  # an extra that is not installed
            importlib.import_module(name)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    draw_no_curves()
    parse_train(["--dataroot", "images"])  # fills the caches of the parser
    gc.freeze()  # so that collections in the children leave the shared memory alone
    assert threading.active_count() == 1
    server.send(json.dumps("ready").encode())
    child = None
    while request := server.recv(100_000):
        if child is not None:
            os.waitpid(child, 0)
        child = os.fork()
        if child == 0:
            try:
                server.close()
                execute(**json.loads(request))
            finally:
                os._exit(99)  # reached only by a mistake in this file
        server.send(json.dumps(child).encode())
        ended = os.pidfd_open(child)
        sources: list[Any] = [ended, server]
        if ended not in select.select(sources, [], [])[0]:
            os.killpg(child, signal.SIGKILL)
        status = os.waitid(os.P_PIDFD, ended, os.WEXITED | os.WNOWAIT)
        os.close(ended)
        assert status is not None
        killed = status.si_code != os.CLD_EXITED
        with suppress(OSError):
            server.send(json.dumps(128 + status.si_status if killed else status.si_status).encode())


def draw_no_curves() -> None:
    """Let matplotlib save an empty image, because drawing takes most of the time of a small run."""
    with suppress(ImportError):
        from matplotlib.figure import Figure
        from PIL import Image

        def subplots(figure: Figure, rows: int = 0, columns: int = 0, **options: Any) -> Any:
            return np.array([[Mock() for _ in range(columns)] for _ in range(rows)]) if rows else Mock()

        def savefig(figure: Figure, file: Path, **options: Any) -> None:
            Image.new("RGB", (8, 8)).save(file, format="PNG")

        Figure.subplots = subplots  # type: ignore[method-assign,assignment]
        Figure.savefig = savefig  # type: ignore[method-assign,assignment]


def execute(arguments: list[str], output: str, crash: dict[str, Any] | None) -> NoReturn:
    """Run the command in this process and end as Python does."""
    from fastcyclegan import cli
    from tests.training.crashes import install

    os.setsid()
    to = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(to, 1)
    os.dup2(to, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if crash is not None:
        install(**crash)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        code = cli.train(arguments)
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException as error:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        code = 1
        frames = {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
        if isinstance(error, KeyboardInterrupt) and not any("/fastcyclegan/" in name for name in frames):
            code = 128 + signal.SIGINT  # it came before or after the call
        else:
            traceback.print_exc()
    # What Python does at its end.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
