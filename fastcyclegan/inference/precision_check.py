"""Compare the 8-bit images of a network in bf16 with those in fp32, and choose the precision by that."""

from __future__ import annotations

import copy
import math
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from fastcyclegan.data.builtin import draw
from fastcyclegan.data.pixels import to_image
from fastcyclegan.data.sample_plan import uniforms
from fastcyclegan.engine.devices import has_bf16, resolve_precision
from fastcyclegan.inference.translator import Translator
from fastcyclegan.kernels.cpu.convolution import recorded
from fastcyclegan.kernels.cpu.processors import processor
from fastcyclegan.nn.layer_table import convolutions_computed_by, describe_convolutions
from fastcyclegan.nn.networks import computed_by, set_impl

Pixels = NDArray[np.uint8]

# bf16 is used if at least this share of the 8-bit values is within 1/255 of fp32.
ENOUGH = 0.999
# Side of the test images in pixels, unless the network needs a larger multiple. Both have 98,304 values.
SIDE = 128
# Standard deviation of their texture, of 255. With it, trained weights agree as well as on photographs.
TEXTURE = 20


@dataclass(frozen=True)
class Agreement:
    """How well 8-bit images agree.

    ``share`` is that of the values which differ by at most 1, and ``largest`` the largest difference.
    """

    share: float
    largest: int

    @property
    def is_enough(self) -> bool:
        """Whether bf16 can replace fp32."""
        return self.share >= ENOUGH

    @property
    def percent(self) -> str:
        """The share in percent, rounded down, so that 100 % means all values."""
        return f"{int(self.share * 10_000) / 100:.2f} %"


def agreement(pairs: Sequence[tuple[Pixels | None, Pixels | None]]) -> Agreement:
    """Compare the images of each pair.

    None is an image that the network gives no numbers for. If only one image of a pair is None, none of the
    values agree; if both are, the pair does not count.
    """
    within = values = largest = 0
    for one, other in pairs:
        present = [image for image in (one, other) if image is not None]
        if one is None or other is None:
            values += sum(image.size for image in present)
            largest = max([largest, *(255 for _ in present)])
            continue
        difference = np.abs(one.astype(np.int16) - other.astype(np.int16))
        within, values = within + int((difference <= 1).sum()), values + difference.size
        largest = max(largest, int(difference.max()))
    return Agreement(within / values if values else 1.0, largest)


def check_images(channels: int, multiple: int) -> list[Tensor]:
    """Return two images [S, S, C] uint8 that depend on nothing but ``channels`` and the side S.

    They show scenes of the built-in dataset, enlarged and with a texture. S is the smallest multiple of
    ``multiple`` that is at least SIDE.
    """
    side = -(-SIDE // multiple) * multiple
    images = []
    for number, domain in enumerate("AB"):
        scene = to_image(draw(domain, 0, "train", 0)).resize((side, side), Image.Resampling.BICUBIC)
        pixels = np.asarray(scene)[:, :, np.arange(channels) % 3] + TEXTURE * _texture(side, channels, number)
        images.append(torch.from_numpy(pixels.round().clip(0, 255).astype(np.uint8)))
    return images


def _texture(side: int, channels: int, number: int) -> NDArray[np.float64]:
    """Return noise [S, S, C] of mean 0 and deviation 1, whose amplitudes fall with the frequency f as 1/f.

    Those of photographs do (D. J. Field, "Relations between the statistics of natural images and the response
    properties of cortical cells", 1987). Uniform areas are different: instance norm magnifies rounding there.
    """
    noise = uniforms(side * side * channels, 0, 0, number).reshape(side, side, channels)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None, :])
    frequency[0, 0] = math.inf  # no mean
    noise += noise.mean(axis=2, keepdims=True) * channels  # mostly gray, as photographs are
    texture = np.fft.ifft2(np.fft.fft2(noise, axes=(0, 1)) / frequency[:, :, None], axes=(0, 1)).real
    normal: NDArray[np.float64] = texture / texture.std()
    return normal


def measured_agreement(net: nn.Module, device: torch.device) -> Agreement:
    """Return how well bf16 agrees with fp32 on ``check_images``, computed without torch.compile.

    Networks that Triton kernels compute are compared with PyTorch's operators in fp32, because the kernels
    would have to be compiled for that.
    """
    narrow, wide = Translator(net, device, "bf16"), Translator(_in_fp32(net), device, "fp32")
    images = check_images(narrow.channels, narrow.multiple)
    return agreement(list(zip(wide(images), narrow(images), strict=True)))


