"""What every bench shares: the device, the race of all providers of a group, the order and the budget, and
lines that name the hardware.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from pytest_benchmark.utils import safe_dumps

from bench.figures import lines_of, row_of
from bench.machine import DEVICE, conditions, machine
from bench.timing import Builders, Entrant, Outcome, Race, Unserved, clock, race
from fastcyclegan.tensor_files import write_atomically

# Beyond this no bench begins, so that all end in 5 minutes on two cores and in 8 on a GPU.
BUDGET = {"cpu": 270.0, "cuda": 440.0}
STARTED = pytest.StashKey[float]()
ABOUT = pytest.StashKey[dict[str, str]]()
RACES = pytest.StashKey[dict[Hashable, dict[str, Outcome]]]()
PROVIDER = "provider"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--bench-budget",
        type=float,
        metavar="SECONDS",
        default=BUDGET[DEVICE],
        help=(
            "the most telling benches run first; none begins that would not end in this time (default:"
            " %(default)s)"
        ),
    )
    parser.addoption(
        "--bench-quick",
        action="store_true",
        help="the smallest sizes and two rounds: for the tests, not for figures",
    )
    parser.addoption(
        "--plant-fault",
        action="store_true",
        help="let ours compute something else, for the tests: no figure may come of it",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[STARTED] = time.monotonic()
    config.stash[RACES] = {}
    config.stash[ABOUT] = machine()
    if config.getoption("--bench-quick"):
        config.stash[ABOUT]["sizes"] = "for tests, no figure means anything"
    # Its table is of whole rounds, which for some providers are several operations; ours, of single ones, is
    # printed.
    config.option.benchmark_quiet = True
    if not config.getoption("--bench-budget") >= 0:
        raise pytest.UsageError("--bench-budget must not be negative")


def pytest_report_header(config: pytest.Config) -> list[str]:
    about = config.stash[ABOUT]
    names = []
    for key in ("driver", "torch", "triton", "python", "commit"):
        if key in about:
            names.append(f"{key} {about[key]}")
    budget = f"{config.getoption('--bench-budget'):.0f} s for all"
    if config.getoption("--bench-quick"):
        budget += "; --bench-quick: sizes for tests, no figure here means anything"
    elif DEVICE == "cpu":
        budget += "; no GPU: sizes are reduced, each group names its own"
    return [f"bench: {about['hardware']}; {', '.join(names)}", f"bench: {budget}"]


@pytest.fixture
def device() -> str:
    return DEVICE


@pytest.fixture
def quick(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--bench-quick"))


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--plant-fault"))


# --- Order and budget ---------------------------------------------------------------------------------------


def _rank(item: pytest.Item) -> int:
    marker = item.get_closest_marker("telling")
    if marker is None:
        return 5
    return int(marker.args[0])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_rank)


def _contest(item: pytest.Item) -> Hashable:
    """Return what the items of one race have in common: all but the provider."""
    others = []
    callspec = getattr(item, "callspec", None)
    if callspec is not None:
        for name, value in callspec.params.items():
            if name != PROVIDER:
                others.append((name, str(value)))
    return item.path, getattr(item, "originalname", item.name), tuple(others)


@pytest.fixture(autouse=True)
def _budget(request: pytest.FixtureRequest) -> None:
    if _contest(request.node) in request.config.stash[RACES]:
        return
    cost = 0
    marker = request.node.get_closest_marker("cost")
    if marker is not None and not request.config.getoption("--bench-quick"):
        cost = marker.kwargs.get(DEVICE, 0)
    if why := _too_late(request.config, cost):
        pytest.skip(why)


def _too_late(config: pytest.Config, cost: float) -> str:
    """Return why what takes up to ``cost`` seconds does not begin any more, "" where it does."""
    budget = config.getoption("--bench-budget")
    left = budget - (time.monotonic() - config.stash[STARTED])
    if left > cost:
        return ""
    why = f"{max(left, 0):.0f} s are left of the budget of {budget:.0f} s"
    if cost:
        why += f", this takes up to {cost:.0f} s"
    return why


# --- The race -----------------------------------------------------------------------------------------------


def _nothing(_: str) -> float:
    """What all providers cost where nothing is left out for its cost."""
    return 0.0


@pytest.fixture(name="race")
def _race(request: pytest.FixtureRequest, benchmark: BenchmarkFixture, quick: bool) -> Race:
    config, name = request.config, request.node.callspec.params[PROVIDER]

    def run(
        group: str,
        builders: Builders,
        rounds: int,
        seconds: float = 60.0,
        costs: Callable[[str], float] = _nothing,
    ) -> None:
        races, contest = config.stash[RACES], _contest(request.node)
        if contest not in races:
            if quick:
                rounds, costs = min(rounds, 2), _nothing
            torch._dynamo.reset()
            chosen: Builders = {}
            for n in _selected(request.session, contest, builders):
                chosen[n] = partial(_affordable, config, costs(n), builders[n])
            races[contest] = race(chosen, rounds, seconds)
        outcome = races[contest][name]
        if outcome.error is not None:
            raise outcome.error
        if outcome.why_not:
            pytest.skip(outcome.why_not)
        benchmark.group = group
        benchmark.extra_info.update(provider=name, parity="held", **outcome.info)
        clock.play(outcome.intervals)
        benchmark.pedantic(lambda: None, rounds=len(outcome.intervals))
        _keep(config)

    return run


def _selected(session: pytest.Session, contest: Hashable, builders: Builders) -> list[str]:
    """Return the providers of ``contest`` that pytest was asked for."""
    asked_for = set()
    for item in session.items:
        if _contest(item) == contest:
            asked_for.add(item.callspec.params[PROVIDER])  # type: ignore[attr-defined]
    return [name for name in builders if name in asked_for]


def _affordable(config: pytest.Config, cost: float, build: Callable[[], Entrant]) -> Entrant:
    if why := _too_late(config, cost):
        raise Unserved(why)
    return build()


def _keep(config: pytest.Config) -> None:
    """Write what has been measured so far where --benchmark-json will write it all at the end: a run that is
    killed loses nothing.
    """
    session = config._benchmarksession  # type: ignore[attr-defined]
    if not session.json:
        return
    found = [bench.as_dict(include_data=True) for bench in session.benchmarks if bench.stats.data]
    text = safe_dumps({"machine_info": {"fastcyclegan": config.stash[ABOUT]}, "benchmarks": found}, indent=1)
    write_atomically(Path(session.json), lambda partial: partial.write_text(text))


# --- What is said of it -------------------------------------------------------------------------------------


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    about = config.stash[ABOUT]
    machine_info["fastcyclegan"] = {**about, "conditions": conditions()}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say each group's rates and ratios, beside the first provider of the group."""
    session = getattr(terminalreporter.config, "_benchmarksession", None)
    if session is None:
        return
    rows = [row_of(bench.as_dict(include_data=True)) for bench in session.benchmarks]
    for line in lines_of(rows):
        terminalreporter.write_line(line)
