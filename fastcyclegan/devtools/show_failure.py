"""Repeat a kernel launch that failed, and print what the compiler and the driver report.

    python -m fastcyclegan.devtools.show_failure FILE

FILE is the record file that the warning or error message of the failure mentions. On a machine with the same
GPU, the launch is repeated with zeros of the recorded shapes, layouts and alignments. On other machines, the
kernel is compiled for the recorded compute capability. The compiler's cache is not used.

Exit code 0: the launch works now. 1: it fails again. 2: FILE is missing or is not a record of a launch, or
the compiler's files cannot be written.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcyclegan.errors import escape_on_streams, print_line, system_reason
from fastcyclegan.kernels._records import FORMAT, argument_text

_KEYS = {
    "kernel",
    "grid",
    "arguments",
    "constants",
    "configuration",
    "gpu",
    "capability",
    "triton",
    "torch",
    "error",
}
_OPTIONS = ("num_warps", "num_stages")


def read(file: Path) -> dict[str, Any]:
    """Return the record in ``file``.

    Raises ValueError, with a message of one line, if the file is missing or is not a record.
    """
    try:
        record = json.loads(file.read_text())
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or record.get("format") != FORMAT or not record.keys() >= _KEYS:
        raise ValueError(f"{file} is not a record of a launch")
    return record


def _is_tensor(argument: Any) -> bool:
    if not isinstance(getattr(torch, str(argument.get("dtype")), None), torch.dtype):
        return False
    if not _are((argument.get("aligned"), argument.get("room")), int):
        return False
    sizes = (argument.get("shape"), argument.get("strides"))
    return _are(sizes, list) and _are(itertools.chain(*sizes), int)


def _are(values: Iterable[Any], kind: type) -> bool:
    return all(isinstance(value, kind) for value in values)


def _is_argument(argument: Any) -> bool:
    if not isinstance(argument, dict):
        return argument is None or isinstance(argument, (bool, int, float, str))
    if "box" not in argument:
        return _is_tensor(argument)
    base = argument.get("base")
    if not isinstance(base, dict) or not _is_tensor(base):
        return False
    return _are((argument["box"], argument.get("shape"), argument.get("strides")), list)


def _is_launch(record: dict[str, Any]) -> bool:
    """Return whether ``record`` describes a launch in the format of ``write_record``."""
    arguments, configuration = record["arguments"], record["configuration"]
    if not isinstance(record["kernel"], str) or not isinstance(arguments, list):
        return False
    if not _are((record["grid"], record["capability"]), int):
        return False
    if not _are((record["constants"], configuration), dict):
        return False
    if not _are((configuration.get(name) for name in _OPTIONS), int):
        return False
    return all(map(_is_argument, arguments))


def _registry() -> dict[str, Any]:
    """Return all kernels by name."""
    from fastcyclegan.kernels import every_kernel  # noqa: F401
    from fastcyclegan.kernels._launch import REGISTRY

    return REGISTRY


# --- On the GPU of the failure ------------------------------------------------------------------------------


def _tensor(argument: dict[str, Any], device: torch.device) -> Tensor:
    """Return a tensor of zeros with the dtype, shape, strides and alignment that ``argument`` describes.

    As many elements follow it in memory as in the recorded launch.
    """
    dtype = getattr(torch, argument["dtype"])
    first = 0
    if argument["aligned"] < 16:
        # New memory is aligned to at least 16 bytes.
        first = argument["aligned"] // dtype.itemsize
    memory = torch.zeros(first + max(1, argument["room"]), dtype=dtype, device=device)
    return memory.as_strided(argument["shape"], argument["strides"], first)


def _value(argument: Any, tensor: Callable[[dict[str, Any]], Any]) -> Any:
    from triton.tools.tensor_descriptor import TensorDescriptor

    if not isinstance(argument, dict):
        return argument
    if "box" not in argument:
        return tensor(argument)
    return TensorDescriptor(tensor(argument["base"]), argument["shape"], argument["strides"], argument["box"])


def _launch_again(record: dict[str, Any], device: torch.device) -> str:
    def zeros(described: dict[str, Any]) -> Tensor:
        return _tensor(described, device)

    args = [_value(argument, zeros) for argument in record["arguments"]]
    kernel = _registry()[record["kernel"]][(record["grid"],)]
    with torch.cuda.device(device):
        kernel(*args, **record["constants"], **record["configuration"], enable_fp_fusion=True)
        torch.cuda.synchronize()
    return f"It now compiles and runs on {record['gpu']}, with zeros as data."


# --- On other machines --------------------------------------------------------------------------------------


class _Address:
    """A stand-in for a tensor, with only the dtype and address that Triton needs to compile.

    It takes no memory, however large the tensor was.
    """

    def __init__(self, argument: dict[str, Any]) -> None:
        self.dtype, self._address = getattr(torch, argument["dtype"]), argument["aligned"]

    def data_ptr(self) -> int:
        address: int = self._address
        return address


def _compile_again(record: dict[str, Any]) -> str:
    """Compile the launch's specialisation for the compute capability on which it failed."""
    from fastcyclegan.devtools.jobs import compile_job, job_of
    from fastcyclegan.kernels._launch import Config, Launch

    capability = record["capability"]
    args = tuple(_value(argument, _Address) for argument in record["arguments"])
    tile = dict(record["configuration"])
    options = [tile.pop(name) for name in _OPTIONS]
    config = Config(tuple(tile.items()), *options)
    launch = Launch(record["kernel"], record["grid"], args, record["constants"], config)
    kernel = compile_job(job_of(launch, capability))
    memory = f"{kernel.metadata.shared} bytes of shared memory"
    return (
        f"It now compiles for sm_{capability} ({memory}). It was not launched, because this machine has no"
        f" {record['gpu']}."
    )


