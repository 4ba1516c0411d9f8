"""Check that a changed network still gives the same outputs for an example, within the parity rule."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastcyclegan.errors import one_line


def copy_that_runs(module: nn.Module, example: Any) -> nn.Module:
    """Return a copy of ``module``. Raises ValueError if it cannot be copied, or cannot run ``example``."""
    try:
        plain = copy.deepcopy(module)
        outputs(plain, example)
    # A user's module can raise anything.
    except Exception as error:
        raise ValueError(f"accelerate: the module cannot run the example: {one_line(error)}") from error
    return plain


def difference(module: nn.Module, plain: nn.Module, example: Any) -> str:
    """Return how the outputs of ``module`` and ``plain`` differ for ``example``, or "" if they agree.

    Copies of both are run with the same random numbers, in their current mode and in eval mode. Each output
    of ``module`` must be about as close to the float64 result as the output of ``plain``. The exact rule is
    in ``fastcyclegan.testing``.
    """
    # Imported here because it loads the loaders and the engine, which are not needed without an example.
    from fastcyclegan.testing import PARITY_ULPS, assert_parity

    exact = copy.deepcopy(plain).double()
    exact_example = pytree.tree_map(_double, example)
    try:
        for evaluate in (False, True):
            of_module, of_plain = (outputs(net, example, evaluate) for net in (module, plain))
            of_exact = outputs(exact, exact_example, evaluate)
            if len(of_module) != len(of_plain):
                return f"the example gives {len(of_module)} outputs instead of {len(of_plain)}"
            for n, (ours, expected, truth) in enumerate(zip(of_module, of_plain, of_exact, strict=True)):
                if expected.dtype in PARITY_ULPS:
                    assert_parity(f"output {n} of the example", ours, expected, truth, expected.dtype)
                elif not torch.equal(ours, expected):
                    return f"output {n} of the example differs"
    # An AssertionError from the parity rule, or anything that the module raises.
    except Exception as error:
        return one_line(error)
    return ""


def outputs(module: nn.Module, example: Any, evaluate: bool = False) -> list[Tensor]:
    """Return the output tensors of a copy of ``module`` for ``example``.

    ``example`` is an input, or a tuple or dict of arguments.
    """
    net = copy.deepcopy(module)
    if evaluate:
        net.eval()
    devices = {t.device for t in pytree.tree_leaves(example) if isinstance(t, Tensor) and t.is_cuda}
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        if isinstance(example, dict):
            result = net(**example)
        elif isinstance(example, (tuple, list)):
            result = net(*example)
        else:
            result = net(example)
    return [t.detach() for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]


def _double(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.double()
    return value
