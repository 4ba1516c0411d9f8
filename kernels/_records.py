"""Records of failed launches, from which another process can repeat them.

Does not import Triton.

A record is JSON: ``format``, the launch (``line_of``), the machine (GPU, compute capability and versions) and
the error. It contains shapes, layouts and scalars, but no tensor values: ``devtools/show_failure.py`` repeats
the launch on zeros.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path
from typing import Any

import torch

from ._cache import cache_folder, temporary_folder

FORMAT = 1


def describe_argument(value: Any) -> Any:
    """Return an argument of a kernel as a JSON value.

    A tensor is described by its dtype, shape, strides, alignment and room; a scalar is unchanged.
    ``aligned``: the largest power of two that divides the tensor's address, up to 16 bytes, the most that
    Triton relies on. ``room``: the number of elements from the tensor's first one to the end of its storage.
    It is needed because kernels that receive one of several adjacent tensors write to the others too.
    """
    if hasattr(value, "data_ptr"):
        address = value.data_ptr()
        return {
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": list(value.shape),
            "strides": list(value.stride()),
            "aligned": min(address & -address, 16) if address else 16,
            "room": value.untyped_storage().nbytes() // value.element_size() - value.storage_offset(),
        }
    if hasattr(value, "block_shape"):
        sizes = {"shape": list(value.shape), "strides": list(value.strides), "box": list(value.block_shape)}
        return {**sizes, "base": describe_argument(value.base)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def argument_text(argument: Any) -> str:
    """Format an argument, as described by ``describe_argument``, as readable text."""
    if not isinstance(argument, dict):
        return str(argument)
    if "box" in argument:
        sizes = f"{argument['shape']} strides {argument['strides']} box {argument['box']}"
        return f"descriptor {sizes} of {argument_text(argument['base'])}"
    return (
        f"{argument['dtype']}{argument['shape']} strides {argument['strides']} aligned {argument['aligned']}"
    )


def line_of(launch: Any) -> dict[str, Any]:
    """Return the kernel, grid, arguments, constants and configuration of a launch, as JSON values.

    The result keeps no tensor of the launch alive.
    """
    config = launch.config
    return {
        "kernel": launch.kernel,
        "grid": launch.grid,
        "arguments": [describe_argument(value) for value in launch.args],
        "constants": {name: describe_argument(value) for name, value in launch.constants.items()},
        "configuration": {**config.constants, "num_warps": config.num_warps, "num_stages": config.num_stages},
    }


def _write_file(name: str, text: str) -> Path | None:
    """Write ``text`` to file ``name`` among the cached failures, or in a temporary folder if that fails.

    Returns the path of the file, or None if neither folder is writable.
    """
    for folder in (cache_folder("failures"), temporary_folder("failures")):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / name
            file.write_text(text)
        except OSError:
            continue
        return file
    return None


def write_record(launch: Any, gpu: str, capability: int, error: BaseException) -> str:
    """Record a launch that failed with ``error``, and return the command that repeats it.

    Returns "" if the record cannot be written. The same launch is always written to the same file.
    """
    # Triton is installed, because the caller has launched a kernel.
    import triton

    line = line_of(launch)
    text = json.dumps({**line, "gpu": gpu, "capability": capability}, sort_keys=True)
    name = f"{launch.kernel.strip('_')}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    versions = {"triton": triton.__version__, "torch": torch.__version__}
    machine = {"gpu": gpu, "capability": capability, **versions}
    record = {"format": FORMAT, **line, **machine, "error": f"{type(error).__name__}: {error}"}
    file = _write_file(name, json.dumps(record, indent=1) + "\n")
    if file is None:
        return ""
    return f"python -m fastcyclegan.devtools.show_failure {shlex.quote(str(file))}"
