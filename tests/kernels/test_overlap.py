"""What the side stream reads is held until the stream that owns it waits, and within a bound: stand-ins note
who waits for whom.
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
    """What a stream had done, and had waited for, when it was recorded."""

    def __init__(self, stream: Stream) -> None:
        self.seen, self.acts = dict(stream.seen), dict(stream.acts)


class Stream:
    """Stands in for torch.cuda.Stream: counts its launches, and notes the launches of others that it waits
    for.

    ``acts`` counts waits too: what has waited after it was joined must be joined again before a capture ends.
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
        for mine, others in ((self.seen, event.seen), (self.acts, event.acts)):
            for stream, count in others.items():
                mine[stream] = max(count, mine.get(stream, 0))

    def wait_stream(self, stream: Stream) -> None:
        self.wait_event(stream.record_event())


class World:
    """A main stream, a side stream, and tensors that note what their owner had waited for when they died."""

    def __init__(self) -> None:
        self.main, self.side = Stream(), Stream()
        self.current = self.main
        self.alive = self.most = 0
        self.deaths: list[tuple[int, int]] = []

    @contextlib.contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def work(self, mib: int = 1) -> None:
        """Let the side stream read a tensor that the current stream made and forgets."""
        owner, tensor = self.current, torch.empty(mib * MIB, dtype=torch.uint8)
        owner.launch()
        self.alive += mib
        self.most = max(self.most, self.alive)
        with _overlap.beside(tensor):
            assert self.current.seen[owner] == owner.seen[owner], (
                "the side stream reads before it was written"
            )
            number = self.current.launch()
        weakref.finalize(tensor, self._died, owner, number, mib)

    def _died(self, owner: Stream, number: int, mib: int) -> None:
        self.alive -= mib
        self.deaths.append((owner.seen.get(self.side, 0), number))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: made.current)
    monkeypatch.setattr(torch.cuda, "stream", made.on)
    monkeypatch.setattr(_overlap, "MOST_BYTES", 8 * MIB)
    return made


def assert_in_order(world: World, count: int) -> None:
    assert len(world.deaths) == count
    assert world.alive == 0
    assert all(waited >= number for waited, number in world.deaths), (
        "memory was given away before the side stream had read it"
    )


def assert_joined(world: World, *streams: Stream) -> None:
    """As a capture must end: whatever a stream did or waited for, the main stream has waited for that."""
    for stream in (world.side, *streams):
        assert world.main.acts[stream] == stream.acts[stream]


def test_a_long_chain_holds_no_more_than_the_bound(world: World) -> None:
    with overlapping(world.side):
        for n in range(100):
            world.work()
            assert _overlap._side is not None
            assert _overlap._side.bytes == min(n + 1, 8) * MIB
        assert world.alive == 8
        # The oldest alone is waited for: all others may still run beside.
        assert world.main.seen[world.side] == 92
    assert_in_order(world, 100)
    # While work is launched its own tensor is there, held or not.
    assert world.most == 9
    assert _overlap.most_held() == 8 * MIB
    assert world.main.seen[world.side] == 100


def test_work_that_reads_more_than_the_bound_still_runs_beside(world: World) -> None:
    with overlapping(world.side):
        for mib in (1, 20, 20, 1):
            world.work(mib)
        assert world.main.seen[world.side] == 3
        assert world.alive == 1
    assert_in_order(world, 4)
    assert _overlap.most_held() == 20 * MIB


def test_each_stream_waits_for_its_own_memory(world: World) -> None:
    """Phases on two streams, as the engine runs them: the second's ends first, and its memory is held into
    the first's.
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


def test_memory_of_a_stream_that_is_done_is_waited_for_at_the_end(world: World) -> None:
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
        _overlap.beside(memory[: MIB // 2], memory[MIB:], torch.empty(MIB, dtype=torch.uint8)),
    ):
        pass
    assert _overlap.most_held() == 3 * MIB


def test_work_that_fails_is_held_to_the_end(world: World) -> None:
    """It may have launched something that reads: no event of its own says when that is over."""
    tensor = torch.empty(MIB, dtype=torch.uint8)
    died: list[int] = []
    weakref.finalize(tensor, lambda: died.append(world.main.seen.get(world.side, 0)))
    with overlapping(world.side):
        try:
            with _overlap.beside(tensor):
                world.side.launch()
                raise ValueError("the launch after it")
        except ValueError:
            pass
        del tensor
        for _ in range(20):
            world.work()
        assert died == []
    assert died == [21]
    assert_in_order(world, 20)


@pytest.mark.parametrize("broken", [False, True], ids=["the streams are well", "a capture that broke"])
def test_an_error_lets_go_of_everything_and_stays_what_it_was(world: World, broken: bool) -> None:
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


def test_a_join_that_fails_is_an_error_and_lets_go(world: World) -> None:
    def breaks() -> None:
        with overlapping(world.side):
            world.work()
            world.side.broken = True

    with pytest.raises(RuntimeError, match="previous error during capture"):
        breaks()
    assert _overlap._side is None
    assert world.alive == 0


def test_blocks_inside_blocks_hold_their_own(world: World) -> None:
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has streams of its own: the last test here")
def test_an_operators_gradient_is_the_same_beside(world: World) -> None:
    weight = torch.randn(4, 3, 3, 3).requires_grad_()
    x, found = torch.randn(2, 3, 6, 6), []
    for stream in (None, world.side):
        weight.grad = torch.zeros_like(weight)
        with overlapping(stream), accumulating():
            reflect_conv2d(x, weight, padding=1, impl="triton").square().sum().backward()
        found.append(weight.grad.clone())
    assert torch.equal(*found)
    # At least the gradient of the output and the input.
    assert _overlap.most_held() >= 4 * (2 * 4 * 36 + 2 * 3 * 36)


def test_without_a_stream_nothing_overlaps() -> None:
    with overlapping(None), _overlap.beside(torch.zeros(1)):
        assert _overlap._side is None


@pytest.mark.gpu
def test_weight_gradients_on_a_stream_of_their_own() -> None:
    from fastcyclegan.kernels import accumulating

    weight = torch.randn(64, 64, 3, 3, device="cuda").to(memory_format=torch.channels_last).requires_grad_()
    x, side = torch.randn(2, 64, 64, 64, device="cuda"), torch.cuda.Stream()
    found = []
    for stream in (None, side):
        weight.grad = torch.zeros_like(weight)
        with overlapping(stream), accumulating():
            for _ in range(3):
                reflect_conv2d(x, weight, padding=1, impl="triton").square().sum().backward()
        found.append(weight.grad.clone())
    assert torch.equal(*found)
