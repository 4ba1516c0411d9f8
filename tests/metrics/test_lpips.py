"""LPIPS against its formula on random weights and, by hand, against the published package on its weights."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastcyclegan.data.builtin import draw
from fastcyclegan.data.pixels import to_unit_range
from fastcyclegan.errors import UserError
from fastcyclegan.metrics.lpips import BACKBONES, SCALE, SHIFT, Lpips, Network, published_heads
from fastcyclegan.nn.feature_networks import MEAN, STD
from tests.metrics import published_weights
from tests.nn.plain_features import Weights, alexnet_relu, random_weights, vgg16_relu

NETWORKS: list[Network] = ["alex", "vgg16"]
CHANNELS = {"alex": (64, 192, 384, 256, 256), "vgg16": (64, 128, 256, 512, 512)}
# The function of a network, and the number of convolutions up to each layer.
LAYERS: dict[str, tuple[Callable[[Tensor, Weights, int], Tensor], tuple[int, ...]]] = {
    "alex": (alexnet_relu, (1, 2, 3, 4, 5)),
    "vgg16": (vgg16_relu, (2, 4, 7, 10, 13)),
}


def random_heads(network: Network) -> Weights:
    generator = torch.Generator().manual_seed(1)
    return {
        f"lin{number}.model.1.weight": torch.rand(1, count, 1, 1, generator=generator) / count
        for number, count in enumerate(CHANNELS[network])
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random weights and heads of each network."""
    folder = tmp_path_factory.mktemp("lpips")
    for network in NETWORKS:
        torch.save(random_weights(BACKBONES[network].build()), folder / f"{network}.pth")
        torch.save(random_heads(network), folder / f"{network}_heads.pth")
    return folder


@pytest.fixture(scope="module", params=NETWORKS)
def metric(files: Path, request: pytest.FixtureRequest) -> Lpips:
    """LPIPS on random weights, in float64."""
    network = request.param
    return Lpips(network, files / f"{network}.pth", files / f"{network}_heads.pth").double()


def images(seed: int, count: int = 2, side: tuple[int, int] = (40, 33)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, *side, generator=generator, dtype=torch.float64) * 2 - 1


def by_formula(network: str, x: Tensor, y: Tensor, weights: Weights, heads: Weights) -> Tensor:
    """Return the distances as the paper's equation 1 states them, with the authors' constants."""
    relu, counts = LAYERS[network]
    shift = torch.tensor([-0.030, -0.088, -0.188]).double()[:, None, None]  # the package has them in float32
    scale = torch.tensor([0.458, 0.448, 0.450]).double()[:, None, None]
    total = torch.zeros(len(x), dtype=torch.float64)
    for count, head in zip(counts, heads.values(), strict=True):
        a, b = (relu((image - shift) / scale, weights, count) for image in (x, y))
        a, b = (t / (t.square().sum(1, keepdim=True).sqrt() + 1e-10) for t in (a, b))
        total += torch.einsum("nchw,c->nhw", (a - b).square(), head.flatten()).mean((1, 2))
    return total


def doubled(weights: Weights) -> Weights:
    return {key: value.double() for key, value in weights.items()}


# --- The formula --------------------------------------------------------------------------------------------


def test_distances_and_gradients_are_those_of_the_formula(metric: Lpips) -> None:
    weights, heads = doubled(random_weights(metric.backbone)), doubled(random_heads(metric.network))
    x, y = images(0).requires_grad_(), images(1).requires_grad_()
    found, expected = metric(x, y), by_formula(metric.network, x, y, weights, heads)
    assert found.shape == (2,)
    assert (found > 0).all()
    torch.testing.assert_close(found, expected)
    upstream = torch.tensor([0.7, -1.3], dtype=torch.float64)
    gradients = torch.autograd.grad(found, (x, y), upstream)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (x, y), upstream))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_activations_near_the_epsilon(files: Path, tmp_path: Path) -> None:
    """It is added to the norm, not to its square. Without biases, one layer scales the activations of all."""
    weights = torch.load(files / "alex.pth")
    for key, value in weights.items():
        value.mul_({"features.0.weight": 1e-10}.get(key, key.endswith("weight")))
    torch.save(weights, tmp_path / "small.pth")
    metric = Lpips("alex", tmp_path / "small.pth", files / "alex_heads.pth").double()
    expected = by_formula("alex", images(0), images(1), doubled(weights), doubled(random_heads("alex")))
    torch.testing.assert_close(metric(images(0), images(1)), expected)


def test_a_distance_is_0_for_equal_images_and_symmetric(metric: Lpips) -> None:
    x, y = images(0), images(1)
    assert metric(x, x).tolist() == [0, 0]
    torch.testing.assert_close(metric(x, y), metric(y, x))
    torch.testing.assert_close(metric(x[1:], y[1:]), metric(x, y)[1:])


