"""What every bench shares: the device, the race of all providers of a group, the order and the budget, and
lines that name the hardware.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from pytest_benchmark.utils import safe_dumps

from bench.figures import lines_of, row_of
from bench.machine import DEVICE, conditions, machine
from bench.timing import Builders, Entrant, Outcome, Race, Unserved, clock, race

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
    config.stash[ABOUT] = machine() | (
        {"sizes": "for tests, no figure means anything"} if config.getoption("--bench-quick") else {}
    )
    # Its table is of whole rounds, which for some providers are several operations; ours, of single ones, is
    # printed.
    config.option.benchmark_quiet = True
    if not config.getoption("--bench-budget") >= 0:
        raise pytest.UsageError("--bench-budget must not be negative")


def pytest_report_header(config: pytest.Config) -> list[str]:
    about = config.stash[ABOUT]
    names = ", ".join(
        f"{key} {about[key]}" for key in ("driver", "torch", "triton", "python", "commit") if key in about
    )
    sizes = "" if DEVICE == "cuda" else "; no GPU: sizes are reduced, each group names its own"
    if config.getoption("--bench-quick"):
        sizes = "; --bench-quick: sizes for tests, no figure here means anything"
    return [
        f"bench: {about['hardware']}; {names}",
        f"bench: {config.getoption('--bench-budget'):.0f} s for all{sizes}",
    ]


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
    return int(marker.args[0]) if marker else 5


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_rank)


def _contest(item: pytest.Item) -> Hashable:
    """Return what the items of one race have in common: all but the provider."""
    callspec = getattr(item, "callspec", None)
    others = tuple((k, str(v)) for k, v in callspec.params.items() if k != PROVIDER) if callspec else ()
    return item.path, getattr(item, "originalname", item.name), others


@pytest.fixture(autouse=True)
def _budget(request: pytest.FixtureRequest) -> None:
    if _contest(request.node) in request.config.stash[RACES]:
        return
    marker = request.node.get_closest_marker("cost")
    cost = marker.kwargs.get(DEVICE, 0) if marker and not request.config.getoption("--bench-quick") else 0
    if why := _too_late(request.config, cost):
        pytest.skip(why)


def _too_late(config: pytest.Config, cost: float) -> str:
    """Return why what takes up to ``cost`` seconds does not begin any more, "" where it does."""
    budget = config.getoption("--bench-budget")
    left = budget - (time.monotonic() - config.stash[STARTED])
    if left > cost:
        return ""
    return (
        f"{max(left, 0):.0f} s are left of the budget of {budget:.0f} s"
        + f", this takes up to {cost:.0f} s" * bool(cost)
    )


# --- The race -----------------------------------------------------------------------------------------------


@pytest.fixture(name="race")
def _race(request: pytest.FixtureRequest, benchmark: BenchmarkFixture, quick: bool) -> Race:
    config, name = request.config, request.node.callspec.params[PROVIDER]

    def affordable(build: Callable[[], Entrant], cost: float) -> Callable[[], Entrant]:
        def checked() -> Entrant:
            if why := _too_late(config, cost):
                raise Unserved(why)
            return build()

        return checked

    def run(
        group: str,
        builders: Builders,
        rounds: int,
        seconds: float = 60.0,
        costs: Callable[[str], float] = lambda name: 0.0,
    ) -> None:
        races, contest = config.stash[RACES], _contest(request.node)
        if contest not in races:
            same = [item for item in request.session.items if _contest(item) == contest]
            selected = {item.callspec.params[PROVIDER] for item in same}  # type: ignore[attr-defined]
            torch._dynamo.reset()
            chosen = {
                n: affordable(build, 0 if quick else costs(n))
                for n, build in builders.items()
                if n in selected
            }
            races[contest] = race(chosen, min(rounds, 2) if quick else rounds, seconds)
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


def _keep(config: pytest.Config) -> None:
    """Write what has been measured so far where --benchmark-json will write it all at the end: a run that is
    killed loses nothing.
    """
    session = config._benchmarksession  # type: ignore[attr-defined]
    if not session.json:
        return
    found = [bench.as_dict(include_data=True) for bench in session.benchmarks if bench.stats.data]
    text = safe_dumps({"machine_info": {"fastcyclegan": config.stash[ABOUT]}, "benchmarks": found}, indent=1)
    partial = Path(f"{session.json}.partial")
    partial.write_text(text)
    partial.replace(session.json)


# --- What is said of it -------------------------------------------------------------------------------------


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    about = config.stash[ABOUT]
    machine_info["fastcyclegan"] = {**about, "conditions": conditions()}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say each group's rates and ratios, beside the first provider of the group."""
    session = getattr(terminalreporter.config, "_benchmarksession", None)
    rows = (
        [row_of(bench.as_dict(include_data=True)) for bench in session.benchmarks]
        if session is not None
        else []
    )
    for line in lines_of(rows):
        terminalreporter.write_line(line)