def _in_fp32(net: nn.Module) -> nn.Module:
    """Return ``net``, or a copy on the same weights that PyTorch's operators compute instead of kernels."""
    if computed_by(net) != "triton":
        return net
    shared = {id(tensor): tensor for tensor in (*net.parameters(), *net.buffers())}
    copied: nn.Module = copy.deepcopy(net, shared)
    set_impl(copied, "reference")
    return copied


def gains_from_bf16(net: nn.Module, device: torch.device, compiled: bool) -> bool:
    """Return whether ``net`` is expected to be faster in bf16 on ``device``.

    This is a rule, and not a measurement, so that a machine always decides in the same way. A processor with
    AMX is faster with any operators (PyTorch's took 0.09 s instead of 0.26 s for a generator of 9 blocks on
    128x128). With AVX512_BF16 alone, PyTorch's operators spend what they save on conversions.
    """
    # ATEN_CPU_CAPABILITY can limit a processor to AVX2, which has no instructions for bf16.
    if not has_bf16(device) or (device.type == "cpu" and processor() == "avx2"):
        return False
    with torch.no_grad():  # where a gradient is asked for, PyTorch's operators compute it
        is_enough = compiled or computed_by(net) != "reference"
    return device.type == "cuda" or is_enough or torch.cpu._is_amx_tile_supported()


def choose_precision(net: nn.Module, device: torch.device, compiled: bool) -> tuple[str, str]:
    """Return the precision for ``net``, "fp32" or "bf16", and what was measured, in words, or "".

    bf16 is chosen where it is expected to be faster, if the images agree well enough with those in fp32. No
    image of the user is looked at, so the translation of an image never depends on the others.
    """
    if not gains_from_bf16(net, device, compiled):
        return "fp32", ""
    found = measured_agreement(net, device)
    if found.is_enough:
        return "bf16", f"{found.percent} of the values within 1/255 of fp32"
    return "fp32", f"in bf16, only {found.percent} of the values are within 1/255"


_chosen: weakref.WeakKeyDictionary[nn.Module, tuple[Any, str]] = weakref.WeakKeyDictionary()


def precision_for(net: nn.Module, device: torch.device, asked: str) -> str:
    """Return the precision in which to translate with ``net``, which is moved to ``device``.

    The choice that "auto" makes is kept until PyTorch counts a change of the weights. Raises UserError if
    ``asked`` is bf16 on a device that does not have it.
    """
    if asked != "auto":
        return resolve_precision(asked, device, compiled=False)
    weights = device, tuple((p.data_ptr(), p._version) for p in net.parameters())
    known = _chosen.get(net)
    if known is None or known[0] != weights:
        net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        precision, _ = choose_precision(net, device, compiled=False)
        weights = device, tuple((p.data_ptr(), p._version) for p in net.parameters())
        known = _chosen[net] = weights, precision
    return known[1]


@dataclass(frozen=True)
class Check:
    """The results of bf16 and fp32 on some images, and the seconds that each takes for an image."""

    agreement: Agreement
    seconds: dict[str, float]
    images: int
    layers: list[str]
    """Lines that say what computes the convolutions on a CPU."""

    def describe(self, total: int) -> str:
        """Return one line. ``total`` is the number of images from which those of the check were taken."""
        count = f"{self.images} of {total} images" if self.images < total else f"{total} images"
        if total == 1:
            count = "1 image"
        speeds = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in self.seconds.items())
        return (
            f"check of {count}: in bf16, {self.agreement.percent} of the values are within 1/255 of fp32, and"
            f" the largest difference is {self.agreement.largest}/255; an image takes: {speeds}"
        )


def _translated(translator: Translator, image: Tensor) -> Pixels | None:
    return translator([image])[0]


def check(
    translators: dict[str, Translator],
    images: Sequence[Tensor],
    translate: Callable[[Translator, Tensor], Pixels | None] = _translated,
) -> Check:
    """Translate uint8 ``images`` [H, W, C] one by one in both precisions, the keys of ``translators``.

    Each image is translated twice, and the second time is measured: the first includes compiling.
    ``translate`` applies a translator to an image.
    """
    results: dict[str, list[Pixels | None]] = {name: [] for name in translators}
    seconds = dict.fromkeys(translators, 0.0)
    layers: list[str] = []
    for image in images:
        for name, translator in translators.items():
            with recorded() as calls:
                translate(translator, image)
            if image is images[0] and translator.device.type == "cpu":
                counts = describe_convolutions(convolutions_computed_by(translator.net, calls))
                layers.append(f"convolutions in {name}: {counts}")
            started = time.perf_counter()
            results[name].append(translate(translator, image))
            seconds[name] += (time.perf_counter() - started) / len(images)
    pairs = list(zip(results["fp32"], results["bf16"], strict=True))
    return Check(agreement(pairs), seconds, len(images), layers)
