"""The cases in which the C++ kernels and their gradients are compared with float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastcyclegan.kernels._convolution import Convolution


@dataclass(frozen=True)
class NormCase:
    why: str
    shape: tuple[int, ...]
    act: str = "relu"
    affine: bool = False
    residual: bool = False
    border: int = 0
    layout: str = "last"


# Vectors have 8 or 16 channels, chunks 64 pixels; several chunks are joined.
NORMS = [
    NormCase("one chunk, fewer channels than a vector", (2, 5, 4, 4)),
    NormCase("a vector and a bit, several chunks", (1, 17, 9, 11), "leaky_relu", True, True),
    NormCase("wide groups of vectors and rest", (1, 150, 8, 9), "none", True),
    NormCase("a real width with a border", (1, 256, 5, 4), border=1),
    NormCase("a border of three, affine", (2, 24, 4, 6), "leaky_relu", True, border=3),
    NormCase("a border as wide as the image allows", (1, 3, 2, 5), "none", border=1),
    NormCase("the fewest pixels that have a variance", (2, 3, 1, 2), "none", True),
    NormCase("one channel", (3, 1, 9, 20)),
    NormCase("more rows than are added up at a time", (1, 3, 70, 5), "leaky_relu", True, border=1),
    NormCase("a signal", (2, 6, 77), "relu", True),
    NormCase("a volume", (1, 4, 3, 5, 6), "leaky_relu", True, True),
    NormCase("planes", (2, 3, 10, 11), "leaky_relu", True, True, layout="first"),
    NormCase("planes of more than a part", (1, 2, 41, 53), "relu", layout="first"),
    NormCase("planes with a border", (1, 2, 5, 6), border=2, layout="first"),
    NormCase("a signal in planes", (1, 3, 257), "none", True, layout="first"),
    NormCase("not dense", (2, 5, 4, 6), "relu", layout="gaps"),
]


@dataclass(frozen=True)
class RegionCase:
    why: str
    C: int
    # Rows and columns.
    size: tuple[int, int]
    act: str = "none"
    affine: bool = False
    residual: bool = False
    dense: bool = False


REGIONS = [
    RegionCase("one chunk, fewer channels than a vector", 5, (4, 7), "relu"),
    RegionCase("rows shorter than a chunk, a vector and a bit", 17, (9, 11), "leaky_relu", True, True),
    RegionCase("rows longer than two chunks", 33, (3, 131), "none", True),
    RegionCase("wide groups of vectors and rest", 150, (8, 9), "relu", residual=True),
    RegionCase("a row as long as a chunk", 16, (5, 64), "leaky_relu"),
    RegionCase("a column", 7, (130, 1), "relu", True, True),
    RegionCase("a row", 19, (1, 77), "leaky_relu", True, True),
    RegionCase("one pixel", 18, (1, 1), "none", True, True),
    RegionCase("one channel", 1, (13, 6), "leaky_relu", True, True),
    RegionCase("a whole map", 24, (11, 13), "relu", True, True, dense=True),
]


@dataclass(frozen=True)
class ConvCase:
    why: str
    kind: str
    shape: tuple[int, int, int, int]
    outputs: int
    kernel: int = 3
    stride: int = 1
    border: int = 1
    reflect: bool = True
    bias: bool = False


# Tiles have 4x4 outputs, blocks 28 or 12 tiles (256 for the gradients of weights), panels 32 or 16 outputs.
CONVOLUTIONS = [
    ConvCase("smallest image that reflects", "winograd", (1, 20, 2, 2), 24),
    ConvCase("one pixel of output", "winograd", (1, 8, 3, 3), 8, border=0),
    ConvCase("one channel", "winograd", (2, 1, 5, 4), 1, bias=True),
    ConvCase("whole tiles, a real width", "winograd", (1, 256, 8, 8), 256),
    ConvCase("odd sizes and channels", "winograd", (2, 19, 7, 13), 45, bias=True),
    ConvCase("more blocks than threads", "winograd", (3, 16, 33, 21), 33),
    ConvCase("two blocks of tiles in a sum", "winograd", (3, 4, 35, 41), 5),
    ConvCase("three blocks of tiles in a sum", "winograd", (1, 5, 99, 101), 3, border=0, reflect=False),
    ConvCase("an image smaller than a tile", "winograd", (3, 2, 2, 3), 20),
    ConvCase("a single pixel", "winograd", (1, 3, 1, 1), 2, reflect=False),
    ConvCase("no image", "winograd", (0, 16, 5, 5), 20),
    ConvCase("zero padding", "winograd", (2, 24, 6, 9), 17, reflect=False, bias=True),
    ConvCase("a wide zero padding", "winograd", (1, 8, 3, 2), 8, border=2, reflect=False),
    ConvCase("a wide reflected padding", "winograd", (1, 12, 5, 6), 12, border=3),
    ConvCase("no padding", "winograd", (1, 12, 6, 7), 12, border=0),
    ConvCase("more channels than a part of the sum", "winograd", (1, 130, 5, 5), 8),
    ConvCase("more outputs than a part of the sum", "winograd", (1, 33, 5, 7), 70, reflect=False),
    ConvCase("few channels, many outputs", "winograd", (1, 5, 6, 5), 256),
    ConvCase("many channels, few outputs", "winograd", (1, 256, 5, 9), 16, reflect=False),
    ConvCase("from an image", "wide", (1, 3, 19, 18), 64, 7, border=3, bias=True),
    ConvCase("from a gray image", "wide", (2, 1, 9, 40), 20, 7, border=3),
    ConvCase("with stride 2", "wide", (2, 3, 16, 17), 33, 4, 2, 1, False, True),
    ConvCase("an even kernel without a padding", "wide", (1, 2, 5, 9), 5, 4, border=0),
    ConvCase("from one pixel", "wide", (1, 4, 1, 1), 3, 1, border=0),
    ConvCase("from single pixels with stride 2", "wide", (2, 4, 6, 7), 17, 1, 2, 0),
    ConvCase("with stride 2, which leaves pixels over", "wide", (1, 1, 12, 11), 16, 3, 2, 0),
    ConvCase("a large kernel with stride 2", "wide", (1, 2, 15, 10), 9, 7, 2, 3),
    ConvCase("more rows than parts of the sum", "wide", (3, 3, 67, 5), 18, 3),
    ConvCase("no image", "wide", (0, 3, 8, 8), 20, 7, border=3),
    ConvCase("to an image", "few", (1, 64, 11, 17), 3, 7, border=3, bias=True),
    ConvCase("to a gray image", "few", (2, 20, 9, 31), 1, 7, border=3),
    ConvCase("to two channels, an odd width", "few", (1, 33, 7, 29), 2, 3, border=1, bias=True),
    ConvCase("to more channels than a group", "few", (1, 16, 6, 5), 8, 3, border=1, bias=True),
    ConvCase("to an image, pixel by pixel", "few", (2, 70, 5, 6), 3, 1, border=0),
    ConvCase("more rows than parts of the sum", "few", (3, 9, 67, 5), 2),
    ConvCase("zeros around a large kernel", "few", (1, 17, 8, 9), 4, 7, 1, 3, False),
    ConvCase("no image", "few", (0, 20, 8, 8), 3, 7, border=3),
    ConvCase("fewer channels than a vector", "few", (1, 5, 6, 30), 4, 4, 1, 1, False, True),
    ConvCase("with stride 2 to few", "few", (1, 40, 13, 12), 3, 4, 2, 1, False),
]

# Norms with a convolution after them, of every kind.
LAYERS: list[dict[str, Any]] = [
    {"shape": (2, 16, 7, 9), "weight": (24, 16, 3, 3), "border": 1, "normed": True},
    {"shape": (2, 16, 7, 9), "weight": (24, 16, 3, 3), "border": 0, "normed": True},
    {"shape": (1, 3, 8, 9), "weight": (16, 3, 7, 7), "border": 3, "normed": False},
    {"shape": (1, 20, 8, 9), "weight": (3, 20, 7, 7), "border": 3, "normed": True},
    {"shape": (1, 16, 8, 9), "weight": (24, 16, 5, 5), "border": 2, "normed": True},
    {"shape": (1, 16, 8, 10), "weight": (24, 16, 3, 3), "conv": Convolution(2, 1), "normed": True},
    {"shape": (1, 16, 8, 10), "weight": (16, 24, 3, 3), "conv": Convolution(2, 1, True, 1), "normed": True},
]
