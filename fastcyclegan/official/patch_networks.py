"""Our networks in the place of an official checkout's: wherever one of its four classes is built with
arguments for which ours is the same.

Checkouts are edited, so nothing is taken on trust: the checkout's own network is built as well, its weights
are given to ours, and both must make the same of the same images in float64. Where they do not, theirs
stays, and why is said.
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

Log = Callable[[str], None]

OURS: dict[str, type[nn.Module]] = {
    "ResnetGenerator": compat.ResnetGenerator,
    "UnetGenerator": compat.UnetGenerator,
    "NLayerDiscriminator": compat.NLayerDiscriminator,
    "PixelDiscriminator": compat.PixelDiscriminator,
}
# What two float64 evaluations of one function may differ by, relative to the result: sums of some thousand
# terms in another order.
TOLERANCE = 1e-9


def replace_networks(module: ModuleType, impl: str, log: Log) -> None:
    """Have the network classes of ``module`` (a checkout's models/networks.py) give ours, computed by
    ``impl``.

    The classes themselves stay, and with them all that names them: what is replaced is their ``__new__``.
    Classes derived from them are left alone. A network of ours has the weights that theirs drew, so that a
    seed gives what it gave.
    """
    found, lacking = [], []
    for name, ours in OURS.items():
        theirs = getattr(module, name, None)
        if isinstance(theirs, type):
            theirs.__new__ = _builder(theirs, ours, impl, log)  # type: ignore[method-assign]
            found.append(name)
        else:
            lacking.append(name)
    names = "no network"
    if found:
        names = ", ".join(found)
    log(f"replaced where it is the same: {names} of {module.__file__}")
    if lacking:
        log(f"not in that file, so not replaced: {', '.join(lacking)}")


def _builder(theirs: Any, ours: type[nn.Module], impl: str, log: Log) -> Callable[..., Any]:
    """Return a ``__new__`` for ``theirs`` that gives ``ours`` where both are the same."""
    verdicts: dict[str, str] = {}

    def new(cls: Any, *args: Any, **kwargs: Any) -> Any:
        # Without arguments it is a copy in the making.
        if cls is not theirs or not (args or kwargs):
            return object.__new__(cls)
        given = _arguments(theirs, ours, args, kwargs)
        known = verdicts.get(repr(given))
        before = torch.get_rng_state()
        original = object.__new__(cls)
        original.__init__(*args, **kwargs)
        after = torch.get_rng_state()
        if known:
            net, why_not = None, known
        else:
            net, why_not = _stand_in(original, ours, given, compared=known == "")
        if why_not not in verdicts.values():
            log(f"{ours.__name__}: {_verdict(why_not)}")
        verdicts[repr(given)] = why_not
        if net is None:
            # Python initialises what this returns: with the same weights.
            torch.set_rng_state(before)
            return object.__new__(cls)
        torch.set_rng_state(after)
        set_impl(net, impl)
        return net

    return new


def _verdict(why_not: str) -> str:
    if why_not:
        return f"kept as it is: {why_not}"
    return "ours, the same function in float64"


def _arguments(
    theirs: Any, ours: type[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Return those of the arguments that ours has too, by name. That the others change nothing is for the
    comparison to find.
    """
    bound = inspect.signature(theirs.__init__).bind(None, *args, **kwargs)
    bound.apply_defaults()
    accepted = inspect.signature(ours).parameters.keys() - {"impl", "recompute"}
    return {name: value for name, value in bound.arguments.items() if name in accepted}


def _stand_in(
    original: nn.Module, ours: type[nn.Module], given: dict[str, Any], compared: bool
) -> tuple[nn.Module | None, str]:
    """Return ours with the weights of ``original`` and "", or None and why there is none. ``compared``: such
    a pair was before.
    """
    try:
        net = ours(**given, impl="reference")
    except (TypeError, ValueError, NotImplementedError) as error:
        return None, str(error)
    mine, theirs = _shapes(net), _shapes(original)
    if mine != theirs:
        name = next(name for name in [*theirs, *mine] if mine.get(name) != theirs.get(name))
        return None, f"{name} is {theirs.get(name, 'missing')}, in ours {mine.get(name, 'missing')}"
    if _dropouts(net) != _dropouts(original):
        return None, f"its dropouts are {_dropouts(original)}, ours {_dropouts(net)}"
    net.load_state_dict(original.state_dict())
    net.train(original.training)
    if compared:
        return net, ""
    try:
        difference = _difference(original, net, _side(given))
    # Whatever a network that somebody changed may raise: the reason is said, and it is used as it is.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        return None, f"it cannot be compared: {type(error).__name__}: {reason}"
    if difference > TOLERANCE:
        return None, f"its images differ from those of ours by {difference:.1e} (relative, float64)"
    return net, ""


def _shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


def without_chance(net: nn.Module) -> nn.Module:
    """Return a copy of ``net`` in float64 whose dropouts drop nothing."""
    net = copy.deepcopy(net).double()
    for module in net.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return net


def _dropouts(net: nn.Module) -> list[float]:
    return [module.p for module in net.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]


def _side(given: dict[str, Any]) -> int:
    """Return a small side that a network with these arguments takes."""
    if "num_downs" in given:
        return int(2 ** given["num_downs"])
    return max(16, 3 * 2 ** given.get("n_layers", 0))


def _difference(original: nn.Module, net: nn.Module, side: int) -> float:
    """Return |ours - theirs| / |theirs| on two random images in training mode, as batch norm needs."""
    channels = next(module.in_channels for module in original.modules() if isinstance(module, nn.Conv2d))
    x = torch.randn(2, channels, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs, mine = without_chance(original).train()(x), without_chance(net).train()(x)
    if theirs.shape != mine.shape:
        return float("inf")
    difference = ((mine - theirs).norm() / theirs.norm()).item()
    if math.isnan(difference):
        return float("inf")
    return difference