def test_a_layer_that_is_0_everywhere_counts_nothing(files: Path) -> None:
    """Flat images activate nothing in some places of some layers. Distances and gradients are finite then."""
    metric = Lpips("alex", files / "alex.pth", files / "alex_heads.pth")
    with torch.no_grad():
        metric.backbone.get_parameter("features.8.bias").fill_(-1e6)
    x = images(0).float().requires_grad_()
    distances = metric(x, images(1))
    (gradient,) = torch.autograd.grad(distances.sum(), x)
    assert distances.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_only_images_have_gradients(metric: Lpips) -> None:
    assert not any(parameter.requires_grad for parameter in metric.parameters())
    assert not metric.backbone.training


def test_the_constants_are_those_of_imagenet_for_another_range() -> None:
    np.testing.assert_allclose(SHIFT, 2 * np.array(MEAN) - 1, rtol=1e-12)
    np.testing.assert_allclose(SCALE, 2 * np.array(STD), rtol=1e-12)


def test_images_of_another_precision_are_converted(files: Path) -> None:
    metric = Lpips("alex", files / "alex.pth", files / "alex_heads.pth")
    x, y = images(0), images(1)
    assert torch.equal(metric(x, y), metric(x.float(), y.float()))


def test_other_images_are_refused(metric: Lpips) -> None:
    x = images(0)
    for a, b in ((x, x[:1]), (x[:, :1], x[:, :1]), (x[0], x[0]), (x, x[..., 1:])):
        with pytest.raises(ValueError, match=r"images and others must both be \[N, 3, H, W\]"):
            metric(a, b)
    pixels = torch.zeros(1, 3, 40, 40, dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"must be floating point in \[-1, 1\], got torch.uint8"):
        metric(pixels, pixels)


def test_the_smallest_images(metric: Lpips) -> None:
    side = {"alex": 31, "vgg16": 16}[metric.network]
    small = images(0, 1, (side, side + 2))
    assert metric(small, small).tolist() == [0]
    message = (
        rf"LPIPS with {metric.network} needs images of at least {side}x{side} pixels, got {side}x{side - 1}"
    )
    with pytest.raises(UserError, match=message):
        metric(small[..., :-1, :side], small[..., :-1, :side])


# --- Files --------------------------------------------------------------------------------------------------


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_protocol_names_what_a_distance_depends_on(metric: Lpips, files: Path) -> None:
    network = metric.network
    layers = {
        "alex": ["relu1", "relu2", "relu3", "relu4", "relu5"],
        "vgg16": ["relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"],
    }
    assert metric.protocol == {
        "version": "0.1",
        "network": network,
        "layers": layers[network],
        "backbone_sha256": digest(files / f"{network}.pth"),
        "heads_sha256": digest(files / f"{network}_heads.pth"),
    }


