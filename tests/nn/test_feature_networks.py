"""Feature networks: the layers against plain functions, files of weights, and downloads of them."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fastcyclegan.errors import UserError
from fastcyclegan.files.fetch import TRIES
from fastcyclegan.nn import feature_networks
from fastcyclegan.nn.feature_networks import (
    FEATURE_NETWORKS,
    PUBLISHED,
    FeatureNetwork,
    alexnet,
    imagenet_normalized,
    load_weights,
    published_file,
    sha256_of,
)
from tests.file_server import Server, serving
from tests.nn.plain_features import Weights, alexnet_relu, random_weights, vgg16_relu, vgg19_relu
from tests.training.limits import no_file_longer_than

# --- The networks -------------------------------------------------------------------------------------------


def with_random_weights(name: str) -> tuple[FeatureNetwork, Weights]:
    """Return the network in float64 and its weights."""
    net = FEATURE_NETWORKS[name]().double()
    weights = random_weights(net, torch.float64)
    net.load_state_dict(weights)
    return net, weights


# By network: its function, and the layers with the numbers of convolutions up to them, at the end, in the
# middle and next to pools.
CASES = {
    "vgg16": (
        vgg16_relu,
        {"relu1_1": 1, "relu1_2": 2, "relu2_2": 4, "relu3_3": 7, "relu4_3": 10, "relu5_3": 13},
    ),
    "vgg19": (vgg19_relu, {"relu1_2": 2, "relu2_1": 3, "relu3_4": 8, "relu4_4": 12, "relu5_4": 16}),
    "alexnet": (alexnet_relu, {"relu1": 1, "relu2": 2, "relu3": 3, "relu4": 4, "relu5": 5}),
}


@pytest.mark.parametrize("name", CASES)
def test_activations_are_those_of_plain_functions(name: str) -> None:
    """The same operators on the same numbers, so that the results are equal."""
    expected, layers = CASES[name]
    net, weights = with_random_weights(name)
    images = torch.randn(2, 3, 71, 64, dtype=torch.float64)
    found = net(images, list(layers))
    assert list(found) == list(layers)
    with torch.no_grad():
        for layer, count in layers.items():
            assert torch.equal(found[layer], expected(images, weights, count)), layer
            assert found[layer].std() > 0.01


def test_layers_before_the_relu_and_pools() -> None:
    net, _ = with_random_weights("vgg19")
    found = net(torch.randn(1, 3, 32, 32, dtype=torch.float64), ["conv5_4", "relu5_4", "pool5", "conv1_1"])
    assert torch.equal(F.relu(found["conv5_4"]), found["relu5_4"])
    assert (found["conv5_4"] < 0).any()  # not changed in place
    assert torch.equal(F.max_pool2d(found["relu5_4"], 2), found["pool5"])
    assert found["conv1_1"].shape == (1, 64, 32, 32)


@pytest.mark.parametrize(("name", "indices"), [
    ("vgg16", {"relu1_2": 3, "relu2_2": 8, "relu3_3": 15, "relu4_3": 22, "relu5_3": 29, "pool5": 30}),
    ("vgg19", {"conv5_4": 34, "relu5_4": 35, "pool5": 36}),
    ("alexnet", {"conv1": 0, "pool1": 2, "conv2": 3, "conv3": 6, "conv4": 8, "conv5": 10, "pool5": 12}),
])  # fmt: skip
def test_layers_have_the_indices_of_torchvision(name: str, indices: dict[str, int]) -> None:
    names = FEATURE_NETWORKS[name]().layer_names
    assert {layer: names.index(layer) for layer in indices} == indices
    assert len(names) == max(indices.values()) + 1


def test_nothing_behind_the_last_layer_is_computed() -> None:
    net, _ = with_random_weights("vgg16")
    ran: list[int] = []
    for index, layer in enumerate(net.features):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    found = net(torch.zeros(1, 3, 8, 8, dtype=torch.float64), ["relu2_1", "relu1_1"])
    assert ran == [0, 1, 2, 3, 4, 5, 6]
    assert set(found) == {"relu2_1", "relu1_1"}
    assert net(torch.zeros(1), []) == {}


@pytest.mark.parametrize("layers", [["relu5_4"], ["relu1_2", "relu6"], [""], "relu1_1"])
def test_a_layer_that_does_not_exist_is_refused(layers: Sequence[str]) -> None:
    net = FEATURE_NETWORKS["vgg16"]()
    with pytest.raises(
        UserError, match=r"vgg16 has no layer '.*'; its layers are conv1_1, relu1_1, .* pool5"
    ):
        net(torch.zeros(1, 3, 32, 32), layers)


@pytest.mark.parametrize(("name", "whole"), [("vgg16", 32), ("vgg19", 32), ("alexnet", 63)])
def test_the_smallest_images(name: str, whole: int) -> None:
    """One pixel less is too little for torch, with the minimum sizes that torchvision states."""
    net = FEATURE_NETWORKS[name]()
    assert net.least_side == whole
    for layer in net.layer_names:
        side = net.least_side_for([layer])
        assert net(torch.zeros(1, 3, side, side), [layer])[layer].shape[2:] == (1, 1)
        if side > 1:
            with pytest.raises(RuntimeError):
                net(torch.zeros(1, 3, side - 1, side - 1), [layer])


@pytest.mark.parametrize("name", FEATURE_NETWORKS)
def test_building_a_network_draws_no_random_numbers(name: str) -> None:
    before = torch.get_rng_state()
    assert FEATURE_NETWORKS[name]().name == name
    assert torch.equal(torch.get_rng_state(), before)


def test_images_are_normalized_as_for_imagenet() -> None:
    images = torch.rand(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(1, 3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(1, 3, 1, 1)
    normalized = imagenet_normalized(images)
    torch.testing.assert_close(normalized, (images - mean) / deviation)
    (gradient,) = torch.autograd.grad(normalized.sum(), images)
    torch.testing.assert_close(gradient, (1 / deviation).expand_as(images))


# --- Files of weights ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Weights of AlexNet, the smallest network."""
    return random_weights(alexnet())


