"""The timing harness detects slower providers, randomises the order, and reports no time for failed ones."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch

from bench import timing
from bench.figures import Row, speed_up
from bench.timing import MAX_WARM_UPS, Clock, Entrant, Steps, Unavailable, race, synchronised, warm_up


def sleeping(seconds: float) -> Callable[[], Entrant]:
    return lambda: Entrant(lambda: time.sleep(seconds))


def test_detects_a_slowdown_by_a_fifth(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that takes a fifth longer is detected on a noisy machine, simulated with a fake clock.

    The machine's speed varies by up to a tenth between rounds, and the machine is busy now and then.
    """
    now, rng = [0.0], random.Random(0)
    monkeypatch.setattr(timing, "synchronised", lambda: now[0])

    def taking(seconds: float) -> Callable[[], Entrant]:
        def run() -> None:
            now[0] += seconds * rng.uniform(0.9, 1.1) * (3 if rng.random() < 0.1 else 1)

        return lambda: Entrant(run)

    outcomes = race({"ours": taking(0.02), "slower": taking(0.024)}, rounds=50, seed=0)
    rows = {name: Row("", "", name, outcome.seconds) for name, outcome in outcomes.items()}
    assert speed_up(rows["slower"], rows["ours"]).median == pytest.approx(1 / 1.2, abs=0.05)
    assert speed_up(rows["ours"], rows["ours"]).median == 1


def test_every_provider_runs_once_per_round_in_random_order() -> None:
    order: list[str] = []
    builders = {name: lambda name=name: Entrant(lambda: order.append(name), cold=True) for name in "abc"}  # type: ignore[misc]
    race(builders, rounds=20, seed=0)
    rounds = ["".join(order[n : n + 3]) for n in range(0, 60, 3)]
    assert all(sorted(each) == list("abc") for each in rounds)
    assert len(set(rounds)) == 6


def broken(*_: Any) -> Any:
    raise RuntimeError("broken")


def wrong() -> None:
    raise AssertionError("wrong result")


def unavailable() -> Entrant:
    raise Unavailable("no such chip")


@pytest.mark.parametrize(
    ("build", "error", "skip_reason"),
    [
        pytest.param(broken, "broken", "", id="cannot be built"),
        pytest.param(lambda: Entrant(broken), "broken", "", id="cannot run"),
        pytest.param(lambda: Entrant(lambda: None, before=broken), "broken", "", id="fails in a round"),
        pytest.param(
            lambda: Entrant(lambda: None, check=wrong), "wrong result", "", id="computes wrong results"
        ),
        pytest.param(unavailable, None, "no such chip", id="is not available here"),
    ],
)
def test_a_failing_provider_gets_no_time_but_the_others_do(
    build: Callable[[], Entrant], error: str | None, skip_reason: str
) -> None:
    outcomes = race({"other": sleeping(0.001), "failing": build, "last": sleeping(0.001)}, rounds=4)
    failing = outcomes["failing"]
    assert (failing.intervals, failing.skip_reason) == ([], skip_reason)
    assert str(failing.error) == str(error)
    assert [len(outcomes[name].intervals) for name in ("other", "last")] == [4, 4]


def test_rounds_stop_at_the_time_limit_but_not_before_the_third() -> None:
    assert len(race({"slow": sleeping(0.05)}, rounds=1000, seconds=0.3)["slow"].intervals) in range(3, 8)
    assert len(race({"slow": sleeping(0.01)}, rounds=1000, seconds=0.0)["slow"].intervals) == 3


def test_warming_up_continues_while_runs_get_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(timing, "synchronised", lambda: now[0])

    def runs(times: Iterable[float], history: Sequence[float] = ()) -> int:
        """Return the number of warm-up runs if successive runs take the seconds in ``times``."""
        each = iter(times)
        return len(warm_up(lambda: now.__setitem__(0, now[0] + next(each)), history))

    assert runs([8, 4, 2, 2, 1]) == 4
    assert runs([1, 1, 1]) == 2
    assert runs(0.1 * 0.5**n for n in range(100)) == MAX_WARM_UPS
    # Slow runs stop at the time limit. The very first run is not used for comparison, because it compiles.
    assert runs([100, 9, 8, 7, 6]) == 3
    assert runs([2, 2, 2], history=[60, 2]) == 3


def test_clock_replays_its_readings_and_then_reads_the_time() -> None:
    clock = Clock()
    clock.play([(1.0, 2.5), (10.0, 10.25)])
    assert [clock() for _ in range(4)] == [1.0, 2.5, 10.0, 10.25]
    assert clock() == pytest.approx(synchronised(), abs=0.5)


def test_steps_keep_the_results_of_the_last_round() -> None:
    x = torch.ones(2)
    steps = Steps(lambda: [lambda: x + 1, lambda: x * 3], "cpu")
    steps()
    x += 1
    steps()
    assert [y.tolist() for y in steps.results] == [[3, 3], [6, 6]]
