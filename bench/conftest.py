"""Fixtures and hooks for all benches.

They time the providers of a group side by side, run the benches in order and within the time budget, and
report the hardware and the figures.
"""

from __future__ import annotations

import gc
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
from bench.operators import MATRIX, QUICK_MATRIX
from bench.timing import Builders, Entrant, Outcome, Race, Unavailable, clock, race
from fastcyclegan.tensor_files import write_atomically

# Time budgets in seconds. A bench that could exceed the budget does not start, so that all benches finish
# within 5 minutes on two cores and 8 minutes on a GPU.
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
            "time budget: the most informative benches run first, and a bench that could exceed the budget is"
            " skipped (default: %(default)s)"
        ),
    )
    parser.addoption(
        "--bench-quick",
        action="store_true",
        help="run the smallest sizes and at most two rounds (used by the tests); the figures are meaningless",
    )
    parser.addoption(
        "--plant-fault",
        action="store_true",
        help="make fastcyclegan compute wrong results, to check that no figures are reported for it",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[STARTED] = time.monotonic()
    config.stash[RACES] = {}
    config.stash[ABOUT] = machine()
    if config.getoption("--bench-quick"):
        config.stash[ABOUT]["sizes"] = "for tests, figures are meaningless"
    # pytest-benchmark's table shows whole rounds, which are several operations for some providers. The
    # lines printed at the end show single operations.
    config.option.benchmark_quiet = True
    if not config.getoption("--bench-budget") >= 0:
        raise pytest.UsageError("--bench-budget must not be negative")


def pytest_collection_finish() -> None:
    """Exempt the imported modules from garbage collections, of which each group of providers starts one."""
    gc.collect()
    gc.freeze()


def pytest_report_header(config: pytest.Config) -> list[str]:
    about = config.stash[ABOUT]
    names = []
    for key in ("driver", "torch", "triton", "python", "commit"):
        if key in about:
            names.append(f"{key} {about[key]}")
    budget = f"time budget {config.getoption('--bench-budget'):.0f} s"
    if config.getoption("--bench-quick"):
        budget += "; --bench-quick: test sizes, so the figures are meaningless"
    elif DEVICE == "cpu":
        budget += "; no GPU, so sizes are reduced (each group's name includes its size)"
    return [f"bench: {about['hardware']}; {', '.join(names)}", f"bench: {budget}"]


@pytest.fixture
def device() -> str:
    return DEVICE


@pytest.fixture
def quick(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--bench-quick"))


@pytest.fixture(autouse=True)
def _matrix_size(quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if quick:
        monkeypatch.setitem(MATRIX, DEVICE, QUICK_MATRIX)


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


def _group_key(item: pytest.Item) -> Hashable:
    """Return a key that is shared by all items that are timed together.

    They differ only in the provider.
    """
    others = []
    callspec = getattr(item, "callspec", None)
    if callspec is not None:
        for name, value in callspec.params.items():
            if name != PROVIDER:
                others.append((name, str(value)))
    return item.path, getattr(item, "originalname", item.name), tuple(others)


@pytest.fixture(autouse=True)
def _budget(request: pytest.FixtureRequest) -> None:
    if _group_key(request.node) in request.config.stash[RACES]:
        return
    cost = 0
    marker = request.node.get_closest_marker("cost")
    if marker is not None and not request.config.getoption("--bench-quick"):
        cost = marker.kwargs.get(DEVICE, 0)
    if reason := _too_late(request.config, cost):
        pytest.skip(reason)


def _too_late(config: pytest.Config, cost: float) -> str:
    """Return the reason why work of up to ``cost`` seconds can no longer start, or "" if it can."""
    budget = config.getoption("--bench-budget")
    remaining = budget - (time.monotonic() - config.stash[STARTED])
    if remaining > cost:
        return ""
    reason = f"only {max(remaining, 0):.0f} s of the {budget:.0f} s budget remain"
    if cost:
        reason += f", and this takes up to {cost:.0f} s"
    return reason


# --- Timing the providers of a group ------------------------------------------------------------------------


def _no_cost(_: str) -> float:
    """Return 0 as the cost of every provider, so that none is left out because of its cost."""
    return 0.0


@pytest.fixture(name="race")
def _race(request: pytest.FixtureRequest, benchmark: BenchmarkFixture, quick: bool) -> Race:
    config, name = request.config, request.node.callspec.params[PROVIDER]

    def run(
        group: str,
        builders: Builders,
        rounds: int,
        seconds: float = 60.0,
        costs: Callable[[str], float] = _no_cost,
    ) -> None:
        races, group_key = config.stash[RACES], _group_key(request.node)
        if group_key not in races:
            if quick:
                rounds, costs = min(rounds, 2), _no_cost
            torch._dynamo.reset()
            chosen: Builders = {}
            for n in _selected(request.session, group_key, builders):
                chosen[n] = partial(_affordable, config, costs(n), builders[n])
            races[group_key] = race(chosen, rounds, seconds)
        outcome = races[group_key][name]
        if outcome.error is not None:
            raise outcome.error
        if outcome.skip_reason:
            pytest.skip(outcome.skip_reason)
        benchmark.group = group
        benchmark.extra_info.update(provider=name, parity="held", **outcome.info)
        clock.play(outcome.intervals)
        benchmark.pedantic(lambda: None, rounds=len(outcome.intervals))
        _save_partial_results(config)

    return run


def _selected(session: pytest.Session, group_key: Hashable, builders: Builders) -> list[str]:
    """Return the providers in ``builders`` whose benches in group ``group_key`` pytest has selected."""
    selected = set()
    for item in session.items:
        if _group_key(item) == group_key:
            selected.add(item.callspec.params[PROVIDER])  # type: ignore[attr-defined]
    return [name for name in builders if name in selected]


def _affordable(config: pytest.Config, cost: float, build: Callable[[], Entrant]) -> Entrant:
    if reason := _too_late(config, cost):
        raise Unavailable(reason)
    return build()


def _save_partial_results(config: pytest.Config) -> None:
    """Write the results so far to the file of --benchmark-json, so that a run that is killed loses nothing.

    At the end of the run pytest-benchmark overwrites it with all results.
    """
    session = config._benchmarksession  # type: ignore[attr-defined]
    if not session.json:
        return
    benches = [bench.as_dict(include_data=True) for bench in session.benchmarks if bench.stats.data]
    text = safe_dumps(
        {"machine_info": {"fastcyclegan": config.stash[ABOUT]}, "benchmarks": benches}, indent=1
    )
    write_atomically(Path(session.json), lambda partial: partial.write_text(text))


# --- Reports ------------------------------------------------------------------------------------------------


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    about = config.stash[ABOUT]
    machine_info["fastcyclegan"] = {**about, "conditions": conditions()}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print each group's times and rates, and the speed-ups over the first provider of the group."""
    session = getattr(terminalreporter.config, "_benchmarksession", None)
    if session is None:
        return
    rows = [row_of(bench.as_dict(include_data=True)) for bench in session.benchmarks]
    for line in lines_of(rows):
        terminalreporter.write_line(line)