@pytest.fixture
def torchmetrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the heads in a package that stands for torchmetrics, and fails if it is imported."""
    package = tmp_path / "packages" / "torchmetrics"
    heads = package / "functional" / "image" / "lpips_models"
    heads.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError")
    monkeypatch.delitem(sys.modules, "torchmetrics", raising=False)
    monkeypatch.syspath_prepend(str(package.parent))
    return heads


@pytest.mark.parametrize(("network", "name"), [("alex", "alex.pth"), ("vgg16", "vgg.pth")])
def test_the_heads_are_those_of_torchmetrics(
    torchmetrics: Path, monkeypatch: pytest.MonkeyPatch, files: Path, network: Network, name: str
) -> None:
    file = torchmetrics / name
    file.write_bytes((files / f"{network}_heads.pth").read_bytes())
    with pytest.raises(UserError, match=rf"{name}: not the published heads: its SHA-256 is {digest(file)}"):
        published_heads(network)
    monkeypatch.setitem(BACKBONES, network, replace(BACKBONES[network], sha256=digest(file)))
    assert published_heads(network) == file
    assert Lpips(network, files / f"{network}.pth").protocol["heads_sha256"] == digest(file)
    file.unlink()
    with pytest.raises(UserError, match=rf"{name}: missing in this version of torchmetrics"):
        published_heads(network)


def test_without_torchmetrics(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"torchmetrics: pip install 'fastcyclegan\[metrics\]'"):
        Lpips("alex", files / "alex.pth")


@pytest.mark.parametrize("network", NETWORKS)
def test_the_installed_heads_are_the_published_ones(network: Network) -> None:
    if importlib.util.find_spec("torchmetrics") is None:
        pytest.skip("needs the package torchmetrics")
    assert digest(published_heads(network)) == BACKBONES[network].sha256


@pytest.mark.parametrize(("change", "message"), [
    ({"lin4.model.1.weight": None}, "not the heads of LPIPS, which are lin0.model.1.weight to lin4"),
    ({"lin5.model.1.weight": torch.zeros(1)}, "not the heads of LPIPS"),
    ({"lin1.model.1.weight": torch.zeros(1, 128, 1, 1)}, r"lin1.model.1.weight must be .* \[1, 192, 1, 1\]"),
    ({"lin0.model.1.weight": torch.zeros(1, 64, 1, 1, dtype=torch.int64)}, "lin0.model.1.weight must be"),
    ({"lin0.model.1.weight": torch.full((1, 64, 1, 1), torch.nan)}, "lin0.model.1.weight contains nan"),
], ids=["missing", "extra", "shape", "integers", "nan"])  # fmt: skip
def test_other_heads_are_refused(
    files: Path, tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    changed = {key: value for key, value in (random_heads("alex") | change).items() if value is not None}
    torch.save(changed, tmp_path / "heads.pth")
    with pytest.raises(UserError, match=f"heads.pth: {message}"):
        Lpips("alex", files / "alex.pth", tmp_path / "heads.pth")


def test_files_of_the_other_network_are_refused(files: Path) -> None:
    with pytest.raises(UserError, match=r"vgg16.pth: features.* alexnet"):
        Lpips("alex", files / "vgg16.pth", files / "alex_heads.pth")
    with pytest.raises(UserError, match=r"alex_heads.pth: lin1.model.1.weight must be"):
        Lpips("vgg16", files / "vgg16.pth", files / "alex_heads.pth")
    with pytest.raises(ValueError, match="network must be one of alex, vgg16, got 'vgg'"):
        Lpips("vgg", files / "vgg16.pth")  # type: ignore[arg-type]


# --- The published package and weights, by hand -------------------------------------------------------------


@pytest.fixture(params=NETWORKS)
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Lpips:
    """LPIPS on the published weights."""
    network = request.param
    torch.save(published_weights.backbone(network), tmp_path / "backbone.pth")
    return Lpips(network, tmp_path / "backbone.pth", published_weights.heads_file(network))


@pytest.fixture
def theirs(own: Lpips, monkeypatch: pytest.MonkeyPatch) -> Iterator[nn.Module]:
    """The published LPIPS on the same weights."""
    yield from published_weights.published(own.network, monkeypatch)


def drawn(domain: str, count: int) -> Tensor:
    """Return the first test images of the built-in dataset, as [count, 3, 64, 64] in [-1, 1]."""
    pixels = np.stack([draw(domain, 0, "test", index) for index in range(count)])
    return to_unit_range(torch.from_numpy(pixels), torch.device("cpu"))


def changed_images() -> list[Tensor]:
    """Return four images of the built-in dataset, and the same with more and more blur and noise."""
    sharp = drawn("B", 4)
    noise = torch.randn(sharp.shape, generator=torch.Generator().manual_seed(0))
    blurred = [nn.functional.avg_pool2d(sharp, size, 1, size // 2) for size in (3, 5, 9)]
    return [sharp, *blurred, *((sharp + noise * amount).clamp(-1, 1) for amount in (0.05, 0.1, 0.3))]


# Distances between the first three images of A and of B, by the published package in float64.
GOLDEN = {
    "alex": [0.51290923, 0.63912049, 0.56086835],
    "vgg16": [0.26202939, 0.36557833, 0.25751556],
}


@pytest.mark.slow
def test_the_files_are_those_of_one_lpips(own: Lpips) -> None:
    """The heads are those that torchmetrics has, and those that are beside the converted convolutions."""
    assert own.protocol["heads_sha256"] == BACKBONES[own.network].sha256
    for head, other in zip(own.heads, published_weights.heads_beside(own.network), strict=True):
        assert torch.equal(head.weight, other)


@pytest.mark.slow
def test_distances_are_the_published_ones(own: Lpips) -> None:
    found = own.double()(drawn("A", 3).double(), drawn("B", 3).double())
    assert [round(distance, 8) for distance in found.tolist()] == GOLDEN[own.network]


@pytest.mark.slow
@torch.no_grad()
def test_distances_are_those_of_the_published_package(own: Lpips, theirs: nn.Module) -> None:
    """In float64 equal, and in float32 with at most twice the error of the package, or a few roundings."""
    pairs = [(drawn("A", 4), drawn("B", 4)), *((drawn("B", 4), images) for images in changed_images())]
    found = torch.stack([own(x, y) for x, y in pairs]).double()
    other = torch.stack([theirs(x, y).flatten() for x, y in pairs]).double()
    own.double(), theirs.double()
    exact = torch.stack([theirs(x.double(), y.double()).flatten() for x, y in pairs])
    torch.testing.assert_close(torch.stack([own(x.double(), y.double()) for x, y in pairs]), exact)
    few = 4 * torch.finfo(torch.float32).eps * exact.abs().max()
    assert (found - exact).abs().max() <= 2 * (other - exact).abs().max() + few


@pytest.mark.slow
@torch.no_grad()
def test_more_blur_and_noise_are_farther(own: Lpips) -> None:
    sharp, *changed = changed_images()
    distances = torch.stack([own(sharp, images) for images in (sharp, *changed)])
    blur, noise = distances[:4], distances[[0, 4, 5, 6]]
    assert (distances[0] == 0).all()
    assert (blur.diff(dim=0) > 0).all()
    assert (noise.diff(dim=0) > 0).all()
