"""Record the last kernel launches, and inject faults into kernels.

Launches are recorded so that they can be reported with a failure. Faults are injected to show that they are
detected.

Neither torch nor the kernels are imported before they are needed, because pytest loads this module before the
tests configure how kernels run.
"""

from __future__ import annotations

import json
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TextIO, get_args

KEPT = 12
# The kernels into which faults are injected, each with the position of the output argument that is multiplied
# by FACTOR.
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


def is_device_fault(error: BaseException | str) -> bool:
    """Return whether ``error`` is a device fault after which the process can no longer use the device."""
    from fastcyclegan.kernels._failures import is_device_fault

    return is_device_fault(error)


class LaunchLog:
    """A record of the last kernel launches.

    With ``file``, each launch is also written there before it starts, so that after a crash the last line is
    the launch that crashed.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.last: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._file: TextIO | None = None
        if file is not None:
            self._file = file.open("a")

    def launched(self, launch: Any) -> None:
        from fastcyclegan.kernels._records import argument_text, line_of

        line = line_of(launch)
        line["arguments"] = [argument_text(argument) for argument in line["arguments"]]
        self.last.append(line)
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def start(self) -> None:
        """Record all launches from now on, for the rest of the process."""
        from fastcyclegan.kernels import _launch

        _launch.observe_always(self)


def forbid_fallback() -> None:
    """Turn the warning about a fallback to PyTorch into an error, for the rest of the process.

    Otherwise PyTorch's results would count as those of the kernels.
    """
    from fastcyclegan.kernels._fallback import CONSEQUENCE

    warnings.filterwarnings("error", f".*{CONSEQUENCE}", RuntimeWarning)


class _Faulty:
    """A kernel with an injected fault: an output that is a quarter too large, or a CUDA error."""

    def __init__(self, kernel: Any, output: int, fault: Fault) -> None:
        self.kernel, self.output, self.fault = kernel, output, fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kernel, name)

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        def launch(*args: Any, **constants: Any) -> Any:
            if self.fault == "crash":
                raise RuntimeError("CUDA error: an illegal memory access was encountered (injected)")
            result = self.kernel[grid](*args, **constants)
            args[self.output].mul_(FACTOR)
            return result

        return launch


def plant_fault(fault: Fault) -> None:
    """Make the kernels in PLANTED compute wrong results, or crash, for the rest of the process.

    ``fault`` is "kernel" for wrong results or "crash". The caller is expected to detect it.
    """
    # Importing these modules registers the kernels.
    from fastcyclegan.kernels import _launch, _products, instance_norm_launch, zero_conv_launch  # noqa: F401

    for name, output in PLANTED.items():
        _launch.REGISTRY[name] = _Faulty(_launch.REGISTRY[name], output, fault)
