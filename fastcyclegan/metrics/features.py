"""Feature networks: load one, and compute the features of images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastcyclegan.errors import UserError, is_out_of_memory, one_line, shortened
from fastcyclegan.metrics.resize import resized
from fastcyclegan.nn import feature_networks
from fastcyclegan.nn.feature_networks import (
    PUBLISHED,
    imagenet_normalized,
    load_weights,
    published_file,
    sha256_of,
)
from fastcyclegan.settings.metrics import MetricConfig, ResizeRule

Pixels = NDArray[np.uint8]
Log = Callable[[str], None]
Module = Callable[[Tensor], Tensor]
BATCH = 16


class Features:
    """Computes the features of images by a network.

    ``run`` maps float images [N, 3, H, W] in 0..255 on ``device`` to features [N, D]. ``name`` is how
    messages call the network, and ``sha256`` the digest of its file. ``kind`` is what the protocol calls it,
    in which the name of a file is of no importance.
    """

    def __init__(
        self,
        name: str,
        sha256: str,
        run: Module,
        side: int | None,
        rule: ResizeRule,
        device: torch.device,
        kind: str = "TorchScript",
    ) -> None:
        self.name, self.sha256, self.run, self.kind = name, sha256, run, kind
        self.side, self.rule, self.device = side, rule, device

    @property
    def protocol(self) -> dict[str, Any]:
        """What the features depend on besides the images."""
        return {
            "network": self.kind,
            "sha256": self.sha256,
            "side": self.side,
            "resize": "none" if self.side is None else self.rule,
        }

    def of(self, images: Iterable[Pixels]) -> Tensor:
        """Return the features [N, D] of ``images`` [H, W, 3], in float32 on the CPU.

        Images are held in memory one batch at a time. Raises UserError if the network does not return one
        row of finite numbers for each image.
        """
        found = [self._of_batch(batch) for batch in _batches(images, self.side, self.rule)]
        if not found:
            raise UserError("there are no images to compute features of")
        widths = {rows.shape[1] for rows in found}
        if len(widths) > 1:
            raise UserError(
                f"{self.name}: returns {min(widths)} features for some images and {max(widths)} for others;"
                " give --features_size"
            )
        return torch.cat(found)

    def _of_batch(self, batch: Tensor) -> Tensor:
        try:
            with torch.no_grad(), exact_convolutions(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of old modules about their operators
                rows: Any = self.run(batch.to(self.device))
        except Exception as error:  # a module of the user can raise anything
            if is_out_of_memory(error):
                raise
            shape = "x".join(map(str, batch.shape))
            raise UserError(f"{self.name}: fails for images {shape}: {_last_line(error)}") from None
        return self._checked(rows, len(batch))

    def _checked(self, rows: Any, count: int) -> Tensor:
        """Return the features ``rows`` of ``count`` images in float32 on the CPU, if they can be features."""
        wanted = f"it must return features [{count}, D] for {count} images"
        if not isinstance(rows, Tensor):
            raise UserError(f"{self.name}: {wanted}, got {type(rows).__name__}")
        if rows.dim() != 2 or rows.shape[0] != count or not rows.shape[1] or not rows.is_floating_point():
            raise UserError(f"{self.name}: {wanted}, got {rows.dtype} {list(rows.shape)}")
        features = rows.float().cpu()
        if not features.isfinite().all():  # in float32
            raise UserError(f"{self.name}: its features are not finite")
        return features


def _last_line(error: Exception) -> str:
    """Return the last line of the message of ``error``. Those before it are a traceback of TorchScript."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return shortened(lines[-1].strip(), 200) if lines else one_line(error)


def exact_convolutions() -> Any:
    """Compute convolutions in full float32, with the same algorithm each time."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def _batches(images: Iterable[Pixels], side: int | None, rule: ResizeRule) -> Iterator[Tensor]:
    """Yield batches [N, 3, H, W] of consecutive images of the same size after resizing."""
    waiting: list[Tensor] = []
    for image in images:
        pixels = resized(image, side, rule)
        if waiting and (len(waiting) == BATCH or waiting[0].shape != pixels.shape):
            yield torch.stack(waiting)
            waiting = []
        waiting.append(pixels)
    if waiting:
        yield torch.stack(waiting)


def _quietly(received: int, total: int) -> None:
    """Show no progress: a line has said how large the file is."""


def load_features(config: MetricConfig, device: torch.device, log: Log = lambda line: None) -> Features:
    """Load the feature network that ``config`` names. A published file is downloaded once.

    Raises UserError if it cannot be downloaded or read.
    """
    if config.features == "vgg16":
        return _vgg16(config, device, log)
    if config.features == "inception":
        file = published_file("inception", log, _quietly, hint="--features FILE")
    else:
        file = Path(config.features)
        if not file.is_file():
            problem = "not a file" if file.exists() else "no such file"
            raise UserError(f"{file}: {problem}; features must be inception, vgg16 or a file")
    digest = sha256_of(file)
    module = _script_module(file, device)
    if digest == PUBLISHED["inception"].sha256:
        side = 299 if config.features_size is None else config.side
        run = _of_inception(module, file)
        return Features("inception", digest, run, side, config.resize, device, "inception")
    return Features(file.name, digest, module, config.side, config.resize, device)


def _script_module(file: Path, device: torch.device) -> Any:
    """Load a TorchScript module, in evaluation mode.

    Its code has no access to Python, but to PyTorch's operators, one of which maps files into memory.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces a successor of TorchScript
            return torch.jit.load(str(file), map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"{file}: not a TorchScript module that torch can load (torch.jit.save writes one):"
            f" {shortened(one_line(error), 100)}"
        ) from None


def _of_inception(module: Any, file: Path) -> Module:
    """Return the function that computes the features of the published module.

    The module itself would resize the images by a rule of its own, and return class probabilities.
    """
    layers = getattr(module, "layers", None)
    if layers is None:
        raise UserError(f"{file}: lacks the layers of the published network")

    def run(images: Tensor) -> Tensor:
        rows: Tensor = layers.forward((images - 128) / 128)
        return rows.flatten(1)

    return run


def _vgg16(config: MetricConfig, device: torch.device, log: Log) -> Features:
    """Return the means over all places of VGG16's last layer, relu5_3, as 512 features."""
    file = config.feature_weights
    if file is None:
        file = published_file("vgg16", log, _quietly, hint="--feature_weights FILE")
    net = feature_networks.vgg16()
    digest = load_weights(net, file)
    placed: nn.Module = net.to(device)

    def run(images: Tensor) -> Tensor:
        layers: dict[str, Tensor] = placed(imagenet_normalized(images / 255), ("relu5_3",))
        return layers["relu5_3"].mean((2, 3))

    name = "vgg16 relu5_3"
    return Features(name, digest, run, config.side, config.resize, device, name)
