"""Replace an official checkout's networks with ours when they are built, if both compute the same function.

Checkouts get edited, so this is verified for each of the four classes and each combination of arguments. The
checkout's own network is built as well, its weights are loaded into ours, and both must produce the same
outputs from the same images in float64. If they do not, the checkout's own network is used and the reason is
logged.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import nn

from fastcyclegan import compat
from fastcyclegan.nn.networks import set_impl
from fastcyclegan.official.dropout import order_dropout

Log = Callable[[str], None]

REPLACEMENTS: dict[str, type[nn.Module]] = {
    "ResnetGenerator": compat.ResnetGenerator,
    "UnetGenerator": compat.UnetGenerator,
    "NLayerDiscriminator": compat.NLayerDiscriminator,
    "PixelDiscriminator": compat.PixelDiscriminator,
}
# The largest relative difference allowed between two float64 evaluations of the same function. They add
# several thousand terms in different orders.
TOLERANCE = 1e-9


def replace_networks(module: ModuleType, impl: str, log: Log) -> None:
    """Make a checkout's network classes build our networks, computed by ``impl``.

    ``module`` is the checkout's models/networks.py. Only the ``__new__`` of its classes is replaced: the
    classes themselves, and all references to them, stay valid. Derived classes are left alone. Our network
    receives the weights that the checkout's own network was initialised with, so a seed gives the same
    weights as before.
    """
    replaced, missing = [], []
    for name, ours in REPLACEMENTS.items():
        official = getattr(module, name, None)
        if isinstance(official, type):
            official.__new__ = _builder(official, ours, impl, log)  # type: ignore[method-assign]
            replaced.append(name)
        else:
            missing.append(name)
    names = "none"
    if replaced:
        names = ", ".join(replaced)
    log(f"networks to be replaced if fastcyclegan's give the same outputs: {names} (in {module.__file__})")
    if missing:
        log(f"networks missing from that file, so not replaced: {', '.join(missing)}")


def _builder(official: Any, ours: type[nn.Module], impl: str, log: Log) -> Callable[..., Any]:
    """Return a ``__new__`` for ``official`` that builds ``ours`` if both compute the same function."""
    verdicts: dict[str, str] = {}

    def new(cls: Any, *args: Any, **kwargs: Any) -> Any:
        # A call without arguments comes from copying a network.
        if cls is not official or not (args or kwargs):
            return object.__new__(cls)
        arguments = _arguments(official, ours, args, kwargs)
        known = verdicts.get(repr(arguments))
        before = torch.get_rng_state()
        original = object.__new__(cls)
        original.__init__(*args, **kwargs)
        after = torch.get_rng_state()
        if known:
            net, why_not = None, known
        else:
            net, why_not = _replacement(original, ours, arguments, compared=known == "")
        if why_not not in verdicts.values():
            log(f"{ours.__name__}: {_verdict(why_not)}")
        verdicts[repr(arguments)] = why_not
        if net is None:
            # Python will call __init__ on the returned object, which should draw the same weights again.
            torch.set_rng_state(before)
            return object.__new__(cls)
        torch.set_rng_state(after)
        set_impl(net, impl)
        order_dropout(net)
        return net

    return new


def _verdict(why_not: str) -> str:
    if why_not:
        return f"not replaced: {why_not}"
    return "replaced by fastcyclegan's (same outputs in float64)"


def _arguments(
    official: Any, ours: type[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Return, by name, those arguments of ``official`` that ``ours`` accepts as well.

    The comparison of outputs will show whether any of the others matter.
    """
    bound = inspect.signature(official.__init__).bind(None, *args, **kwargs)
    bound.apply_defaults()
    accepted = inspect.signature(ours).parameters.keys() - {"impl", "recompute"}
    return {name: value for name, value in bound.arguments.items() if name in accepted}


def _replacement(
    original: nn.Module, ours: type[nn.Module], arguments: dict[str, Any], compared: bool
) -> tuple[nn.Module | None, str]:
    """Return our network with the weights of ``original``, and "".

    If our network cannot replace ``original``, return None and the reason. ``compared`` is True if networks
    with these arguments have been compared before and gave the same outputs.
    """
    try:
        net = ours(**arguments, impl="reference")
    except (TypeError, ValueError, NotImplementedError) as error:
        return None, str(error)
    our_shapes, shapes = _shapes(net), _shapes(original)
    if our_shapes != shapes:
        name = next(name for name in [*shapes, *our_shapes] if our_shapes.get(name) != shapes.get(name))
        return None, (
            f"its {name} is {shapes.get(name, 'missing')}, but fastcyclegan's is"
            f" {our_shapes.get(name, 'missing')}"
        )
    if _dropout_rates(net) != _dropout_rates(original):
        return None, (
            f"its dropout rates are {_dropout_rates(original)}, but fastcyclegan's are {_dropout_rates(net)}"
        )
    net.load_state_dict(original.state_dict())
    net.train(original.training)
    if compared:
        return net, ""
    try:
        difference = _difference(original, net, _side(arguments))
    # A modified network can raise anything. It is then used unchanged, and the caller logs the reason.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        return None, f"it cannot be compared: {type(error).__name__}: {reason}"
    if difference > TOLERANCE:
        return None, f"its outputs differ from fastcyclegan's by {difference:.1e} (relative, in float64)"
    return net, ""


def _shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


def without_dropout(net: nn.Module) -> nn.Module:
    """Return a float64 copy of ``net`` with all dropout rates set to 0."""
    net = copy.deepcopy(net).double()
    for module in net.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return net


def _dropout_rates(net: nn.Module) -> list[float]:
    return [module.p for module in net.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]


def _side(arguments: dict[str, Any]) -> int:
    """Return a small image side that a network with these arguments accepts."""
    if "num_downs" in arguments:
        return int(2 ** arguments["num_downs"])
    return max(16, 3 * 2 ** arguments.get("n_layers", 0))


def _difference(original: nn.Module, net: nn.Module, side: int) -> float:
    """Return the relative difference of the outputs for two random images, |ours - official| / |official|.

    Both networks run in training mode, as batch norm requires.
    """
    channels = next(module.in_channels for module in original.modules() if isinstance(module, nn.Conv2d))
    x = torch.randn(2, channels, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = without_dropout(original).train()(x), without_dropout(net).train()(x)
    if expected.shape != got.shape:
        return float("inf")
    difference = ((got - expected).norm() / expected.norm()).item()
    if math.isnan(difference):
        return float("inf")
    return difference
