"""A pytest plugin for machines that are there for half an hour: python -m pytest -p on_device --device-record
FILE ...

Every test is written down as it starts and as it ends, so that a run that is killed has told all that it
knew. A failure carries the kernels that were launched last. After a fault that the device does not survive
its process ends alone; pytest-xdist starts another.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from bench.launches import FAULTS, LaunchLog, breaks_the_device, plant_fault

# What a process that ends after a device fault returns.
BROKEN = 70
MOST_TEXT, MOST_PRINTED = 6000, 1500


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("on_device")
    group.addoption(
        "--device-record", type=Path, metavar="FILE", help="a line of JSON for each test that starts or ends"
    )
    group.addoption(
        "--device-words",
        default="",
        metavar="A,B",
        help="only tests for a GPU whose names hold one of these words",
    )
    group.addoption(
        "--device-rest", default="", metavar="A,B", help="only tests whose names hold none of these words"
    )
    group.addoption(
        "--rehearse",
        type=int,
        metavar="N",
        help="instead of what needs a GPU, the first N tests of each file that do not",
    )
    group.addoption("--launch-log", type=Path, metavar="FILE", help="every launch, written before it is made")
    group.addoption(
        "--plant-device-fault",
        choices=FAULTS,
        help="let kernels compute something else, or crash: tests must fail",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--device-record") is not None:
        config.pluginmanager.register(_Recorder(config), "on_device_recorder")


# --- Which tests --------------------------------------------------------------------------------------------


def _words(config: pytest.Config, option: str) -> list[str]:
    return [word for word in config.getoption(option).split(",") if word]


def _for_a_gpu(item: pytest.Item) -> bool:
    return item.get_closest_marker("gpu") is not None


def wanted(items: list[pytest.Item], words: list[str], rest: list[str]) -> list[pytest.Item]:
    """Return the tests for a GPU that ``words`` name, or, where there are none, all tests but those that
    ``rest`` names.
    """
    if words:
        return [item for item in items if _for_a_gpu(item) and _named_by(words, item)]
    return [item for item in items if not _named_by(rest, item)]


def _named_by(words: list[str], item: pytest.Item) -> bool:
    return any(word in item.name for word in words)


def first_of_each_file(items: list[pytest.Item], count: int) -> list[pytest.Item]:
    """Return the first ``count`` tests of each file that do not need a GPU."""
    taken: dict[Path, int] = {}
    kept = []
    for item in items:
        if not _for_a_gpu(item) and taken.get(item.path, 0) < count:
            taken[item.path] = taken.get(item.path, 0) + 1
            kept.append(item)
    return kept


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    words = _words(config, "--device-words")
    rest = _words(config, "--device-rest")
    rehearsed = config.getoption("--rehearse")
    chosen = wanted(items, words, rest)
    if not chosen:
        name = "otherwise"
        if words:
            name = " or ".join(words)
        files = {str(item.path) for item in items}
        raise pytest.UsageError(f"no test is called {name}: {', '.join(files)}")
    if rehearsed is not None:
        # Parity first: what needs a GPU is the same check at real sizes.
        parity_first = sorted(items, key=lambda item: not _named_by(["equals", "parity"], item))
        chosen = first_of_each_file(parity_first, rehearsed)
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


# --- What is written down -----------------------------------------------------------------------------------


class _Recorder:
    """Writes what happens to a file of this process's own, beside ``--device-record``: workers and their
    master write at once.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        record: Path = config.getoption("--device-record")
        self._file = record.with_name(f"{record.stem}.{os.getpid()}{record.suffix}").open("a")
        self._is_worker = hasattr(config, "workerinput")
        self._log: LaunchLog | None = None

    def _write(self, **event: Any) -> None:
        self._file.write(json.dumps(event) + "\n")
        self._file.flush()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        # Not before: the tests' conftest.py says whether kernels are interpreted, and Triton asks when it is
        # first imported.
        if self._log is None and "fastcyclegan" in sys.modules:
            self._log = LaunchLog(self.config.getoption("--launch-log"))
            self._log.start()
            if fault := self.config.getoption("--plant-device-fault"):
                plant_fault(fault)
        if self._log is not None:
            self._log.last.clear()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        result = yield
        # A fault shows at the next wait for the device: let that be in the test that made it.
        _wait_for_the_device()
        return result

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        if (torch := _torch_on_a_gpu()) is not None:
            # What torch keeps for later, the other workers cannot have.
            torch.cuda.empty_cache()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, Any, Any]:
        report = yield
        if report.failed and call.excinfo is not None:
            launches = []
            if self._log is not None:
                launches = list(self._log.last)
            report.user_properties.append(("launches", launches))
            if breaks_the_device(call.excinfo.value) or _is_broken():
                self._write(event="broken", test=item.nodeid, text=_text(report), launches=launches)
                os._exit(BROKEN)
        return report

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        # A file that cannot be imported has no test that could fail.
        if report.failed and not self._is_worker:
            text = report.longreprtext[-MOST_TEXT:]
            self._write(event="failed", test=report.nodeid, text=text, launches=[])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if not self._is_worker:
            self._write(event="started", test=nodeid, time=time.time())

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self._is_worker or (report.when != "call" and report.outcome == "passed"):
            return
        text = ""
        if report.outcome != "passed":
            text = _text(report)
        self._write(
            event=report.outcome,
            test=report.nodeid,
            seconds=report.duration,
            text=text,
            launches=dict(report.user_properties).get("launches", []),
        )


def _text(report: pytest.TestReport) -> str:
    """Return what a report says: the traceback's end, and what compilers wrote to standard error."""
    text = report.longreprtext[-MOST_TEXT:]
    printed = report.capstderr[-MOST_PRINTED:].strip()
    if printed:
        text += f"\nstandard error:\n{printed}"
    return text


def _torch_on_a_gpu() -> Any:
    """Return torch where it is at work on a GPU, else None."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    return torch


def _wait_for_the_device() -> None:
    if (torch := _torch_on_a_gpu()) is not None:
        torch.cuda.synchronize()


def _is_broken() -> bool:
    try:
        _wait_for_the_device()
    # torch's own type of CUDA errors is younger than the oldest torch that is supported.
    except RuntimeError:
        return True
    return False


def read_record(record: Path) -> list[dict[str, Any]]:
    """Return the events of all processes of a run."""
    events = []
    for file in sorted(record.parent.glob(f"{record.stem}.*{record.suffix}")):
        events += read_events(file)
    return events


def read_events(file: Path) -> list[dict[str, Any]]:
    """Return the lines of JSON in ``file``, none where there is no such file; a line that a killed process
    cut off is left out.
    """
    events: list[dict[str, Any]] = []
    if not file.exists():
        return events
    for line in file.read_text().splitlines():
        with contextlib.suppress(ValueError):
            events.append(json.loads(line))
    return events
