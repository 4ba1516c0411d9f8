"""The harness itself: that it sees what is slower, mixes the order, and gives no time to what failed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch

from bench import timing
from bench.figures import Row, speed_up
from bench.timing import MOST_WARM_UPS, Clock, Entrant, Steps, Unserved, race, synchronised, warmed_up


def sleeping(seconds: float) -> Callable[[], Entrant]:
    return lambda: Entrant(lambda: time.sleep(seconds))


def test_a_planted_slowdown_of_a_fifth_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of its own, on a machine that is up to a tenth slower or faster from one round to the next,
    and now and then busy.
    """
    now, chance = [0.0], random.Random(0)
    monkeypatch.setattr(timing, "synchronised", lambda: now[0])

    def taking(seconds: float) -> Callable[[], Entrant]:
        def run() -> None:
            now[0] += seconds * chance.uniform(0.9, 1.1) * (3 if chance.random() < 0.1 else 1)

        return lambda: Entrant(run)

    outcomes = race({"ours": taking(0.02), "slower": taking(0.024)}, rounds=50, seed=0)
    rows = {name: Row("", "", name, outcome.seconds) for name, outcome in outcomes.items()}
    assert speed_up(rows["slower"], rows["ours"]).median == pytest.approx(1 / 1.2, abs=0.05)
    assert speed_up(rows["ours"], rows["ours"]).median == 1


def test_everybody_has_a_turn_in_each_round_in_an_order_that_is_drawn() -> None:
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


def unserved() -> Entrant:
    raise Unserved("no such chip")


@pytest.mark.parametrize(
    ("build", "error", "why_not"),
    [
        pytest.param(broken, "broken", "", id="cannot be built"),
        pytest.param(lambda: Entrant(broken), "broken", "", id="cannot run"),
        pytest.param(lambda: Entrant(lambda: None, before=broken), "broken", "", id="breaks later"),
        pytest.param(
            lambda: Entrant(lambda: None, check=wrong), "wrong result", "", id="computes something else"
        ),
        pytest.param(unserved, None, "no such chip", id="is not for this machine"),
    ],
)
def test_what_fails_has_no_time_and_the_others_have(
    build: Callable[[], Entrant], error: str | None, why_not: str
) -> None:
    outcomes = race({"other": sleeping(0.001), "failing": build, "last": sleeping(0.001)}, rounds=4)
    failing = outcomes["failing"]
    assert (failing.intervals, failing.why_not) == ([], why_not)
    assert str(failing.error) == str(error)
    assert [len(outcomes[name].intervals) for name in ("other", "last")] == [4, 4]


def test_rounds_end_in_time_but_not_before_there_are_a_few() -> None:
    assert len(race({"slow": sleeping(0.05)}, rounds=1000, seconds=0.3)["slow"].intervals) in range(3, 8)
    assert len(race({"slow": sleeping(0.01)}, rounds=1000, seconds=0.0)["slow"].intervals) == 3


def test_warming_up_goes_on_while_it_helps_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(timing, "synchronised", lambda: now[0])

    def runs(times: Iterable[float], history: Sequence[float] = ()) -> int:
        """Return how many runs there were, each of which took the next of ``times``."""
        each = iter(times)
        return len(warmed_up(lambda: now.__setitem__(0, now[0] + next(each)), history))

    assert runs([8, 4, 2, 2, 1]) == 4
    assert runs([1, 1, 1]) == 2
    assert runs(0.1 * 0.5**n for n in range(100)) == MOST_WARM_UPS
    # Slow ones end in time, and the first run of all, which compiles, is nothing to compare with.
    assert runs([100, 9, 8, 7, 6]) == 3
    assert runs([2, 2, 2], history=[60, 2]) == 3


def test_the_clock_gives_back_what_was_read_and_then_goes_on() -> None:
    clock = Clock()
    clock.play([(1.0, 2.5), (10.0, 10.25)])
    assert [clock() for _ in range(4)] == [1.0, 2.5, 10.0, 10.25]
    assert clock() == pytest.approx(synchronised(), abs=0.5)


def test_steps_keep_what_the_last_round_gave() -> None:
    x = torch.ones(2)
    steps = Steps(lambda: [lambda: x + 1, lambda: x * 3], "cpu")
    steps()
    x += 1
    steps()
    assert [y.tolist() for y in steps.results] == [[3, 3], [6, 6]]
