"""Networks trained on ImageNet whose activations measure how images look: VGG-16, VGG-19 and AlexNet.

Only their convolutional parts, in plain torch, with the keys of torchvision's ``features`` (Simonyan &
Zisserman 2014, configurations D and E; Krizhevsky 2014, one column). Their weights come from the files that
torchvision publishes, which are downloaded into the cache folder and checked against their SHA-256.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from fastcyclegan.errors import UserError, cannot_write, shortened
from fastcyclegan.files.fetch import Log, Place, Progress, Wait, fetch_file, one_at_a_time
from fastcyclegan.kernels._cache import cache_folder
from fastcyclegan.nn.finite import require_representable
from fastcyclegan.tensor_files import load_tensors

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, for images in 0..1."""


class FeatureNetwork(nn.Module):
    """The convolutional part of a network, which returns the activations of the layers that are asked for.

    ``layers`` are all layers in order, by name. The weights are not initialised: load them with
    ``load_weights``.
    """

    def __init__(self, name: str, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.name = name
        self.layer_names = tuple(layers)
        self.features = nn.Sequential(*layers.values())

    def forward(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return the activations [N, C, h, w] of ``layers``, by name, for normalised ``images`` [N, 3, H, W].

        Nothing behind the last of these layers is computed, and no activation is changed in place. Images
        must have ``least_side_for(layers)`` pixels per side. Raises UserError for a name that is not a layer.
        """
        x, found = images, {}
        for name, layer in self._up_to(layers):
            x = layer(x)
            if name in layers:
                found[name] = x
        return found

    def _up_to(self, layers: Sequence[str]) -> list[tuple[str, nn.Module]]:
        """Return the names and layers up to the last of ``layers``."""
        for name in layers:
            if name not in self.layer_names:
                names = ", ".join(self.layer_names)
                raise UserError(f"{self.name} has no layer {shortened(repr(name))}; its layers are {names}")
        count = max((self.layer_names.index(name) + 1 for name in layers), default=0)
        return list(zip(self.layer_names, self.features, strict=True))[:count]

    def least_side_for(self, layers: Sequence[str]) -> int:
        """Return the side of the smallest images, in pixels, of which ``layers`` can be computed."""
        side = 1
        for _, layer in reversed(self._up_to(layers)):
            if isinstance(layer, nn.Conv2d):
                side = (side - 1) * layer.stride[0] + layer.kernel_size[0] - 2 * int(layer.padding[0])
            elif isinstance(layer, nn.MaxPool2d):
                assert isinstance(layer.stride, int)
                assert isinstance(layer.kernel_size, int)
                side = (side - 1) * layer.stride + layer.kernel_size
        return side

    @property
    def least_side(self) -> int:
        """The side of the smallest images, in pixels, of which all layers can be computed."""
        return self.least_side_for(self.layer_names)


def _convolution(in_channels: int, channels: int, size: int, stride: int = 1, padding: int = 1) -> nn.Module:
    """Return a convolution without values, so that building a network draws no random numbers."""
    return skip_init(nn.Conv2d, in_channels, channels, size, stride=stride, padding=padding)


def _vgg(name: str, counts: Sequence[int]) -> FeatureNetwork:
    """Return the VGG whose five blocks have ``counts`` convolutions."""
    layers: dict[str, nn.Module] = {}
    before = 3
    for block, (count, channels) in enumerate(zip(counts, (64, 128, 256, 512, 512), strict=True), 1):
        for number in range(1, count + 1):
            layers[f"conv{block}_{number}"] = _convolution(before, channels, 3)
            layers[f"relu{block}_{number}"] = nn.ReLU()
            before = channels
        layers[f"pool{block}"] = nn.MaxPool2d(2, 2)
    return FeatureNetwork(name, layers)


def vgg16() -> FeatureNetwork:
    """Return VGG-16, with the layers conv1_1, relu1_1, conv1_2, relu1_2, pool1, conv2_1, ... pool5."""
    return _vgg("vgg16", (2, 2, 3, 3, 3))


def vgg19() -> FeatureNetwork:
    """Return VGG-19, with the layers conv1_1, relu1_1, conv1_2, relu1_2, pool1, conv2_1, ... pool5."""
    return _vgg("vgg19", (2, 2, 4, 4, 4))


def alexnet() -> FeatureNetwork:
    """Return torchvision's AlexNet, with the layers conv1, relu1, pool1, ... conv5, relu5, pool5.

    There is no pool after the layers 3 and 4.
    """
    layers: dict[str, nn.Module] = {}
    convolutions = {
        1: _convolution(3, 64, 11, 4, 2),
        2: _convolution(64, 192, 5, 1, 2),
        3: _convolution(192, 384, 3),
        4: _convolution(384, 256, 3),
        5: _convolution(256, 256, 3),
    }
    for number, convolution in convolutions.items():
        layers |= {f"conv{number}": convolution, f"relu{number}": nn.ReLU()}
        if number not in (3, 4):
            layers[f"pool{number}"] = nn.MaxPool2d(3, 2)
    return FeatureNetwork("alexnet", layers)


FEATURE_NETWORKS: dict[str, Callable[[], FeatureNetwork]] = {
    "vgg16": vgg16,
    "vgg19": vgg19,
    "alexnet": alexnet,
}


def imagenet_normalized(images: Tensor) -> Tensor:
    """Return ``images`` [N, 3, H, W] in 0..1 with the mean and deviation of ImageNet's, as a network's input.

    Returns a new tensor of the same shape and dtype.
    """
    # Numbers instead of a tensor of them, which would be copied to the device in every call.
    channels = [(images[:, n] - mean) / std for n, (mean, std) in enumerate(zip(MEAN, STD, strict=True))]
    return torch.stack(channels, dim=1)


def load_weights(net: FeatureNetwork, file: Path) -> str:
    """Load torchvision's weights of ``net`` from ``file``, and return the SHA-256 of the file.

    The keys may lack their prefix "features.". Other entries, such as those of the classifier, are ignored.
    The network is then in float32 and in evaluation mode, and needs no gradients of its weights.

    Raises UserError if the file cannot be read, or if its weights are not finite or are those of another
    network.
    """
    entries = load_tensors(file)
    if not isinstance(entries, Mapping):
        raise UserError(f"{file}: not a dict of weights, but a {type(entries).__name__}")
    weights = {str(key): value for key, value in entries.items()}
    if not any(key.startswith("features.") for key in weights):
        weights = {f"features.{key}": value for key, value in weights.items()}
    wanted = net.state_dict()
    for key in weights:  # of a network with more layers
        if key.startswith("features.") and key not in wanted and key.split(".")[1].isdecimal():
            raise UserError(f"{file}: {shortened(key)} is not a weight of {net.name}")
    chosen = {key: _weight(weights, key, value.shape, net.name, file) for key, value in wanted.items()}
    require_representable(chosen, torch.float32, file)
    net.float().load_state_dict(chosen)
    net.eval().requires_grad_(False)
    return sha256_of(file)


def _weight(weights: Mapping[str, object], key: str, shape: torch.Size, name: str, file: Path) -> Tensor:
    """Return the weight ``key``. Raises UserError if it is missing, or not of floating point in ``shape``."""
    value = weights.get(key)
    if value is None:
        raise UserError(f"{file}: {key} is missing, so these are not the weights of {name}")
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise UserError(f"{file}: {key} is not a tensor of floating point, but {_kind(value)}")
    if value.shape != shape:
        raise UserError(
            f"{file}: {key} has the shape {list(value.shape)} instead of {list(shape)}, so these are not the"
            f" weights of {name}"
        )
    return value


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"of {value.dtype}"
    return f"a {type(value).__name__}"


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of ``file`` in hexadecimal. Raises OSError if it cannot be read."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class Published:
    """A file of weights that others publish: its name and address, its SHA-256, its size in bytes, and what
    it is.
    """

    file: str
    url: str
    sha256: str
    bytes: int
    title: str


def _of_torchvision(file: str, sha256: str, size: int, title: str) -> Published:
    return Published(file, f"https://download.pytorch.org/models/{file}", sha256, size, title)


PUBLISHED = {
    "vgg16": _of_torchvision(
        "vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        553_433_881,
        "torchvision's VGG-16, trained on ImageNet",
    ),
    "vgg19": _of_torchvision(
        "vgg19-dcbb9e9d.pth",
        "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
        574_673_361,
        "torchvision's VGG-19, trained on ImageNet",
    ),
    "alexnet": _of_torchvision(
        "alexnet-owt-7be5be79.pth",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        244_408_911,
        "torchvision's AlexNet, trained on ImageNet",
    ),
    "inception": Published(
        "inception-2015-12-05.pt",
        "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
        "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
        95_607_719,
        "the Inception of the FID as a TorchScript module, converted by NVIDIA",
    ),
}


def published_file(
    name: str,
    log: Log,
    progress: Progress,
    *,
    hint: str,
    wait: Wait = time.sleep,
    cache: Path | None = None,
) -> Path:
    """Return the published file ``name``, a key of ``PUBLISHED``, from the cache, downloading it if need be.

    ``cache`` defaults to ``$XDG_CACHE_HOME/fastcyclegan/features``. A partial download is kept there, and the
    next call resumes it. If several processes need the file, one of them downloads it. ``hint`` is the option
    by which a user can pass a file that was downloaded by other means, such as "--features FILE".

    Raises UserError if the file cannot be downloaded or written, or does not have the published SHA-256. A
    new file only gets its name if it does.
    """
    published = PUBLISHED[name]
    folder = cache_folder("features") if cache is None else cache
    file = folder / published.file
    if file.exists():
        return _as_published(file, published)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(file, log, wait):
            _download(published, file, log, progress, hint, wait)
    except OSError as error:
        raise cannot_write(file, error) from None
    return file


def _as_published(file: Path, published: Published) -> Path:
    """Return ``file``. Raises UserError if it cannot be read, or is not the published one."""
    if not file.is_file():  # reading a pipe could block forever
        raise UserError(f"{file}: not a regular file")
    try:
        found = sha256_of(file)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    if found != published.sha256:
        raise UserError(
            f"{file}: not {published.title}: its SHA-256 is {found} instead of {published.sha256}; remove it"
            " to download it again"
        )
    return file


def _download(published: Published, file: Path, log: Log, progress: Progress, hint: str, wait: Wait) -> None:
    """Download the published file to ``file``, unless another process has done so meanwhile."""

    def check(part: Path) -> None:
        found = sha256_of(part)
        if found != published.sha256:
            raise UserError(
                f"{published.url}: what was received is not {published.title}: its SHA-256 is {found} instead"
                f" of {published.sha256}, so it was deleted"
            )

    if file.exists():
        _as_published(file, published)
        return
    log(f"downloading {published.title} ({published.bytes / 2**20:,.0f} MiB) from {published.url}")
    place = Place(file, file.with_name(f"{file.name}.part"), file.with_name(f"{file.name}.part.json"))
    try:
        fetch_file(published.url, place, by_hand=hint, log=log, progress=progress, wait=wait, check=check)
    except UserError as error:
        if hint in str(error):
            raise
        raise UserError(f"{error}; download it by other means and pass it as {hint}") from None
