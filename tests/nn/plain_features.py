"""VGG and AlexNet as plain functions of their weights, and random weights for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcyclegan.nn.feature_networks import FeatureNetwork

Weights = dict[str, Tensor]


def random_weights(net: FeatureNetwork, dtype: torch.dtype = torch.float32) -> Weights:
    """Return weights under which activations neither vanish nor explode, and biases that matter."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for key, value in net.state_dict().items():
        deviation = (2 / value[0].numel()) ** 0.5 if value.ndim == 4 else 0.1
        weights[key] = torch.randn(value.shape, generator=generator, dtype=dtype) * deviation
    return weights


def vgg_up_to(x: Tensor, weights: Weights, indices: Sequence[int], pools: Sequence[int]) -> Tensor:
    """Apply the convolutions of these indices, each with its ReLU, and a pool before those in ``pools``."""
    for index in indices:
        if index in pools:
            x = F.max_pool2d(x, 2)
        x = F.relu(F.conv2d(x, weights[f"features.{index}.weight"], weights[f"features.{index}.bias"], 1, 1))
    return x


def vgg16_relu(x: Tensor, w: Weights, count: int) -> Tensor:
    return vgg_up_to(x, w, [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28][:count], [5, 10, 17, 24])


def vgg19_relu(x: Tensor, w: Weights, count: int) -> Tensor:
    indices = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]
    return vgg_up_to(x, w, indices[:count], [5, 10, 19, 28])


def alexnet_relu(x: Tensor, w: Weights, count: int) -> Tensor:
    steps = {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)}
    for index in list(steps)[:count]:
        if index in (3, 6):
            x = F.max_pool2d(x, 3, 2)
        x = F.relu(F.conv2d(x, w[f"features.{index}.weight"], w[f"features.{index}.bias"], *steps[index]))
    return x
