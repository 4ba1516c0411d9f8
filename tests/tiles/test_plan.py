"""Plans have the passes that norms need, store little, and take little more work than the whole image."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fastcyclegan.errors import UserError
from fastcyclegan.nn.networks import Generator, UnetGenerator
from fastcyclegan.tiles.memory import need_of
from fastcyclegan.tiles.plan import plan, plans
from tests.tiles.networks import resnet, seeded, unet


def unfilled(make: Callable[..., nn.Module], **options: Any) -> nn.Module:
    """Return a network of the real size, but without memory for its weights."""
    with torch.device("meta"):
        return make(**options).eval()


REAL = {
    "resnet_9blocks": lambda: unfilled(Generator),
    "resnet_9blocks resize": lambda: unfilled(Generator, upsample="resize"),
    "resnet_9blocks antialias": lambda: unfilled(Generator, upsample="antialias", downsample="antialias"),
    "unet_256": lambda: unfilled(UnetGenerator),
    "unet_256 batch": lambda: unfilled(UnetGenerator, norm="batch"),
    "unet_128": lambda: unfilled(UnetGenerator, num_downs=7),
}


@pytest.mark.parametrize("name", REAL)
def test_real_networks_take_little_more_work_than_the_whole_image(name: str) -> None:
    net = REAL[name]()
    for size, tile in (((1024, 1024), 256), ((1024, 2048), 512), ((2048, 1024), 256), ((4096, 4096), 512)):
        made = plan(net, 3, size, tile)
        assert 1 <= made.work <= 1.6
        assert made.tiles == sum(one.tiles for one in made.passes)


def test_a_large_image_is_planned_at_once() -> None:
    net = REAL["resnet_9blocks"]()
    begun = time.process_time()
    made = plan(net, 3, (8192, 8192), 512)
    # Measured: 0.1 s. Searches over all plans or all pixels would take minutes.
    assert time.process_time() - begun < 2
    assert len(made.passes) == 24


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_without_norms_of_the_whole_image_one_pass_is_enough(norm: str) -> None:
    made = plan(unfilled(Generator, norm=norm), 3, (4096, 4096), 512)
    assert len(made.passes) == 1
    assert not made.stored
    assert made.work <= 1.4


@pytest.mark.parametrize("name", REAL)
def test_other_plans_need_less_in_the_order_of_their_work(name: str) -> None:
    """They are for a lack of memory. Those after them need more, and are for small tiles."""
    first, *others = plans(REAL[name](), 3, (8192, 8192), 256)
    needed = [need_of(one).total for one in others]
    leaner = [one for one, count in zip(others, needed, strict=True) if count < need_of(first).total]
    assert others[: len(leaner)] == leaner
    assert sorted(leaner, key=lambda one: one.work) == leaner
    assert all(1.4 < one.work <= 4 for one in leaner)
    assert needed[len(leaner) :] == sorted(needed[len(leaner) :])
    if name in ("resnet_9blocks antialias", "unet_256"):
        assert leaner


# --- The halo -----------------------------------------------------------------------------------------------


def error_of(net: nn.Module, size: tuple[int, int], tile: int) -> str | None:
    try:
        plan(net, 3, size, tile)
    except UserError as error:
        return str(error)
    return None


def of_large_kernels() -> nn.Module:
    """Three convolutions with a stride: what the first one reads counts most."""
    layers = [nn.Conv2d(3, 3, 31, stride=2, padding=15) for _ in range(3)]
    return nn.Sequential(*layers, nn.Conv2d(3, 3, 31, padding=15), nn.Conv2d(3, 3, 31, padding=15))


def of_uneven_work() -> nn.Module:
    """A large kernel that is cheap, so that larger tiles store nothing, and then have a larger halo."""
    return nn.Sequential(
        nn.Conv2d(3, 1, 9, stride=2, padding=4),
        nn.Conv2d(1, 32, 3, padding=1),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.Conv2d(32, 1, 1),
    )


HALOS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "resnet": (resnet(), (64, 96)),
    "resnet without norms": (resnet(norm="none", n_blocks=4), (256, 256)),
    "antialias": (resnet(upsample="antialias", downsample="antialias"), (64, 64)),
    "unet": (unet(num_downs=6), (128, 64)),
    "unet without norms": (unet(norm="batch", num_downs=6), (192, 128)),
    "large kernels": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 31, padding=15), nn.ReLU(), nn.Conv2d(4, 3, 21, padding=10)),
        (90, 120),
    ),
    "larger halo of smaller tiles": (of_large_kernels, (160, 128)),
    "larger halo of larger tiles": (of_uneven_work, (40, 40)),
}


@pytest.mark.parametrize("name", HALOS)
def test_the_least_tile_is_named(name: str) -> None:
    """It works, and one pixel less does not."""
    make, size = HALOS[name]
    net = seeded(make)
    message = error_of(net, size, 1)
    assert message is not None
    assert re.fullmatch(
        r"--tile 1 is smaller than the halo of \d+ pixels that this network reads around a tile; the least is"
        r" \d+",
        message,
    )
    least = int(message.split()[-1])
    assert error_of(net, size, least) is None
    fewer = error_of(net, size, least - 1)
    assert fewer is not None
    assert fewer.endswith(f" {least}")