@pytest.mark.parametrize("prefix", ["features.", ""])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_loads_the_weights_of_torchvision(
    tmp_path: Path, weights: Weights, prefix: str, dtype: torch.dtype
) -> None:
    file = tmp_path / "weights.pth"
    saved = {key.replace("features.", prefix): value.to(dtype) for key, value in weights.items()}
    torch.save({**saved, "classifier.1.weight": torch.zeros(2, 2), "version": 1}, file)
    net = alexnet().double().train()
    assert load_weights(net, file) == hashlib.sha256(file.read_bytes()).hexdigest()
    for key, value in net.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, weights[key])
    assert not net.training
    assert not any(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize(("change", "message"), [
    ({"features.3.bias": None}, "features.3.bias is missing, so these are not the weights of alexnet"),
    ({"features.3.bias": torch.zeros(191)}, r"features.3.bias has the shape \[191\] instead of \[192\]"),
    ({"features.12.weight": torch.zeros(1)}, "features.12.weight is not a weight of alexnet"),
    ({"features.10.bias": torch.full((256,), torch.nan)}, "features.10.bias contains nan"),
    ({"features.10.bias": torch.full((256,), -torch.inf)}, "features.10.bias contains -inf"),
    ({"features.10.bias": torch.full((256,), 1e300, dtype=torch.float64)}, "features.10.bias contains"),
    ({"features.0.bias": torch.zeros(64, dtype=torch.int64)}, "features.0.bias is not a tensor of floating"),
    ({"features.0.bias": [0.0] * 64}, "features.0.bias is not a tensor of floating point, but a list"),
], ids=["missing", "shape", "extra", "nan", "inf", "too large", "integers", "list"])  # fmt: skip
def test_other_weights_are_refused(
    tmp_path: Path, weights: Weights, change: dict[str, object], message: str
) -> None:
    file = tmp_path / "weights.pth"
    changed = {key: value for key, value in (weights | change).items() if value is not None}
    torch.save(changed, file)
    with pytest.raises(UserError, match=f"weights.pth: {message}") as error:
        load_weights(alexnet(), file)
    assert "\n" not in str(error.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    for value, message in (
        ([torch.zeros(1)], "not a dict of weights, but a list"),
        ({}, "features.0.weight is missing"),
        ({"state_dict": {}}, "features.0.weight is missing"),
    ):
        torch.save(value, tmp_path / "weights.pth")
        with pytest.raises(UserError, match=f"weights.pth: {message}"):
            load_weights(alexnet(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match="no such file"):
        load_weights(alexnet(), tmp_path / "none.pth")


# --- Published files ----------------------------------------------------------------------------------------

CONTENT = bytes(range(256)) * 100
HINT = "--features FILE"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of a file that stands for the published AlexNet."""
    published = PUBLISHED["alexnet"]
    with serving(CONTENT, published.file) as state:
        own = replace(
            published,
            url=f"{state.url}/{published.file}",
            sha256=hashlib.sha256(CONTENT).hexdigest(),
            bytes=len(CONTENT),
        )
        monkeypatch.setitem(feature_networks.PUBLISHED, "alexnet", own)
        yield state


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def cached(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "fastcyclegan" / "features" / PUBLISHED["alexnet"].file


def fetch(logged: list[str] | None = None, **options: object) -> Path:
    given: dict = {"wait": lambda seconds: None, "progress": lambda received, total: None, **options}
    return published_file("alexnet", ([] if logged is None else logged).append, hint=HINT, **given)


def test_a_published_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    logged: list[str] = []
    server.breaks = [1000]
    assert fetch(logged) == fetch(logged) == cached(tmp_path)
    assert cached(tmp_path).read_bytes() == CONTENT
    assert server.requested == [None, "bytes=1000-"]
    assert logged[
        0
    ] == f"downloading torchvision's AlexNet, trained on ImageNet (0 MiB) from {server.url}/" + (
        PUBLISHED["alexnet"].file
    )
    assert fetch(cache=tmp_path / "mine") == tmp_path / "mine" / PUBLISHED["alexnet"].file


def test_a_file_with_another_digest_never_gets_the_name(server: Server, tmp_path: Path) -> None:
    server.content = b"<html>a proxy's page</html>"
    digest = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(UserError) as error:
        fetch()
    for part in (PUBLISHED["alexnet"].url, digest, PUBLISHED["alexnet"].sha256, f"pass it as {HINT}"):
        assert part in str(error.value)
    assert [file.suffix for file in cached(tmp_path).parent.iterdir()] == [".lock"]
    server.content = CONTENT
    assert fetch().read_bytes() == CONTENT


def test_a_damaged_file_in_the_cache_is_refused(server: Server, tmp_path: Path) -> None:
    """It may have been put there by hand, so it is not deleted."""
    fetch().write_bytes(CONTENT + b"x")
    with pytest.raises(UserError) as error:
        fetch()
    digest = hashlib.sha256(CONTENT + b"x").hexdigest()
    for part in (
        str(cached(tmp_path)),
        digest,
        PUBLISHED["alexnet"].sha256,
        "remove it to download it again",
    ):
        assert part in str(error.value)
    cached(tmp_path).unlink()
    assert fetch().read_bytes() == CONTENT


def test_a_pipe_in_the_cache_is_refused(server: Server, tmp_path: Path) -> None:
    cached(tmp_path).parent.mkdir(parents=True)
    os.mkfifo(cached(tmp_path))
    with pytest.raises(UserError, match="not a regular file"):
        fetch()


@pytest.mark.parametrize("problem", ["unreachable", "missing", "failing"])
def test_without_the_server_a_message_names_the_address_and_the_option(
    server: Server, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    url = PUBLISHED["alexnet"].url
    if problem == "unreachable":
        url = "http://127.0.0.1:9/alexnet.pth"
        monkeypatch.setitem(feature_networks.PUBLISHED, "alexnet", replace(PUBLISHED["alexnet"], url=url))
    server.status = {"missing": 404, "failing": 503}.get(problem, 200)
    with pytest.raises(UserError) as error:
        fetch()
    assert url in str(error.value)
    assert str(error.value).endswith(f"by other means and pass it as {HINT}")
    assert str(error.value).count(HINT) == 1
    assert "\n" not in str(error.value)


def test_a_download_is_resumed_by_a_later_call(server: Server, tmp_path: Path) -> None:
    server.breaks = [1000] + [0] * TRIES
    with pytest.raises(UserError):
        fetch()
    assert not cached(tmp_path).exists()
    server.requested.clear()
    assert fetch().read_bytes() == CONTENT
    assert server.requested == ["bytes=1000-"]


def test_a_full_disk(server: Server, tmp_path: Path) -> None:
    with (
        no_file_longer_than(5000),
        pytest.raises(UserError, match=r"cannot write .*alexnet.*: File too large"),
    ):
        fetch()
    assert not cached(tmp_path).exists()
    assert fetch().read_bytes() == CONTENT


def test_a_cache_that_is_no_folder(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*alexnet.*: Not a directory"):
        fetch()
    assert server.requested == []


def test_two_processes_download_a_file_once(server: Server, tmp_path: Path) -> None:
    """The second waits for the first. A thread is like a process here: it opens the lock's file anew."""
    files: list[Path] = []
    logged: list[str] = []
    server.breaks = [1000]
    waiting = threading.Event()
    second = threading.Thread(target=lambda: files.append(fetch(logged, wait=lambda seconds: waiting.set())))

    def let_the_second_wait(seconds: float) -> None:
        second.start()
        assert waiting.wait(60)

    files.append(fetch(wait=let_the_second_wait))
    second.join()
    assert files == [cached(tmp_path)] * 2
    assert cached(tmp_path).read_bytes() == CONTENT
    assert server.requested == [None, "bytes=1000-"]
    assert logged == [f"{cached(tmp_path).name}: waiting for another process, which is downloading it"]


def test_the_table_of_published_files() -> None:
    """torchvision's names hold the first digits of the digest."""
    assert set(PUBLISHED) == {*FEATURE_NETWORKS, "inception"}
    for name, published in PUBLISHED.items():
        assert published.url.startswith("https://")
        assert published.url.endswith(f"/{published.file}")
        assert len(bytes.fromhex(published.sha256)) == 32
        if name in FEATURE_NETWORKS:
            assert published.file.endswith(f"-{published.sha256[:8]}.pth")
    for one, other in pairwise(PUBLISHED.values()):
        assert one.sha256 != other.sha256


def test_the_digest_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert sha256_of(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
