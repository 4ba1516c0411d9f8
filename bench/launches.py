"""Kernel launches as text: what was launched last when something went wrong, and faults planted in kernels to
see that they are found.

Imports neither torch nor the kernels before they are needed: pytest loads this before the tests say how
kernels are to run.
"""

from __future__ import annotations

import json
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TextIO, get_args

KEPT = 12
# Kernels that a fault can be planted in, each by the position of the output that it changes, and by how much.
PLANTED = {
    "_instance_norm_apply_kernel": 5,
    "_instance_norm_small_fwd_kernel": 4,
    "_reflect_conv_kernel": 4,
    "_zero_conv_gather_kernel": 3,
    "_zero_conv_scatter_kernel": 3,
}
FACTOR = 1.25
Fault = Literal["kernel", "crash"]
FAULTS = get_args(Fault)


def breaks_the_device(error: BaseException | str) -> bool:
    """Return whether ``error`` is a fault of the device after which its process is of no more use."""
    from fastcyclegan.kernels._failures import breaks_the_device

    return breaks_the_device(error)


class LaunchLog:
    """Remembers the last launches. ``file``: also writes each there before it is made, so that the last line
    is the one that crashed.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.last: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._file: TextIO | None = None
        if file is not None:
            self._file = file.open("a")

    def launched(self, launch: Any) -> None:
        from fastcyclegan.kernels._records import line_of, readable

        line = line_of(launch)
        line["arguments"] = [readable(argument) for argument in line["arguments"]]
        self.last.append(line)
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def start(self) -> None:
        """Install it for the rest of the process."""
        from fastcyclegan.kernels import _launch

        _launch.observe_always(self)


def forbid_fallback() -> None:
    """Make it an error, for the rest of the process, that PyTorch computes what a kernel failed at: it would
    count as ours.
    """
    from fastcyclegan.kernels._fallback import CONSEQUENCE

    warnings.filterwarnings("error", f".*{CONSEQUENCE}", RuntimeWarning)


class _Faulty:
    """A kernel one of whose outputs is a quarter too large, or one that crashes as CUDA says it."""

    def __init__(self, kernel: Any, output: int, fault: Fault) -> None:
        self.kernel, self.output, self.fault = kernel, output, fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kernel, name)

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        def launch(*args: Any, **constants: Any) -> Any:
            if self.fault == "crash":
                raise RuntimeError("CUDA error: an illegal memory access was encountered (planted)")
            result = self.kernel[grid](*args, **constants)
            args[self.output].mul_(FACTOR)
            return result

        return launch


def plant_fault(fault: Fault) -> None:
    """Let the kernels in PLANTED compute something else, or crash, for the rest of the process: what runs
    them must find it.
    """
    # The launchers' modules enter the kernels.
    from fastcyclegan.kernels import _launch, _products, instance_norm_launch, zero_conv_launch  # noqa: F401

    for name, output in PLANTED.items():
        _launch.REGISTRY[name] = _Faulty(_launch.REGISTRY[name], output, fault)
