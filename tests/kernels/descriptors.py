"""Helpers shared by the tests of tensor descriptors."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from fastcyclegan.kernels import _launch

OLDER = torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0)
on_descriptors = pytest.mark.skipif(OLDER, reason="this chip has no tensor descriptors")
# The message as written by Triton's backends/nvidia/driver.c.
DRIVER = "Triton Error [CUDA]: Failed to create tensor map descriptor: invalid argument\nelemType=10 rank=2\n"


@dataclass
class LaunchRecorder:
    """A launch observer that records every launch."""

    launches: list[_launch.Launch] = field(default_factory=list)

    def launched(self, launch: _launch.Launch) -> None:
        self.launches.append(launch)

    def forms(self) -> set[bool]:
        """Return the values of the constant DESC in all launches. It is True in a launch with descriptors."""
        return {launch.constants["DESC"] for launch in self.launches if "DESC" in launch.constants}