# --- The command --------------------------------------------------------------------------------------------


def _device(record: dict[str, Any]) -> torch.device | None:
    """Return a GPU of this machine that has the recorded name, or None if there is no such GPU."""
    if not torch.cuda.is_available():
        return None
    for index in range(torch.cuda.device_count()):
        if torch.cuda.get_device_name(index) == record["gpu"]:
            return torch.device("cuda", index)
    return None


def _chain(error: BaseException) -> str:
    """Return the full message of ``error`` and of the errors that caused it."""
    text = f"{type(error).__name__}: {error}"
    cause = error.__cause__
    if cause is None:
        cause = error.__context__
    if cause is None:
        return text
    return f"{text}\ncaused by {_chain(cause)}"


def show(record: dict[str, Any]) -> int:
    """Print ``record``, repeat its launch, print the result, and return the exit code."""
    import triton

    print(f"{record['kernel']}, {record['grid']} programs, {record['configuration']}")
    print("\n".join(f"  {argument_text(argument)}" for argument in record["arguments"]))
    print(f"  {record['constants']}")
    versions = f"Triton {record['triton']} and torch {record['torch']}"
    here = f"now Triton {triton.__version__} and torch {torch.__version__}"
    print(f"It failed on {record['gpu']} with {versions} ({here}): {record['error']}")
    triton.knobs.compilation.always_compile = True
    device = _device(record)
    try:
        if device is None:
            print(_compile_again(record))
        else:
            print(_launch_again(record, device))
    except OSError as error:
        source = error.filename
        if not source:
            source = "the compiler"
        print_line(f"show_failure: {source}: {system_reason(error)}", sys.stderr)
        return 2
    except Exception as error:
        print(f"It fails again:\n{_chain(error)}")
        return 1
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    codes = (
        "Exit code 0: the launch works now. 1: it fails again. 2: FILE is missing or is not a record of a"
        " launch, or the compiler's files cannot be written."
    )
    parser = argparse.ArgumentParser(
        prog="python -m fastcyclegan.devtools.show_failure",
        description=str(__doc__).split("\n\n")[0],
        epilog=codes,
    )
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="the record file named in the failure message"
    )
    escape_on_streams()
    file: Path = parser.parse_args(arguments).file
    try:
        record = read(file)
        # Interpreted kernels are not compiled.
        if os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "on", "true", "yes"):
            raise ValueError("TRITON_INTERPRET is set, and interpreted kernels are not compiled; unset it")
        if isinstance(record["kernel"], str) and record["kernel"] not in _registry():
            raise ValueError(
                f"{file} refers to kernel {record['kernel']}, which does not exist in this version"
            )
        if not _is_launch(record):
            raise ValueError(f"{file} is not a record of a launch")
    except ValueError as error:
        print_line(f"show_failure: {error}", sys.stderr)
        return 2
    return show(record)


if __name__ == "__main__":
    sys.exit(main())
