from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from fastcyclegan.nn.as_trained import (
    KeyedDropout,
    as_trained,
    describe_mode,
    has_masks,
    mask_keys,
    masks_from,
    without_dropout,
)
from fastcyclegan.nn.networks import Generator, UnetGenerator
from fastcyclegan.testing import assert_parity, assert_same_bits


def unet(use_dropout: bool = False, norm: str = "batch", impl: str = "reference") -> nn.Module:
    torch.manual_seed(0)
    net = UnetGenerator(num_downs=6, ngf=4, norm=norm, use_dropout=use_dropout, impl=impl)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias, 0.0, 0.3)
            nn.init.normal_(module.running_mean)
    return net


def resnet(use_dropout: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return Generator(ngf=4, n_blocks=2, norm="batch", use_dropout=use_dropout, impl="reference")


def images(count: int, side: int = 64) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("make", [unet, resnet])
def test_batch_norm_uses_the_statistics_of_each_image(make) -> None:
    net = make().double()
    x = images(3).double()
    with torch.no_grad():
        result = as_trained(net)(x)
        net.train()
        expected = torch.cat([net(image) for image in x.split(1)])
    assert (result - expected).abs().max() < 1e-12


def test_a_network_is_not_changed() -> None:
    net = unet(use_dropout=True).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    kinds = [type(module) for module in net.modules()]
    with torch.no_grad():
        as_trained(net)(images(2))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert [type(module) for module in net.modules()] == kinds
    assert all(module.training for module in net.modules())


def test_the_weights_are_those_of_the_network_later_on() -> None:
    net = unet()
    made = as_trained(net)
    with torch.no_grad():
        before = made(images(1))
        for p in net.parameters():
            p.mul_(1.5)
        after = made(images(1))
        expected = as_trained(net)(images(1))
    assert not torch.equal(before, after)
    assert torch.equal(after, expected)


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    net = as_trained(unet(use_dropout=True).double())
    x, keys = images(8).double(), mask_keys(0, [f"{n}.png" for n in range(8)])
    with torch.no_grad():
        with masks_from(keys):
            together = net(x)
        alone = []
        for image, key in zip(x.split(1), keys.split(1), strict=True):
            with masks_from(key):
                alone.append(net(image))
    assert (together - torch.cat(alone)).abs().max() < 1e-12


def test_the_kernels_compute_what_pytorch_computes() -> None:
    x, keys = images(2), mask_keys(3, ["a", "b"])
    with torch.no_grad(), masks_from(keys):
        expected = as_trained(unet(use_dropout=True).double())(x.double())
        plain = as_trained(unet(use_dropout=True))(x)
        fused = as_trained(unet(use_dropout=True, impl="auto"))(x)
    assert_parity("as trained", fused, plain, expected, torch.float32)


# --- Masks --------------------------------------------------------------------------------------------------


def kept(keys: Tensor, number: int = 1, p: float = 0.5, shape: tuple[int, ...] = (64, 16, 16)) -> Tensor:
    """Return which values a dropout keeps, [N, *shape]."""
    with masks_from(keys):
        return KeyedDropout(p, number)(torch.ones(len(keys), *shape)) != 0


@pytest.mark.parametrize("p", [0.1, 0.5, 0.75])
def test_a_mask_keeps_the_share_that_it_should(p: float) -> None:
    masks = kept(mask_keys(0, [str(n) for n in range(32)]), p=p).double()
    count = masks.numel()
    # Six standard deviations of a binomial distribution.
    assert abs(masks.mean() - (1 - p)) < 6 * (p * (1 - p) / count) ** 0.5
    for dim in (1, 2, 3):
        others = [d for d in range(4) if d != dim]
        part = count / masks.shape[dim]
        assert ((masks.mean(others) - (1 - p)).abs() < 6 * (p * (1 - p) / part) ** 0.5).all()


def test_values_that_are_kept_are_scaled() -> None:
    x = torch.full((1, 4, 8, 8), 3.0)
    y = KeyedDropout(0.75, 1)(x)
    assert set(y.unique().tolist()) == {0.0, 12.0}


def test_masks_of_images_layers_and_seeds_are_independent() -> None:
    first = kept(mask_keys(0, ["a"]))
    bound = 6 * (0.25 / first.numel()) ** 0.5
    for other in (
        kept(mask_keys(0, ["b"])),
        kept(mask_keys(1, ["a"])),
        kept(mask_keys(0, ["a"]), number=2),
        first.roll(1, 3),
        first.roll(1, 1),
    ):
        assert abs((first == other).double().mean() - 0.5) < bound


def test_a_mask_is_the_same_everywhere() -> None:
    keys = mask_keys(0, ["a", "b"])
    expected = kept(keys)
    assert torch.equal(expected, kept(keys))
    assert torch.equal(expected[1:], kept(keys[1:]))
    x = torch.ones(2, 64, 16, 16, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    with masks_from(keys):
        assert torch.equal(KeyedDropout(0.5, 1)(x) != 0, expected)


def test_masks_are_those_of_the_callers_thread() -> None:
    keys = mask_keys(0, ["a"])
    found: list[Tensor] = []
    with masks_from(keys):
        thread = threading.Thread(target=lambda: found.append(KeyedDropout(0.5, 1)(torch.ones(1, 8, 8, 8))))
        thread.start()
        thread.join()
        own = KeyedDropout(0.5, 1)(torch.ones(1, 8, 8, 8))
    assert torch.equal(found[0], KeyedDropout(0.5, 1)(torch.ones(1, 8, 8, 8)))
    assert not torch.equal(found[0], own)


def test_the_key_of_a_name_never_changes() -> None:
    # Translations can be repeated with a later version.
    assert mask_keys(0, ["1.png", "é.png"]).tolist() == GOLDEN
    assert mask_keys(0, ["\udce9.png"]).shape == (1,)  # a file name that is not UTF-8


GOLDEN = [158005125, 4120766243]


WINDOWS = [((0, 11), (0, 7)), ((3, 4), (0, 7)), ((0, 11), (6, 7)), ((2, 9), (1, 6)), ((10, 11), (5, 7))]


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 3])
def test_a_window_has_the_mask_of_the_whole_map(p: float, count: int) -> None:
    x = torch.randn(count, 5, 11, 7, generator=torch.Generator().manual_seed(2))
    layer = KeyedDropout(p, 4)
    with masks_from(mask_keys(0, [str(n) for n in range(count)])):
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            whole = layer(x.to(dtype))
            for window in WINDOWS:
                rows, columns = slice(*window[0]), slice(*window[1])
                found = layer.on_window(x.to(dtype)[:, :, rows, columns], window, (11, 7))
                assert_same_bits(f"{window} in {dtype}", found, whole[:, :, rows, columns])


def test_a_window_has_the_mask_of_the_whole_map_without_keys_and_in_any_layout() -> None:
    x = torch.randn(1, 5, 11, 7).contiguous(memory_format=torch.channels_last)
    layer = KeyedDropout(0.5, 4)
    found = layer.on_window(x[:, :, 2:9, 1:6], ((2, 9), (1, 6)), (11, 7))
    assert_same_bits("window", found, layer(x)[:, :, 2:9, 1:6])


def test_all_or_nothing() -> None:
    x = torch.ones(1, 2, 4, 4)
    assert torch.equal(KeyedDropout(0.0, 1)(x), x)
    assert not KeyedDropout(1.0, 1)(x).any()


def test_what_a_network_does_is_described() -> None:
    assert describe_mode(unet(use_dropout=True)) == ""
    made = as_trained(unet(use_dropout=True))
    assert has_masks(made)
    assert describe_mode(made) == ", with batch statistics of each image and dropout (--eval without)"
    net = unet(use_dropout=True)
    without_dropout(net)
    assert not has_masks(as_trained(net))
    assert describe_mode(as_trained(net)) == ", with batch statistics of each image (--eval without)"
    assert describe_mode(as_trained(unet(norm="instance"))) == ""
