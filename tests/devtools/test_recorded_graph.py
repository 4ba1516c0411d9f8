"""Tests of the CPU stand-in for CUDA graphs, with synthetic sequences of operators.

Each sequence exercises one pattern of memory use that a recording must handle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastcyclegan.devtools.recorded_graph import RecordedGraph

Step = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    """Run each test with two threads.

    PyTorch's own threads have autograd enabled, even if it is disabled in the thread that replays.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@torch.library.custom_op("fastcyclegan_tests::spread", mutates_args=())
def spread(x: Tensor) -> Tensor:
    """Return a new 4 x 6 tensor whose elements all share the memory of one number, the sum of x."""
    return x.sum().expand(4, 6)


def split_then_change_the_other(state: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x * 2
        first, other = y.split(2)
        other.add_(first)
        first.mul_(3)
    return state.add_(y)


def split_read_in_threads(state: Tensor, x: Tensor) -> Tensor:
    y = x.view(4, 1, 2, 3) * 2
    first, _ = y.split(2)
    z = F.conv_transpose2d(first, torch.ones(1, 1, 3, 3, dtype=x.dtype), padding=1)
    with torch.no_grad():
        state[:2] += z.view(2, 6)
    return state


def chunk_and_unbind(state: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x + 1
        for n, row in enumerate(y.unbind(0)):
            left, right = row.chunk(2)
            left.copy_(right * n)
    return state.add_(y)


def unsafe_split(state: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x * 2
        first, other = torch.unsafe_split(y, 2)
        first.add_(other)
    return state.add_(y)


def several_results_of_one_operator(state: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        values, places = x.sort(dim=1)
        pieces = torch.split_copy(values, 3, dim=1)
        pieces[0].add_(pieces[1])
        state[:, :3] += pieces[0] * places[:, :3]
    return state


def expanded(state: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = spread(x)
        return state.add_(y).add_(x[:, :1].expand(4, 6))


def contiguous_that_is_itself(state: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x * 2
        same, other = y.contiguous(), y.t().contiguous()
        same.add_(1)
        other.add_(1)
        return state.add_(y).add_(other.t())


def returns_its_input(state: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x.clone()
        same = F.relu_(y)
        same.add_(1)
        alias = y.detach().view_as(y)
        alias.mul_(2)
        return state.add_(y)


def out_of_the_right_size(state: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = torch.empty_like(x)
        torch.add(state, x, out=y)
        torch.mul(y, 0.5, out=state)
    return state


def out_that_is_resized(state: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = torch.empty(0, dtype=x.dtype)
        torch.add(state, x, out=y)
        y.mul_(2)
        return state.copy_(y)


def shape_changed_in_place(state: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x[:, :4] * 2
        row = y.view(16)
        y.t_().mul_(x[:, 2:])
        state[:, :4] += row.view(4, 4)
    return state


def memory_freed_and_reused(state: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        for n in range(50):
            y = x * n
            y.add_(state)
            state.lerp_(y, 0.5)
            del y
    return state


def changes_missing_from_the_schema(state: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        F.batch_norm(x, state.view(-1)[:6], state.view(-1)[6:12], training=True)
    return state


def host_values(state: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = torch.tensor([[0.5], [1.5], [2.5], [3.5]], dtype=x.dtype)
        return state.mul_(0.5).add_(x * y)


def training_update(state: Tensor, x: Tensor) -> Tensor:
    weight = state.detach().requires_grad_()
    left, right = (weight * x).split(3, dim=1)
    (gradient,) = torch.autograd.grad((left * right.relu()).sum(), [weight])
    with torch.no_grad():
        return state.sub_(gradient, alpha=0.1)


STEPS: list[tuple[str, Step]] = [
    ("a view of new memory and its neighbour are changed", split_then_change_the_other),
    (
        "a view with a gradient, read by an operator's own threads after its base was written again",
        split_read_in_threads,
    ),
    ("views of views", chunk_and_unbind),
    ("views that the schema declares as new", unsafe_split),
    ("several results, each with its own memory", several_results_of_one_operator),
    ("a new result whose elements share memory", expanded),
    ("contiguous returns its input or a copy of it", contiguous_that_is_itself),
    ("an operator returns its own input", returns_its_input),
    ("an out= of the right size", out_of_the_right_size),
    ("an out= that is resized: its memory moves", out_that_is_resized),
    ("an in-place transposition must not be repeated", shape_changed_in_place),
    ("memory that the allocator reuses", memory_freed_and_reused),
    ("running statistics, which batch norm's schema does not declare", changes_missing_from_the_schema),
    ("numbers from the host stay frozen", host_values),
    ("forward, backward and an update", training_update),
]


@pytest.mark.parametrize(("description", "step"), STEPS, ids=[row[0] for row in STEPS])
def test_a_replay_matches_the_step(description: str, step: Step) -> None:
    """Recording leaves the state unchanged, and replays on new inputs match the step bit for bit."""
    torch.manual_seed(0)
    inputs = [torch.randn(4, 6, dtype=torch.float64) for _ in range(4)]
    start = torch.randn(4, 6, dtype=torch.float64)
    state, x, expected = start.clone(), inputs[0].clone(), start.clone()
    x.requires_grad_()
    replay, result = RecordedGraph()(lambda: step(state, x))
    assert torch.equal(state, start)
    for values in inputs:
        with torch.no_grad():
            x.copy_(values)
        replay()
        assert torch.equal(step(expected, values), result)
        assert torch.equal(state, expected)


def test_values_frozen_into_a_recording_are_detected() -> None:
    """In replays, a number from the host keeps the value that it had while the step was recorded.

    Detecting such values, and values that are read back, is the purpose of the stand-in.
    """
    count, total = [0], torch.zeros(())

    def step() -> Tensor:
        count[0] += 1
        return total.add_(count[0])

    replay, _ = RecordedGraph()(step)
    replay()
    replay()
    assert total == 2


def test_recording_takes_no_random_numbers_and_replays_draw_new_ones() -> None:
    x = torch.ones(64)
    torch.manual_seed(0)
    expected = [F.dropout(x) for _ in range(2)]
    torch.manual_seed(0)
    replay, result = RecordedGraph()(lambda: F.dropout(x))
    for mask in expected:
        replay()
        assert torch.equal(result, mask)
