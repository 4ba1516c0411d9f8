"""Tests of zero_conv's launches, the steps of its weight gradients, and where these gradients are stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcyclegan.devtools.dry_run import dry_run
from fastcyclegan.kernels import accumulating
from fastcyclegan.kernels.zero_conv_launch import line_of
from fastcyclegan.testing import relative_error
from tests.kernels.zero_convs import (
    DOWN,
    FIRST,
    LAST,
    ROUTES,
    UP,
    Case,
    by_pytorch,
    operands,
    ours,
    results,
)

pytestmark = pytest.mark.usefixtures("no_tf32")


def test_line_of_minimises_the_number_of_steps() -> None:
    """``line_of`` makes an image take as few steps as possible, for the sizes that occur in networks.

    It never returns more pixels side by side than a step contains.
    """
    assert [line_of((side, side), 64) for side in (128, 64, 32)] == [64, 64, 32]
    assert line_of((31, 31), 64) == 32
    assert line_of((1, 1000), 64) == 64
    assert line_of((1000, 1), 64) == 1


def launch_counts(run: Any) -> dict[str, int]:
    with dry_run() as dry:
        run()
    return {
        name.strip("_").removeprefix("zero_conv_").removesuffix("_kernel"): count
        for name, count in dry.counts.launches.items()
    }


# The launches of the forward and backward pass, without those of the norm. The last two of each backward pass
# compute the weight gradient, and the one before them computes the input gradient.
LAUNCHES = [
    (DOWN, {"gather": 1}, {"scatter": 1, "wgrad": 1, "reflect_conv_wgrad_sum": 1}),
    (UP, {"scatter": 1}, {"gather": 1, "wgrad": 1, "reflect_conv_wgrad_sum": 1}),
    (FIRST, {"embed": 1, "gather": 1}, {"embed": 1, "scatter": 1, "wgrad": 1, "reflect_conv_wgrad_sum": 1}),
    (
        LAST,
        {"embed": 1, "reflect_conv_contract": 1},
        {"embed": 1, "reflect_conv": 1, "wgrad": 1, "reflect_conv_wgrad_sum": 1},
    ),
]


@pytest.mark.parametrize(("case", "forward", "backward"), LAUNCHES, ids=[c[0].why for c in LAUNCHES])
def test_two_networks_in_one_launch(case: Case, forward: dict[str, int], backward: dict[str, int]) -> None:
    """Two networks' weights take as many launches as one network's, not counting the launches of the norm."""
    x, weights, biases, dy = operands(case, "cpu")
    x = x.requires_grad_()
    weights = [w.requires_grad_() for w in weights]
    biases = [b.requires_grad_() for b in biases]
    for count in (1, 2):
        y: list[Tensor] = []
        first = launch_counts(lambda y=y, n=count: y.append(ours(case)(x, weights[:n], biases[:n])))
        second = launch_counts(lambda y=y: y[0].backward(dy))
        assert {k: v for k, v in first.items() if "norm" not in k} == forward
        assert {k: v for k, v in second.items() if "norm" not in k} == backward
        assert (
            any("norm" in name for name in first)
            == any("norm" in name for name in second)
            == (case.act is not None)
        )


@pytest.mark.parametrize("case", ROUTES, ids=lambda c: c.why)
def test_frozen_weights_are_skipped(case: Case, device: str) -> None:
    """Frozen tensors cost no launches, and the gradients of the other tensors do not change.

    Each weight, x, and all weights together are frozen in turn.
    """
    x, weights, biases, dy = operands(case, device)
    whole = results(ours(case), x, weights, biases, dy)
    for frozen in (0, 1):
        leaves = [w.detach().requires_grad_(i != frozen) for i, w in enumerate(weights)]
        ours(case)(x, leaves, biases).backward(dy)
        assert leaves[frozen].grad is None
        # With fewer weights, the sums can be split into other shares, so rounding differs.
        assert relative_error(leaves[1 - frozen].grad, whole[f"dweight[{1 - frozen}]"]) < 1e-6
    alone = x.detach().requires_grad_()
    ours(case)(alone, weights, biases).backward(dy)
    assert torch.equal(alone.grad, whole["dx"])
    names = launch_counts(lambda: ours(case)(x.detach().requires_grad_(), weights, biases).backward(dy))
    assert "wgrad" not in names
    leaf = [b.detach().requires_grad_() for b in biases]
    if leaf:
        assert set(launch_counts(lambda: ours(case)(x, weights, leaf).backward(dy))) == set(
            launch_counts(lambda: ours(case)(x, weights, leaf))
        )


@pytest.mark.parametrize("needs", [[True, False, True], [False, True, True]])
def test_adjacent_weights_share_a_product(needs: Sequence[bool], device: str) -> None:
    """The gradients of adjacent weights are computed by one product, those of separated weights by two."""
    case = Case("", (3, 9, 4, 5), 10, P=3)
    x, weights, _, dy = operands(case, device)
    whole = results(by_pytorch(case), x, weights, [], dy)
    leaves = [w.requires_grad_(need) for w, need in zip(weights, needs, strict=True)]
    trained = [w for w in leaves if w.requires_grad]
    assert launch_counts(lambda: torch.autograd.grad(ours(case)(x, leaves, []), trained, dy))["wgrad"] == (
        2 if needs[0] else 1
    )
    got = torch.autograd.grad(ours(case)(x, leaves, []), trained, dy)
    truth = [whole[f"dweight[{i}]"] for i in range(3) if needs[i]]
    assert all(relative_error(a, b) < 1e-6 for a, b in zip(got, truth, strict=True))


# --- Gradients in place -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("case", [DOWN, UP, LAST], ids=lambda c: c.why)
def test_a_second_backward_adds_in_place(case: Case, layout: torch.memory_format, device: str) -> None:
    """Inside ``accumulating``, a second backward pass adds to the existing gradients in place.

    The sum equals the one that autograd would compute, but takes no separate addition. Gradients have the
    layout of their weights and are not copied.
    """
    x, weights, biases, dy = operands(case, device)
    once = results(ours(case), x, weights, biases, dy)
    leaves = [w.contiguous(memory_format=layout).requires_grad_() for w in weights]
    for _ in range(2):
        y = ours(case)(x, leaves, biases)
        addresses = [w.grad.data_ptr() if w.grad is not None else None for w in leaves]
        with accumulating(), torch.profiler.profile() as profile:
            y.backward(dy)
    assert [w.grad.data_ptr() for w in leaves] == addresses
    assert len({w.grad.untyped_storage().data_ptr() for w in leaves}) == 1
    assert not any(event.key == "aten::add_" for event in profile.key_averages())
    for i, w in enumerate(leaves):
        torch.testing.assert_close(w.grad, 2 * once[f"dweight[{i}]"])
        assert w.grad.stride() == w.stride()


def test_gradients_far_apart_are_added_one_by_one(device: str) -> None:
    """Adding in place is right even if each ``.grad`` has its own memory and one weight is frozen.

    Gradients have their own memory in networks whose gradients were zeroed separately.
    """
    case = Case("", (3, 9, 4, 5), 10, P=3)
    x, weights, _, dy = operands(case, device)
    once = results(ours(case), x, weights, [], dy)
    leaves = [w.requires_grad_(i != 0) for i, w in enumerate(weights)]
    for w in leaves[1:]:
        w.grad = torch.ones_like(w)
    with accumulating():
        ours(case)(x, leaves, []).backward(dy)
    for i in (1, 2):
        torch.testing.assert_close(leaves[i].grad, 1 + once[f"dweight[{i}]"])
