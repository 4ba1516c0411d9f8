"""Odd arguments made from ordinary images: layouts, sizes, channels, dtypes, and things that are no images.

Used by the tests of networks and of operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn


class Subclass(Tensor):
    """A tensor of a class of the user's own, without behaviour of its own."""


def _strided(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2)[..., ::2, ::2]


def _offset(x: Tensor) -> Tensor:
    """Return a view that starts one element into its memory, so that nothing is aligned."""
    return torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape)


def _overlapping(x: Tensor) -> Tensor:
    """Return a view whose rows overlap in memory."""
    N, C, H, W = x.shape
    return x.flatten().as_strided((N, C, H, W), (C * H, H, 1, 2))


def _inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


def _one_number(x: Tensor, value: float) -> Tensor:
    x = x.clone()
    x[0, 0, 0, 5] = value
    return x


# Valid images, in every kind of memory.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "width first": lambda x: x.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0),
    "one image expanded": lambda x: x[:1].expand(2, -1, -1, -1),
    "one channel expanded": lambda x: x[:, :1].expand(x.shape),
    "one number expanded": lambda x: x[:, :, :1].expand(x.shape),
    "every second pixel": _strided,
    "storage offset": _offset,
    "some of the channels": lambda x: torch.cat([x, x], 1).to(memory_format=torch.channels_last)[:, 2:5],
    "overlapping rows": _overlapping,
    "subclass": lambda x: x.clone().as_subclass(Subclass),
    "parameter": nn.Parameter,
    "negative bit": torch._neg_view,
    "NaN": lambda x: _one_number(x, float("nan")),
    "infinity": lambda x: _one_number(x, float("inf")),
    "zeros": torch.zeros_like,
    "1e10 times larger": lambda x: x * 1e10,
}

SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "1 channel": lambda x: x[:, :1],
    "2 channels": lambda x: x[:, :2],
    "4 channels": lambda x: torch.cat([x, x[:, :1]], 1),
    "no channels": lambda x: x[:, :0],
    "no batch dimension": lambda x: x[0],
    "5-D": lambda x: x[None],
    "2-D": lambda x: x[0, 0],
    "1-D": lambda x: x[0, 0, 0],
    "0-D": lambda x: x[0, 0, 0, 0],
    "odd sides": lambda x: x[..., :-1, :-3],
    "4 pixels": lambda x: x[..., :4, :4],
    "3 pixels": lambda x: x[..., :3, :3],
    "1 pixel": lambda x: x[..., :1, :1],
    "1 row": lambda x: x[..., :1, :],
    "1 column": lambda x: x[..., :1],
    "no rows": lambda x: x[..., :0, :],
    "no columns": lambda x: x[..., :0],
    "no images": lambda x: x[:0],
    "no images of no rows": lambda x: x[:0, :, :0],
}

DTYPES: dict[str, Callable[[Tensor], Any]] = {
    "float64": lambda x: x.double(),
    "float16": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "int8": lambda x: (x * 100).to(torch.int8),
    "uint8": lambda x: (x.abs() * 200).to(torch.uint8),
    "int64": lambda x: (x * 100).long(),
    "bool": lambda x: x > 0,
    "complex64": lambda x: x.to(torch.complex64),
    "quantised": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "sparse": lambda x: x.to_sparse(),
    "inference": _inference,
    "meta": lambda x: x.to("meta"),
}

# Things that are no tensors, with the word for them in the message.
NOT_TENSORS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "None": (lambda x: None, "NoneType"),
    "list": (lambda x: x.tolist(), "list"),
    "NumPy": (lambda x: x.numpy(), "ndarray"),
    "Pillow": (lambda x: Image.new("RGB", (16, 16)), "Image"),
    "tuple": (lambda x: (x,), "tuple"),
    "str": (lambda x: "x.png", "str"),
}


def in_float64(x: Any) -> Any:
    """Return x in float64 for the plain network in float64, and things that are no ordinary images as is."""
    ordinary = isinstance(x, Tensor) and x.is_floating_point() and x.layout == torch.strided
    return x.detach().double() if ordinary else x
