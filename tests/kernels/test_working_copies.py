"""Working copies are used only for the weights that they were made from, and never when out of date."""

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


def test_the_copies_equal_the_stacks_of_the_operators() -> None:
    pairs = [weights(), weights(), weights(1)]
    expected = [stacked(pair, BF16) for pair in pairs]
    copies = WorkingCopies(pairs, BF16)
    assert working_copy(pairs[0], BF16) is None  # before the first refresh
    copies.refresh()
    for pair, value in zip(pairs, expected, strict=True):
        stack = stacked(pair, BF16)
        assert torch.equal(stack, value)
        assert stack.data_ptr() == working_copy(pair, BF16).data_ptr()
        assert stack.is_contiguous()


def test_part_of_a_group_has_a_copy_and_other_weights_have_none() -> None:
    pair = weights()
    copies = WorkingCopies([pair], BF16)
    copies.refresh()
    assert torch.equal(working_copy(pair[1:], BF16)[0], stacked(pair, BF16)[1])
    assert working_copy([pair[1], pair[0]], BF16) is None
    assert working_copy([pair[0], pair[0]], BF16) is None
    assert working_copy(pair, torch.float16) is None
    assert working_copy(weights(), BF16) is None
    assert working_copy([pair[0].clone()], BF16) is None


@pytest.mark.parametrize("change", ["in place", "forgotten"])
def test_a_copy_is_never_out_of_date(change: str) -> None:
    pair = weights()
    copies = WorkingCopies([pair], BF16)
    copies.refresh()
    if change == "in place":
        pair[1].mul_(2)
    else:
        copies.forget()  # as is done after a graph, because PyTorch does not count the changes that it makes
    assert working_copy(pair, BF16) is None
    assert torch.equal(stacked(pair, BF16)[1], pair[1].to(BF16).permute(0, 2, 3, 1))
    copies.refresh()
    assert torch.equal(working_copy(pair, BF16)[1], pair[1].to(BF16).permute(0, 2, 3, 1))


def test_copies_are_freed_with_their_owner() -> None:
    pair = weights()
    copies = WorkingCopies([pair], BF16)
    copies.refresh()
    assert working_copy(pair, BF16) is not None
    del copies
    gc.collect()
    assert working_copy(pair, BF16) is None


def test_an_operator_gives_the_same_result_with_copies() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pair = [w.to(device).requires_grad_() for w in weights()]
    x = torch.randn(2, 3, 6, 6, device=device)
    results = []
    for keep in (False, True):
        copies = WorkingCopies([pair], torch.float32)
        if keep:
            copies.refresh()
        y = reflect_conv2d(x, pair, padding=1, impl="triton")
        results.append((y, *torch.autograd.grad(y.square().sum(), pair)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_empty_and_mixed_groups_are_rejected() -> None:
    for groups in ([], [[]], [[torch.zeros(1, 1, 1, 1), torch.zeros(2, 1, 1, 1)]]):
        with pytest.raises(
            ValueError,
            match=r"WorkingCopies: groups must be non-empty lists .* with the same shape within a list",
        ):
            WorkingCopies(groups, BF16)


def test_two_owners_of_copies_of_the_same_weights_do_not_disturb_each_other() -> None:
    """A training step stacks the weights of two networks, and inference those of one."""
    pair = weights()
    training = WorkingCopies([pair], BF16)
    inference = WorkingCopies([pair[:1]], BF16)
    for copies, used in ((training, pair), (inference, pair[:1]), (training, pair)):
        copies.refresh()
        assert working_copy(used, BF16) is not None
        copies.forget()
    del inference
    training.refresh()
    assert working_copy(pair, BF16) is not None


def test_copies_that_no_operator_uses_can_be_dropped() -> None:
    used, unused = weights(), weights()
    copies = WorkingCopies([used, unused], BF16)
    copies.refresh()
    stacked(used, BF16)
    copies.drop_unused()
    used[0].mul_(2)
    copies.refresh()
    assert torch.equal(working_copy(used, BF16)[0], used[0].to(BF16).permute(0, 2, 3, 1))
    assert len(copies.groups) == 1
    copies = WorkingCopies([used], BF16)
    copies.drop_unused()
    copies.refresh()
    assert copies.groups == []
