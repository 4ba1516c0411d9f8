"""Tests of a reflection-padded convolution's launches, and of where its weights' gradients are stored.

These gradients are not copied, can be added in place, and are not computed for frozen weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from fastcyclegan.devtools.dry_run import dry_run
from fastcyclegan.kernels import accumulating, reflect_conv2d
from fastcyclegan.testing import relative_error, tf32
from tests.kernels.reflect_convs import CASES, SMALL_IMAGES, Case, operands, ours, results

pytestmark = pytest.mark.usefixtures("no_tf32")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_arrive_without_a_copy(layout: torch.memory_format, device: str) -> None:
    """The gradients of all weights are views of one tensor, each with the strides of its weight.

    So autograd keeps them without copying.
    """
    x, weights, _, dy = operands(CASES[4], device)
    leaves = [w.contiguous(memory_format=layout).requires_grad_() for w in weights]
    reflect_conv2d(x, leaves, padding=1, impl="triton").backward(dy)
    assert len({w.grad.untyped_storage().data_ptr() for w in leaves}) == 1
    assert all(w.grad.stride() == w.stride() for w in leaves)


def launch_counts(run: Any) -> dict[str, int]:
    with dry_run() as dry:
        run()
    return dict(dry.counts.launches)


def test_frozen_weights_are_skipped(device: str) -> None:
    x, weights, _, dy = operands(CASES[4], device)
    whole = results(ours(CASES[4]), x, weights, [], dy)
    weights = [w.requires_grad_(i != 1) for i, w in enumerate(weights)]
    y = reflect_conv2d(x, weights, padding=1, impl="triton")
    y.backward(dy)
    assert weights[1].grad is None
    for i in (0, 2):
        # With fewer weights, the sums can be split into other shares, so rounding differs.
        assert relative_error(weights[i].grad, whole[f"dweight[{i}]"]) < 1e-6

    def launches(needs: Sequence[bool]) -> dict[str, int]:
        leaves = [w.detach().requires_grad_(need) for w, need in zip(weights, needs, strict=True)]
        return launch_counts(
            lambda: reflect_conv2d(x.requires_grad_(), leaves, padding=1, impl="triton").backward(dy)
        )

    assert launches([True] * 3)["_reflect_conv_wgrad_kernel"] == 1
    assert launches([True, False, True])["_reflect_conv_wgrad_kernel"] == 2
    assert "_reflect_conv_wgrad_kernel" not in launches([False] * 3)


@pytest.mark.parametrize("case", [CASES[4], SMALL_IMAGES[1]], ids=lambda c: c.why)
def test_a_second_backward_adds_in_place(case: Case, device: str) -> None:
    """Inside ``accumulating``, a second backward pass adds to the existing gradients in place.

    The sum equals the one that autograd would compute, but takes no separate addition.
    """
    x, weights, biases, dy = operands(case, device)
    once = results(ours(case), x, weights, biases, dy)
    leaves, biases = ([t.requires_grad_() for t in ts] for ts in (weights, biases))
    for _ in range(2):
        y = reflect_conv2d(x, leaves, biases or None, padding=case.padding, impl="triton")
        addresses = [w.grad.data_ptr() if w.grad is not None else None for w in leaves]
        with accumulating(), torch.profiler.profile() as profile:
            y.backward(dy)
    assert [w.grad.data_ptr() for w in leaves] == addresses
    assert not any(
        event.key == "aten::add_" and event.count > len(biases) for event in profile.key_averages()
    )
    for i, w in enumerate(leaves):
        torch.testing.assert_close(w.grad, 2 * once[f"dweight[{i}]"])


def test_tf32_follows_torchs_convolutions(device: str) -> None:
    x = torch.zeros(1, 64, 8, 8, requires_grad=True)
    for allowed, expected in ((True, {"tf32"}), (False, {"ieee"})):
        precisions: set[str] = set()

        def record(launch: Any, precisions: set[str] = precisions) -> None:
            if "PRECISION" in launch.constants:
                precisions.add(launch.constants["PRECISION"])

        with tf32(allowed), dry_run(on_launch=record):
            for out in (3, 64):
                reflect_conv2d(
                    x, torch.zeros(out, 64, 3, 3, requires_grad=True), padding=1, impl="triton"
                ).sum().backward()
        assert precisions == expected
