"""Tensors that the side stream reads are kept alive until their owning stream has synchronised with it.

Their total size has a limit. Stand-ins for streams record which stream waits for which.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator

import pytest
import torch

from fastcyclegan.kernels import _overlap, accumulating, overlapping, reflect_conv2d

MIB = 2**20


class Event:
    """A stand-in for torch.cuda.Event that stores the counts of a stream when the event was recorded."""

    def __init__(self, stream: Stream) -> None:
        self.seen, self.acts = dict(stream.seen), dict(stream.acts)


class Stream:
    """A stand-in for torch.cuda.Stream, with the numbers of its launches and of those it has waited for.

    ``seen`` counts launches per stream. ``acts`` counts waits too, because a stream that waits after it was
    joined must be joined again before a capture ends.
    """

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.seen: dict[Stream, int] = {self: 0}
        self.acts: dict[Stream, int] = {self: 0}
        self.broken = False

    def launch(self) -> int:
        self.seen[self] += 1
        self.acts[self] += 1
        return self.seen[self]

    def record_event(self) -> Event:
        if self.broken:
            raise RuntimeError("operation failed due to a previous error during capture")
        return Event(self)

    def wait_event(self, event: Event) -> None:
        self.acts[self] += 1
        for counts, recorded in ((self.seen, event.seen), (self.acts, event.acts)):
            for stream, count in recorded.items():
                counts[stream] = max(count, counts.get(stream, 0))

    def wait_stream(self, stream: Stream) -> None:
        self.wait_event(stream.record_event())


class World:
    """A main stream, a side stream, and a log of freed tensors.

    For each tensor, ``freed`` contains the number of the last side-stream launch that its owner had waited
    for when it was freed, and the number of the launch that reads it.
    """

    def __init__(self) -> None:
        self.main, self.side = Stream(), Stream()
        self.current = self.main
        self.alive = self.most = 0
        self.freed: list[tuple[int, int]] = []

    @contextlib.contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def work(self, mib: int = 1) -> None:
        """Write a tensor on the current stream, read it on the side stream, and drop all references to it."""
        owner, tensor = self.current, torch.empty(mib * MIB, dtype=torch.uint8)
        owner.launch()
        self.alive += mib
        self.most = max(self.most, self.alive)
        with _overlap.on_side_stream(tensor):
            assert self.current.seen[owner] == owner.seen[owner], (
                "the side stream reads the tensor before it was written"
            )
            number = self.current.launch()
        weakref.finalize(tensor, self._record_free, owner, number, mib)

    def _record_free(self, owner: Stream, number: int, mib: int) -> None:
        self.alive -= mib
        self.freed.append((owner.seen.get(self.side, 0), number))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: world.current)
    monkeypatch.setattr(torch.cuda, "stream", world.on)
    monkeypatch.setattr(_overlap, "MAX_BYTES", 8 * MIB)
    return world


def assert_in_order(world: World, count: int) -> None:
    assert len(world.freed) == count
    assert world.alive == 0
    assert all(waited >= number for waited, number in world.freed), (
        "memory was freed before the side stream had read it"
    )


def assert_joined(world: World, *streams: Stream) -> None:
    """Assert that the main stream has waited for everything that the other streams did.

    A CUDA graph capture requires this.
    """
    for stream in (world.side, *streams):
        assert world.main.acts[stream] == stream.acts[stream]


def test_a_long_chain_stays_within_the_bound(world: World) -> None:
    with overlapping(world.side):
        for n in range(100):
            world.work()
            assert _overlap._side is not None
            assert _overlap._side.bytes == min(n + 1, 8) * MIB
        assert world.alive == 8
        # The main stream has waited only for the oldest work, so the rest can still overlap.
        assert world.main.seen[world.side] == 92
    assert_in_order(world, 100)
    # While work is being launched, its own tensor exists in addition to those that are held.
    assert world.most == 9
    assert _overlap.most_held() == 8 * MIB
    assert world.main.seen[world.side] == 100


def test_work_that_reads_more_than_the_bound_still_overlaps(world: World) -> None:
    with overlapping(world.side):
        for mib in (1, 20, 20, 1):
            world.work(mib)
        assert world.main.seen[world.side] == 3
        assert world.alive == 1
    assert_in_order(world, 4)
    assert _overlap.most_held() == 20 * MIB


def test_each_stream_waits_for_its_own_memory(world: World) -> None:
    """With phases on two streams, as in the engine, each stream waits only for memory that it owns.

    The phase on the second stream ends first, and its memory is still held during the phase on the first.
    """
    phase = Stream()
    with overlapping(world.side):
        phase.wait_stream(world.main)
        with world.on(phase):
            for _ in range(12):
                world.work()
        assert phase.seen[world.side] == 4
        for _ in range(12):
            world.work()
        world.main.wait_stream(phase)
    assert_in_order(world, 24)
    assert_joined(world, phase)


def test_memory_of_a_finished_stream_is_waited_for_at_the_end(world: World) -> None:
    phase = Stream()
    with overlapping(world.side):
        phase.wait_stream(world.main)
        with world.on(phase):
            world.work()
        world.main.wait_stream(phase)
    assert_in_order(world, 1)
    assert_joined(world, phase)


def test_views_of_one_memory_count_once(world: World) -> None:
    memory = torch.empty(2 * MIB, dtype=torch.uint8)
    with (
        overlapping(world.side),
        _overlap.on_side_stream(memory[: MIB // 2], memory[MIB:], torch.empty(MIB, dtype=torch.uint8)),
    ):
        pass
    assert _overlap.most_held() == 3 * MIB


def test_tensors_of_failed_work_are_held_until_the_end(world: World) -> None:
    """If work on the side stream raises an error, the tensors that it reads are held until the block ends.

    It may already have launched something that reads them, and no event marks the end of that launch.
    """
    tensor = torch.empty(MIB, dtype=torch.uint8)
    freed: list[int] = []
    weakref.finalize(tensor, lambda: freed.append(world.main.seen.get(world.side, 0)))
    with overlapping(world.side):
        try:
            with _overlap.on_side_stream(tensor):
                world.side.launch()
                raise ValueError("the launch after it")
        except ValueError:
            pass
        del tensor
        for _ in range(20):
            world.work()
        assert freed == []
    assert freed == [21]
    assert_in_order(world, 20)


@pytest.mark.parametrize("broken", [False, True], ids=["working streams", "broken capture"])
def test_an_error_releases_everything_and_is_raised_unchanged(world: World, broken: bool) -> None:
    def fails() -> None:
        with overlapping(world.side):
            world.work()
            world.side.broken = broken
            raise ValueError("the reason")

    with pytest.raises(ValueError, match="the reason"):
        fails()
    assert _overlap._side is None
    assert world.alive == 0
    if not broken:
        assert_in_order(world, 1)


def test_a_join_that_fails_is_raised_and_releases_everything(world: World) -> None:
    def breaks() -> None:
        with overlapping(world.side):
            world.work()
            world.side.broken = True

    with pytest.raises(RuntimeError, match="previous error during capture"):
        breaks()
    assert _overlap._side is None
    assert world.alive == 0


def test_nested_blocks_hold_their_own_tensors(world: World) -> None:
    with overlapping(world.side):
        outer = _overlap._side
        world.work()
        with overlapping(world.side):
            world.work()
            world.work()
            assert world.alive == 3
        assert world.alive == 1
        assert _overlap._side is outer
        with overlapping(None):
            world.work()
            assert world.alive == 1
    assert _overlap._side is None
    assert world.alive == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the last test here uses real streams")
def test_the_gradient_of_an_operator_is_the_same_on_the_side_stream(world: World) -> None:
    weight = torch.randn(4, 3, 3, 3).requires_grad_()
    x, gradients = torch.randn(2, 3, 6, 6), []
    for stream in (None, world.side):
        weight.grad = torch.zeros_like(weight)
        with overlapping(stream), accumulating():
            reflect_conv2d(x, weight, padding=1, impl="triton").square().sum().backward()
        gradients.append(weight.grad.clone())
    assert torch.equal(*gradients)
    # At least the gradient of the output and the input were held.
    assert _overlap.most_held() >= 4 * (2 * 4 * 36 + 2 * 3 * 36)


def test_without_a_stream_nothing_overlaps() -> None:
    with overlapping(None), _overlap.on_side_stream(torch.zeros(1)):
        assert _overlap._side is None


@pytest.mark.gpu
def test_weight_gradients_on_a_stream_of_their_own() -> None:
    from fastcyclegan.kernels import accumulating

    weight = torch.randn(64, 64, 3, 3, device="cuda").to(memory_format=torch.channels_last).requires_grad_()
    x, side = torch.randn(2, 64, 64, 64, device="cuda"), torch.cuda.Stream()
    gradients = []
    for stream in (None, side):
        weight.grad = torch.zeros_like(weight)
        with overlapping(stream), accumulating():
            for _ in range(3):
                reflect_conv2d(x, weight, padding=1, impl="triton").square().sum().backward()
        gradients.append(weight.grad.clone())
    assert torch.equal(*gradients)
