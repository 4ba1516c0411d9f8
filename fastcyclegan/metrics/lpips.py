"""LPIPS, the learned perceptual distance between two images (Zhang et al. 2018), in its version 0.1.

    d(x, y) = sum over layers l of  mean over h, w of  sum over c of  w_lc (x_lchw - y_lchw)^2

where x_l and y_l are the activations of a layer of a network trained on ImageNet, divided at each place by
their norm over the channels, and the weights w of the heads were fitted to people's judgements (section 3.1).
Computes the same as the authors' package ``lpips``, without a need for it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from fastcyclegan.errors import UserError
from fastcyclegan.nn.feature_networks import FeatureNetwork, alexnet, load_weights, sha256_of, vgg16
from fastcyclegan.nn.finite import require_representable
from fastcyclegan.tensor_files import load_tensors

Network = Literal["alex", "vgg16"]

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""ImageNet's mean and deviation for images in [-1, 1]."""
EPSILON = 1e-10
"""Added to a norm that is divided by."""


@dataclass(frozen=True)
class _Backbone:
    """A network and its layers, by name with the numbers of their channels.

    ``heads`` is the name of the file of its heads, and ``sha256`` the digest of the published ones, v0.1.
    """

    build: Callable[[], FeatureNetwork]
    layers: Mapping[str, int]
    heads: str
    sha256: str


BACKBONES: dict[str, _Backbone] = {
    "alex": _Backbone(
        alexnet,
        {"relu1": 64, "relu2": 192, "relu3": 384, "relu4": 256, "relu5": 256},
        "alex.pth",
        "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    ),
    "vgg16": _Backbone(
        vgg16,
        {"relu1_2": 64, "relu2_2": 128, "relu3_3": 256, "relu4_3": 512, "relu5_3": 512},
        "vgg.pth",
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    ),
}


class Lpips(nn.Module):
    """LPIPS v0.1 on the activations of AlexNet ("alex", the authors' default) or VGG-16 ("vgg16").

    ``backbone_file`` has torchvision's weights of the network, and ``heads_file`` those of the heads in the
    format of the authors' package. By default, the heads are the published ones in the package torchmetrics,
    which is not imported.

    Raises UserError if a file is missing, damaged or another one's, or if torchmetrics is not installed.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, network: Network, backbone_file: Path, heads_file: Path | None = None) -> None:
        super().__init__()
        if network not in BACKBONES:
            raise ValueError(f"Lpips: network must be one of {', '.join(get_args(Network))}, got {network!r}")
        kind = BACKBONES[network]
        self.network, self.layers = network, tuple(kind.layers)
        self.backbone = kind.build()
        backbone_sha256 = load_weights(self.backbone, backbone_file)
        if heads_file is None:
            heads_file = published_heads(network)
        heads, heads_sha256 = _read_heads(heads_file, list(kind.layers.values()))
        self.heads = nn.ModuleList(heads)
        for name, values in (("shift", SHIFT), ("scale", SCALE)):
            value = torch.tensor(values, dtype=torch.float32, device="cpu").view(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)
        self._digests = {"backbone_sha256": backbone_sha256, "heads_sha256": heads_sha256}

    @property
    def protocol(self) -> dict[str, Any]:
        """What a distance depends on besides the images. Equal protocols give comparable distances."""
        return {"version": "0.1", "network": self.network, "layers": list(self.layers), **self._digests}

    @property
    def least_side(self) -> int:
        """The side of the smallest images, in pixels."""
        return self.backbone.least_side_for(self.layers)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Return the distances [N] between images [N, 3, H, W] in [-1, 1] and the ``others`` in their places.

        0 for equal images. Pixels in 0..255 must be converted to [-1, 1] before. Gradients reach both images.
        Raises ValueError or TypeError for other shapes and dtypes, and UserError for images that are too
        small.
        """
        self._check(images, others)
        of_images, of_others = self._activations(images), self._activations(others)
        distances = [
            head((_unit(of_images[layer]) - _unit(of_others[layer])) ** 2).mean((1, 2, 3))
            for layer, head in zip(self.layers, self.heads, strict=True)
        ]
        return torch.stack(distances).sum(0)

    def _activations(self, images: Tensor) -> dict[str, Tensor]:
        normalized = (images.to(self.shift.dtype) - self.shift) / self.scale
        found: dict[str, Tensor] = self.backbone(normalized, self.layers)
        return found

    def _check(self, images: Tensor, others: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 3 or images.shape != others.shape:
            shapes = f"{tuple(images.shape)} and {tuple(others.shape)}"
            raise ValueError(f"Lpips: images and others must both be [N, 3, H, W], got shapes {shapes}")
        if not images.is_floating_point() or not others.is_floating_point():
            raise TypeError(
                f"Lpips: images must be floating point in [-1, 1], got {images.dtype} and {others.dtype}"
            )
        height, width = images.shape[2:]
        side = self.least_side
        if min(height, width) < side:
            raise UserError(
                f"LPIPS with {self.network} needs images of at least {side}x{side} pixels, got"
                f" {width}x{height}"
            )


def _unit(activations: Tensor) -> Tensor:
    """Divide ``activations`` [N, C, h, w] by their norm over the channels."""
    return activations / (torch.linalg.vector_norm(activations, dim=1, keepdim=True) + EPSILON)


def published_heads(network: Network) -> Path:
    """Return the file of the published heads v0.1 of ``network`` in the package torchmetrics.

    The package is not imported. Raises UserError if it is not installed, or if its file is another one.
    """
    kind = BACKBONES[network]
    package = importlib.util.find_spec("torchmetrics")
    if package is None or not package.submodule_search_locations:
        raise UserError(
            "LPIPS needs the published heads in the package torchmetrics: pip install 'fastcyclegan[metrics]'"
        )
    folder = Path(package.submodule_search_locations[0])
    file = folder / "functional" / "image" / "lpips_models" / kind.heads
    if not file.is_file():
        raise UserError(f"{file}: missing in this version of torchmetrics, so LPIPS has no heads")
    found = sha256_of(file)
    if found != kind.sha256:
        raise UserError(f"{file}: not the published heads: its SHA-256 is {found} instead of {kind.sha256}")
    return file


def _read_heads(file: Path, channels: Sequence[int]) -> tuple[list[nn.Module], str]:
    """Return 1x1 convolutions from ``channels`` to 1, with the weights in ``file``, and the file's SHA-256.

    Raises UserError if the file does not have exactly such weights.
    """
    weights = load_tensors(file)
    keys = [f"lin{number}.model.1.weight" for number in range(len(channels))]
    if not isinstance(weights, Mapping) or set(weights) != set(keys):
        raise UserError(f"{file}: not the heads of LPIPS, which are {keys[0]} to {keys[-1]}")
    heads: list[nn.Module] = []
    for key, count in zip(keys, channels, strict=True):
        value = weights[key]
        shape = list(value.shape) if isinstance(value, Tensor) and value.is_floating_point() else None
        if shape != [1, count, 1, 1]:
            raise UserError(f"{file}: {key} must be of floating point and of the shape {[1, count, 1, 1]}")
        require_representable({key: value}, torch.float32, file)
        head = skip_init(nn.Conv2d, count, 1, 1, bias=False).float()
        head.load_state_dict({"weight": value})
        heads.append(head.requires_grad_(False))
    return heads, sha256_of(file)
