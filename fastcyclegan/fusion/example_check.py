"""Whether a network gives the same for an example before and after it was changed, by the rule of parity."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastcyclegan.errors import one_line


def copy_that_runs(module: nn.Module, example: Any) -> nn.Module:
    """Return a copy of ``module``. Raises ValueError where it cannot be copied, or run with ``example``."""
    try:
        plain = copy.deepcopy(module)
        outputs(plain, example)
    # Whatever somebody else's module may raise.
    except Exception as error:
        raise ValueError(f"accelerate: the module cannot run its example: {one_line(error)}") from error
    return plain


def difference(module: nn.Module, plain: nn.Module, example: Any) -> str:
    """Return "" where ``module`` gives for ``example`` what ``plain`` gives, else what differs.

    Both run in the mode that they are in and in evaluation, as copies and with the same random numbers. Each
    output is held to float64, as near as its own dtype takes ``plain``: see ``fastcyclegan.testing``.
    """
    # It brings loaders and the engine, which who has no example does not need.
    from fastcyclegan.testing import PARITY_ULPS, assert_parity

    exact = copy.deepcopy(plain).double()
    exact_example = pytree.tree_map(_double, example)
    try:
        for evaluate in (False, True):
            of_module, of_plain = (outputs(net, example, evaluate) for net in (module, plain))
            of_exact = outputs(exact, exact_example, evaluate)
            if len(of_module) != len(of_plain):
                return f"{len(of_module)} outputs for the example instead of {len(of_plain)}"
            for n, (ours, theirs, truth) in enumerate(zip(of_module, of_plain, of_exact, strict=True)):
                if theirs.dtype in PARITY_ULPS:
                    assert_parity(f"output {n} for the example", ours, theirs, truth, theirs.dtype)
                elif not torch.equal(ours, theirs):
                    return f"output {n} for the example is another"
    # AssertionError by the rule, or whatever the module raises.
    except Exception as error:
        return one_line(error)
    return ""


def outputs(module: nn.Module, example: Any, evaluate: bool = False) -> list[Tensor]:
    """Return the tensors that a copy of ``module`` gives for ``example``: a tensor, or a tuple or a dict of
    arguments.
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
