"""Fixtures for the inference tests: the weights of small generators."""

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


@pytest.fixture
def overflowing(tmp_path: Path) -> Path:
    """Finite weights of a generator whose output is not finite, except for images of a single colour.

    Instance norm makes such an image zero, so the large weights multiply zeros.
    """
    torch.manual_seed(0)
    net = Generator(ngf=2, n_blocks=1)
    state = net.state_dict()
    state["model.7.weight"].fill_(3e38)
    file = tmp_path / "overflowing_net_G_A.pth"
    save_weights(file, state)
    return file
