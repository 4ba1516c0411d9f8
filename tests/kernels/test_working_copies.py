"""Copies of weights that operators read: taken for the very weights, and never out of date."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

from fastcyclegan.kernels import WorkingCopies, reflect_conv2d
from fastcyclegan.kernels._weights import stacked
from fastcyclegan.kernels._working_copies import working_copy

BF16 = torch.bfloat16


def weights(count: int = 2) -> list[Tensor]:
    return [torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last) for _ in range(count)]


def test_the_copies_are_what_operators_would_make() -> None:
    pairs = [weights(), weights(), weights(1)]
    expected = [stacked(pair, BF16) for pair in pairs]
    copies = WorkingCopies(pairs, BF16)
    assert working_copy(pairs[0], BF16) is None  # not yet made
    copies.refresh()
    for pair, value in zip(pairs, expected, strict=True):
        found = stacked(pair, BF16)
        assert torch.equal(found, value)
        assert found.data_ptr() == working_copy(pair, BF16).data_ptr()
        assert found.is_contiguous()


def test_one_of_a_pair_is_found_and_strangers_are_not() -> None:
    pair = weights()
    copies = WorkingCopies([pair], BF16)
    copies.refresh()
    assert torch.equal(working_copy(pair[1:], BF16)[0], stacked(pair, BF16)[1])
    assert working_copy([pair[1], pair[0]], BF16) is None
    assert working_copy([pair[0], pair[0]], BF16) is None
    assert working_copy(pair, torch.float16) is None
    assert working_copy(weights(), BF16) is None
    assert working_copy([pair[0].clone()], BF16) is None


@pytest.mark.parametrize("how", ["in place", "forgotten"])
def test_a_copy_is_never_out_of_date(how: str) -> None:
    pair = weights()
    copies = WorkingCopies([pair], BF16)
    copies.refresh()
    if how == "in place":
        pair[1].mul_(2)
    else:
        copies.forget()  # as after a graph, which changes weights without PyTorch's knowing
    assert working_copy(pair, BF16) is None
    assert torch.equal(stacked(pair, BF16)[1], pair[1].to(BF16).permute(0, 2, 3, 1))
    copies.refresh()
    assert torch.equal(working_copy(pair, BF16)[1], pair[1].to(BF16).permute(0, 2, 3, 1))


def test_copies_end_with_their_owner() -> None:
    pair = weights()
    copies = WorkingCopies([pair], BF16)
    copies.refresh()
    assert working_copy(pair, BF16) is not None
    del copies
    gc.collect()
    assert working_copy(pair, BF16) is None


def test_an_operator_gives_the_same_with_them() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pair = [w.to(device).requires_grad_() for w in weights()]
    x = torch.randn(2, 3, 6, 6, device=device)
    found = []
    for keep in (False, True):
        copies = WorkingCopies([pair], torch.float32)
        if keep:
            copies.refresh()
        y = reflect_conv2d(x, pair, padding=1, impl="triton")
        found.append((y, *torch.autograd.grad(y.square().sum(), pair)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_groups_are_checked() -> None:
    for groups in ([], [[]], [[torch.zeros(1, 1, 1, 1), torch.zeros(2, 1, 1, 1)]]):
        with pytest.raises(
            ValueError,
            match="WorkingCopies: groups must be lists of at least one weight, all of a list of one shape",
        ):
            WorkingCopies(groups, BF16)
