"""What the files of tests about tensor descriptors share."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from fastcyclegan.kernels import _launch

OLDER = torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0)
on_descriptors = pytest.mark.skipif(OLDER, reason="this chip has no tensor descriptors")
# As backends/nvidia/driver.c of Triton writes it.
DRIVER = "Triton Error [CUDA]: Failed to create tensor map descriptor: invalid argument\nelemType=10 rank=2\n"


@dataclass
class Ear:
    """Hears of launches that are made."""

    heard: list[_launch.Launch] = field(default_factory=list)

    def launched(self, launch: _launch.Launch) -> None:
        self.heard.append(launch)

    def forms(self) -> set[bool]:
        """Whether products were launched with descriptors."""
        return {launch.constants["DESC"] for launch in self.heard if "DESC" in launch.constants}
