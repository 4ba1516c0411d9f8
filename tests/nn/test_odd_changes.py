"""Networks whose layers were changed compute the changed function: hooks, weights, parametrizations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from tests.nn.odd_calls import check, images, outcome, outcomes, train, trio

pytestmark = pytest.mark.usefixtures("no_tf32")

Change = Callable[[nn.Module], Any]


def convs(net: nn.Module) -> list[Any]:
    return [layer for layer in net.modules() if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))]


def norms(net: nn.Module) -> list[Any]:
    return [layer for layer in net.modules() if isinstance(layer, nn.InstanceNorm2d)]


def activations(net: nn.Module) -> list[Any]:
    return [layer for layer in net.modules() if isinstance(layer, (nn.ReLU, nn.LeakyReLU))]


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def each(layers: Callable[[nn.Module], list[Any]], change: Callable[[Any], Any]) -> Change:
    """Return a change of each of the ``layers`` of a network."""

    def apply(net: nn.Module) -> None:
        for layer in layers(net):
            change(layer)

    return apply


def _freeze_every_second(net: nn.Module) -> None:
    for n, p in enumerate(net.parameters()):
        p.requires_grad_(n % 2 == 0)


def _train_biases_alone(net: nn.Module) -> None:
    for name, p in net.named_parameters():
        p.requires_grad_(name.endswith("bias"))


def _tie(net: nn.Module) -> None:
    """Let all convolutions of one shape share their weight."""
    weights: dict[Any, nn.Parameter] = {}
    for conv in convs(net):
        conv.weight = weights.setdefault((type(conv), conv.weight.shape), conv.weight)


def _spectral(net: nn.Module) -> None:
    for conv in convs(net)[1:3]:
        torch.manual_seed(3)
        parametrizations.spectral_norm(conv)
    net.eval()


def _no_bias(conv: Any) -> None:
    conv.bias = None


def _transposed_weight(conv: Any) -> None:
    weight = conv.weight.detach()
    conv.weight = nn.Parameter(weight.transpose(2, 3).contiguous().transpose(2, 3))


def _expanded_weight(conv: Any) -> None:
    conv.weight = nn.Parameter(conv.weight.detach()[:, :1].expand(conv.weight.shape))


def _half_bias(conv: Any) -> None:
    if conv.bias is not None and conv.bias.dtype == torch.float32:
        conv.bias = nn.Parameter(conv.bias.detach().half())


def _replicate(conv: Any) -> None:
    """Pad by repeating the border, after the fact."""
    if isinstance(conv, nn.Conv2d) and conv.padding == (1, 1):
        conv.padding_mode, conv._reversed_padding_repeated_twice = "replicate", [1, 1, 1, 1]


def _replace_first(net: nn.Module) -> None:
    """Replace the first convolution by one for images of one channel."""
    first = convs(net)[0]
    name = next(name for name, layer in net.named_modules() if layer is first)
    sizes = (1, first.out_channels, first.kernel_size, first.stride, first.padding)
    other = nn.Conv2d(*sizes, dtype=first.weight.dtype)
    other.load_state_dict({"weight": first.weight[:, :1], "bias": first.bias})
    net.set_submodule(name, other)


def _scale(*arguments: Any) -> Any:
    """Scale the last argument of a hook: an output, or the gradients of inputs or outputs, if any."""
    last = arguments[-1]
    if isinstance(last, tuple):
        return tuple(None if t is None else 1.5 * t for t in last)
    return 1.5 * last


CHANGES: dict[str, Change] = {
    "hook on convolutions": each(convs, lambda layer: layer.register_forward_hook(_scale)),
    "hook on norms": each(norms, lambda layer: layer.register_forward_hook(_scale)),
    "hook on activations": each(activations, lambda layer: layer.register_forward_hook(_scale)),
    "pre-hook on convolutions": each(convs, lambda layer: layer.register_forward_pre_hook(_scale)),
    "full backward hook": each(
        convs, lambda layer: layer.register_full_backward_hook(lambda layer, inputs, outputs: _scale(inputs))
    ),
    "full backward pre-hook": each(norms, lambda layer: layer.register_full_backward_pre_hook(_scale)),
    "hook on weights": each(convs, lambda layer: layer.weight.register_hook(_scale)),
    "spectral norm": _spectral,
    "weight norm": each(convs, parametrizations.weight_norm),
    "old weight norm": each(convs, nn.utils.weight_norm),
    "parametrized weights": each(
        convs, lambda conv: parametrize.register_parametrization(conv, "weight", Doubled())
    ),
    "pruned": each(convs, lambda conv: prune.l1_unstructured(conv, "weight", 0.5)),
    "no biases": each(convs, _no_bias),
    "tied weights": _tie,
    "some weights frozen": _freeze_every_second,
    "only biases trained": _train_biases_alone,
    "all weights frozen": lambda net: net.requires_grad_(False),
    "transposed weights": each(convs, _transposed_weight),
    "expanded weights": each(convs, _expanded_weight),
    "biases in float16": each(convs, _half_bias),
    "first convolution replaced": _replace_first,
    "another padding mode": each(convs, _replicate),
    "another eps": each(norms, lambda norm: setattr(norm, "eps", 0.1)),
    "activations in place": each(activations, lambda layer: setattr(layer, "inplace", True)),
    "another slope": each(activations, lambda layer: setattr(layer, "negative_slope", -0.3)),
    "shared memory": lambda net: net.share_memory(),
    "evaluation": lambda net: net.eval(),
}
# For these, the layers are called as modules, or the kernels get ordinary weights, as in another case.
REFERENCE_ONLY = {"old weight norm", "pruned", "shared memory", "evaluation", "hook on activations"}
CASES = [
    *((name, change, "reference") for name in ("generator", "unet", "patches") for change in CHANGES),
    *(("patches", change, "triton") for change in CHANGES if change not in REFERENCE_ONLY),
    *(("generator", change, "triton") for change in ("tied weights", "activations in place")),
]


@pytest.mark.parametrize(("name", "change", "impl"), CASES)
def test_changed_networks(name: str, change: str, impl: str) -> None:
    nets = trio(name, impl)
    for net in nets:
        CHANGES[change](net)
    one = change == "first convolution replaced"
    check(outcomes(nets, train, images(name)[:, :1] if one else images(name)))


def test_images_for_a_replaced_convolution_are_checked() -> None:
    nets = trio("generator", "triton")
    for net in nets:
        _replace_first(net)
    check(outcomes(nets, train, images("generator")))


def _low(dtype: torch.dtype) -> Callable[[nn.Module], nn.Module]:
    return lambda net: net.to(dtype)


CONVERSIONS = {
    "float16": (torch.float16, torch.float16),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16 for images in float32": (torch.float16, torch.float32),
    "float64": (torch.float64, torch.float64),
}


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_converted_networks(conversion: str, impl: str) -> None:
    """Compare outputs alone: 16 bits turn some ReLUs, which the rule for rounding does not cover."""
    weights, pixels = CONVERSIONS[conversion]
    nets = [net.to(weights) for net in trio("patches", impl)[:2]] + trio("patches", impl)[2:]

    def call(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
        return {"y": net(x)}

    x = images("patches")
    found = [outcome(call, net, x.to(pixels)) for net in nets[:2]] + [outcome(call, nets[2], x.double())]
    if weights == torch.float64 and impl == "triton":
        assert isinstance(found[0], TypeError)
        assert "takes float32, bfloat16 or float16, got torch.float64" in str(found[0])
    elif weights == torch.float64:
        assert torch.equal(found[0]["y"], found[1]["y"])  # type: ignore[index]
    else:
        check(found, weights)


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize("name", ["generator", "patches"])
def test_channels_last_networks(name: str, impl: str) -> None:
    """The plain network keeps NCHW memory, because torch's norm has a wrong gradient for one NHWC image."""
    nets, x = trio(name, impl), images(name)[:1]
    ours = outcome(
        train, nets[0].to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    )
    check([ours, outcome(train, nets[1], x), outcome(train, nets[2], x.double())])
