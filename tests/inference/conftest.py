"""Fixture for the inference tests: the weights of a small generator."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastcyclegan.checkpoints.run_files import save_weights
from fastcyclegan.nn.networks import Generator


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    file = tmp_path / "latest_net_G_A.pth"
    save_weights(file, Generator(ngf=2, n_blocks=1).state_dict())
    return file
