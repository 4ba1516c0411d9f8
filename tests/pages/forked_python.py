"""A Python for the commands of the pages that starts in milliseconds instead of seconds.

A server imports torch and other packages once, and is forked for each command. It does not import the
project, which every command imports from its own checkout. ``ForkedPython`` fills a folder ``bin`` with
clients of the server that are called ``python``, ``pytest``, ``tensorboard`` and like the commands of the
project. With this folder first on PATH, any shell command can use them. The forked process has the
client's arguments, folder, environment and standard streams, and the client ends with its exit code. If
the client is killed, so is the forked process.

``python tests/pages/forked_python.py SOCKET`` is the server.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import tomllib
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[2]
PRELOADED = """numpy PIL.Image PIL.ImageDraw tyro rich.console rich.progress rich.table matplotlib.pyplot
    pytest torch torch._dynamo torch._inductor.compile_fx torch.utils.data torch.utils.tensorboard
    torch.profiler triton triton.language nvidia.dali.fn""".split()
CLIENT = """#!{python} -IS
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({path!r})
request = dict(arguments={prefix!r} + sys.argv[1:], folder=os.getcwd(), environment=dict(os.environ))
socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
code = server.recv(16)
sys.exit(int(code or b"1"))
"""
# The longest request, which the kernel accepts in one packet.
LONGEST = 150_000
# Variables of a command's environment: the folders in which it may write, and the file that lists what it
# wrote elsewhere.
MAY_WRITE, WRITTEN_ELSEWHERE = "FORKED_PYTHON_MAY_WRITE", "FORKED_PYTHON_WRITTEN_ELSEWHERE"


class ForkedPython:
    """The running server, and the folder ``bin`` of its clients."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.bin, path = folder / "bin", folder / "socket"
        self.bin.mkdir(parents=True)
        scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
        calls = {
            name: ["-c", f"import sys\nfrom {module} import {function}\nsys.exit({function}())"]
            for name, (module, function) in ((name, call.split(":")) for name, call in scripts.items())
        }
        modules = {"pytest": ["-m", "pytest"], "tensorboard": ["-m", "tensorboard.main"]}
        for name, prefix in {"python": [], "python3": [], **modules, **calls}.items():
            client = self.bin / name
            client.write_text(CLIENT.format(python=sys.executable, path=str(path), prefix=prefix))
            client.chmod(0o755)
        command = [sys.executable, __file__, str(path)]
        self.server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self.server.stdout is not None
        if self.server.stdout.readline() != b"ready\n":
            raise RuntimeError(f"the server of {self.bin} did not start")

    def close(self) -> None:
        self.server.terminate()
        self.server.wait()


def serve(path: str) -> NoReturn:
    """Import PRELOADED, print "ready", and fork for each client until this process is killed."""
    for name in PRELOADED:
        # Without an extra, the commands that need it report that.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(16)
    gc.freeze()  # so that collections in the children leave the shared memory alone
    print("ready", flush=True)
    while True:
        client, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            watch(client)
        client.close()
        while _reaped():
            pass


def _reaped() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def watch(client: socket.socket) -> NoReturn:
    """Run the request of ``client`` in a child. Send its exit code, or kill it once the client is gone."""
    message, streams, _, _ = socket.recv_fds(client, LONGEST, 3)
    child = os.fork()
    if child == 0:
        os.setsid()
        client.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os._exit(execute(**json.loads(message)))
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(child)
    readable, _, _ = select.select([ended, client.fileno()], [], [])
    if ended in readable:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        client.send(str(code if code >= 0 else 128 - code).encode())
    else:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    os._exit(0)


def execute(arguments: list[str], folder: str, environment: dict[str, str]) -> int:
    """Run Python with ``arguments`` as a new process would, and return its exit code."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # which the server has looked up for itself
    if MAY_WRITE in environment:
        _list_files_written_elsewhere(
            environment[MAY_WRITE].split(os.pathsep), environment[WRITTEN_ELSEWHERE]
        )
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    code = _exit_code_of(lambda: _run(arguments))
    # What Python does at its end.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _run(arguments: list[str]) -> None:
    kind, *rest = arguments
    if kind == "-m":
        sys.argv = rest
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path.insert(0, "")
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(kind).resolve().parent))
        runpy.run_path(kind, run_name="__main__")


def _exit_code_of(run: Callable[[], None]) -> int:
    try:
        run()
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return (ended.code or 0) & 255
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _list_files_written_elsewhere(folders: list[str], report: str) -> None:
    """Append to ``report`` each file or folder that Python makes or changes outside ``folders``."""
    inside = tuple(os.path.realpath(folder) + os.sep for folder in folders)
    to = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(event: str, values: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = values
            changes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            path = values[1] if event == "os.rename" else values[0] if values else None
            changes = event in ("os.mkdir", "os.rename", "os.symlink", "os.link")
        if changes and isinstance(path, (str, bytes, os.PathLike)):
            real = os.path.realpath(os.fsdecode(path))
            if not f"{real}{os.sep}".startswith(inside):
                os.write(to, f"{event} {real}\n".encode())

    sys.addaudithook(hook)


if __name__ == "__main__":
    # Each command puts its own folder there.
    del sys.path[0]
    serve(sys.argv[1])
