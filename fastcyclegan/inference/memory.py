"""Estimate the memory that a generator needs on a CPU, and what fits into the memory that there is."""

from __future__ import annotations

import copy
import weakref
from pathlib import Path

import torch
from torch import Tensor, nn

from fastcyclegan import reference
from fastcyclegan.data.host_memory import available_memory
from fastcyclegan.inference.translator import Translator

# The estimate was compared with the growth of the resident memory (torch 2.13, one thread, fp32, up to 4
# megapixels, in one image or four). Bytes per pixel, estimated and real, at 1 megapixel or more:
# resnet_9blocks 780 and 787, with ngf 32 396 and 401, with ngf 8 108 and 112, unet_256 280 and 292. So 5 % is
# added. For smaller images, up to 88 MiB more were used, for code and for weights in oneDNN's own layouts.
# bf16 needs less: resnet_9blocks 662, unet_256 229.
FACTOR = 1.05
FIXED = 128 * 2**20
# The pixels before and after the network: 3 bytes as integers and 12 as floats, and a byte to spare.
AROUND = 16
# The networks pad by up to 3 pixels on each side, which only matters in narrow images.
MARGIN = 6
# More than any usual network needs per pixel (the largest official one: 780 bytes). What fits by this figure
# needs no estimate.
GENEROUS = 16_384
# Side of the image with which a network is tried out. In smaller ones, the padding would count too much.
TRIAL_SIDE = 64


class _Live:
    """Hooks that add up the bytes of the tensors that are alive while a network runs, and keep the peak."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def before(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._track(inputs[0])

    def after(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._track(output)
        self.peak = max(self.peak, sum(self.sizes.values()) + _temporary_bytes(module, inputs[0]))

    def _track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address not in self.sizes:
            self.sizes[address] = storage.nbytes()
            weakref.finalize(storage, self.sizes.pop, address, None)


def _temporary_bytes(module: nn.Module, x: Tensor) -> int:
    """Return the bytes of the tensors that exist only inside ``module`` while it runs on ``x``.

    torch's instance norm works in NCHW and the convolutions of a translator in channels_last, so each copies
    what the other returns.
    """
    if isinstance(module, reference.ResizeConv2d):
        return 8 * x.nbytes  # the padded input at twice the size, and its copy
    if isinstance(module, (reference.AntialiasedDownsample, reference.AntialiasedUpsample)):
        return x.nbytes  # the padded input
    layout = torch.channels_last
    if isinstance(module, nn.InstanceNorm2d):
        layout = torch.contiguous_format
    elif not isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        return 0
    return 0 if x.is_contiguous(memory_format=layout) else x.nbytes


def bytes_per_pixel(net: nn.Module, channels: int, side: int) -> float:
    """Return the peak memory of PyTorch's operators per pixel of the input of ``net``, in fp32 on a CPU.

    The network, whose weights are channels_last, runs once, on an image of ``side`` x ``side``. The weights
    are not included.
    """
    weights = [*net.parameters(), *net.buffers()]
    copied: nn.Module = copy.deepcopy(net, {id(tensor): tensor for tensor in weights})
    live = _Live()
    for module in copied.modules():  # layers with hooks run PyTorch's operators, whatever the network's impl
        module.register_forward_pre_hook(live.before)
        module.register_forward_hook(live.after)
    image = torch.zeros(1, channels, side, side, dtype=torch.float32).contiguous(
        memory_format=torch.channels_last
    )
    with torch.inference_mode():
        copied(image)
    return live.peak / side**2


def bytes_of_forms(net: nn.Module) -> int:
    """Return the memory of the forms of the weights that an engine keeps on a CPU, at most.

    The kernels keep a copy of each weight, and its form: Winograd's transform of a 3x3 weight has 6x6
    values, four times as many, and other forms have as many as the weight.
    """
    if getattr(net, "impl", "reference") == "reference":
        return 0
    total = 0
    for p in net.parameters():
        if p.dim() == 4:
            total += p.nbytes * (5 if p.shape[2:] == (3, 3) else 2)
    return total


def size_of(count: int) -> str:
    """Return a number of bytes in words."""
    if count < 2**30:
        return f"{count / 2**20:.1f} MiB"
    return f"{count / 2**30:,.1f} GiB"


def forms_to_make(translator: Translator) -> int:
    """Return the memory of the forms of the weights on a CPU, at most, if the translator lacks them."""
    return 0 if translator.engine.keeps_forms else bytes_of_forms(translator.net)


class Budget:
    """Decides how many images of one size a translator on the CPU can translate at once.

    A GPU needs none: it reports that its memory is used up, also by graphs and working copies, which are then
    given up.
    """

    def __init__(self, translator: Translator) -> None:
        self.translator = translator
        self._per_pixel: float | None = None

    def needed(self, images: int, height: int, width: int) -> int:
        """Return the bytes that ``images`` images of a padded size need at the peak.

        That includes the forms of the weights, unless the translator already has them.
        """
        if self._per_pixel is None:
            side = max(self.translator.multiple, TRIAL_SIDE)
            self._per_pixel = bytes_per_pixel(self.translator.net, self.translator.channels, side)
        activations = (self._per_pixel + AROUND) * images * (height + MARGIN) * (width + MARGIN)
        return int(FACTOR * activations + min(activations, FIXED)) + forms_to_make(self.translator)

    def count(self, images: int, height: int, width: int) -> int:
        """Return how many of ``images`` images of a padded size fit into the available memory at once."""
        available = available_memory()
        if available is None or images * height * width * GENEROUS < available:
            return images
        while images and self.needed(images, height, width) > available:
            images -= 1
        return images

    def describe(self, height: int, width: int) -> str:
        """Return the need of an image of a padded size and, if it is known, the memory that is left."""
        text = f"it needs about {size_of(self.needed(1, height, width))}"
        available = available_memory()
        if available is not None:
            limits = [available, _free_addresses()]
            free = min(limit for limit in limits if limit is not None)
            text += f", and {size_of(free)} are free"
        return text


def budget_of(translator: Translator) -> Budget | None:
    """Return the budget of ``translator``, or None if its device reports itself that memory has run out."""
    if translator.device.type == "cpu":
        return Budget(translator)
    return None


def _free_addresses() -> int | None:
    """Return the bytes that this process can still map, or None if that is not limited (ulimit -v).

    Work is not refused for this limit, because the process gets an error if it needs more, and can use again
    what it has mapped.
    """
    import resource  # Windows lacks it

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return max(limit - mapped, 0)
