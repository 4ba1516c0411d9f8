"""A pytest plugin that records tests on machines that are available for half an hour.

    python -m pytest -p bench.on_device --device-record FILE ...

Every test is recorded when it starts and when it ends, so that nothing is lost if the run is killed. The
record of a failure includes the kernels that were launched last. After a fault that makes the device
unusable, only the process of that test ends, and pytest-xdist starts another.
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

from bench.launches import FAULTS, LaunchLog, is_device_fault, plant_fault

# The exit code of a process that ends after a device fault.
BROKEN = 70
MAX_TEXT, MAX_PRINTED = 6000, 1500


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("on_device")
    group.addoption(
        "--device-record",
        type=Path,
        metavar="FILE",
        help="write a JSON line whenever a test starts or ends, to FILE with the process id in its name",
    )
    group.addoption(
        "--device-words",
        default="",
        metavar="A,B",
        help="run only the GPU tests whose names contain one of these words",
    )
    group.addoption(
        "--device-rest", default="", metavar="A,B", help="skip tests whose names contain one of these words"
    )
    group.addoption(
        "--rehearse",
        type=int,
        metavar="N",
        help="run the first N tests of each file that need no GPU, instead of the GPU tests",
    )
    group.addoption(
        "--launch-log", type=Path, metavar="FILE", help="write each kernel launch to FILE before it starts"
    )
    group.addoption(
        "--plant-device-fault",
        choices=FAULTS,
        help="make kernels compute wrong results (kernel) or crash (crash), to check that tests detect it",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--device-record") is not None:
        config.pluginmanager.register(_Recorder(config), "on_device_recorder")


# --- Selecting tests ----------------------------------------------------------------------------------------


def _split_option(config: pytest.Config, option: str) -> list[str]:
    return [word for word in config.getoption(option).split(",") if word]


def _for_a_gpu(item: pytest.Item) -> bool:
    return item.get_closest_marker("gpu") is not None


def selected(items: list[pytest.Item], keywords: list[str], exclude: list[str]) -> list[pytest.Item]:
    """Return the GPU tests whose names contain one of ``keywords``.

    Without keywords, return all tests except those whose names contain one of ``exclude``.
    """
    if keywords:
        return [item for item in items if _for_a_gpu(item) and _matches(keywords, item)]
    return [item for item in items if not _matches(exclude, item)]


def _matches(keywords: list[str], item: pytest.Item) -> bool:
    return any(keyword in item.name for keyword in keywords)


def first_of_each_file(items: list[pytest.Item], count: int) -> list[pytest.Item]:
    """Return the first ``count`` tests of each file that do not need a GPU."""
    taken: dict[Path, int] = {}
    first = []
    for item in items:
        if not _for_a_gpu(item) and taken.get(item.path, 0) < count:
            taken[item.path] = taken.get(item.path, 0) + 1
            first.append(item)
    return first


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    keywords = _split_option(config, "--device-words")
    exclude = _split_option(config, "--device-rest")
    rehearsed = config.getoption("--rehearse")
    chosen = selected(items, keywords, exclude)
    if not chosen:
        problem = "no tests are left to run"
        if keywords:
            problem = f"no GPU test has {' or '.join(keywords)} in its name"
        files = {str(item.path) for item in items}
        raise pytest.UsageError(f"{problem}: {', '.join(files)}")
    if rehearsed is not None:
        # Parity tests first: the GPU tests do the same checks at real sizes.
        parity_first = sorted(items, key=lambda item: not _matches(["equals", "parity"], item))
        chosen = first_of_each_file(parity_first, rehearsed)
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


# --- Recording ----------------------------------------------------------------------------------------------


class _Recorder:
    """Pytest hooks that write the events of this process to a file next to ``--device-record``.

    Each process has a separate file, because the workers and the main process write at the same time.
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
        # Not earlier: the tests' conftest.py decides whether kernels are interpreted, and Triton reads this
        # setting when it is first imported.
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
        # A device fault is raised at the next synchronisation, which should be in the test that caused it.
        _wait_for_the_device()
        return result

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        if (torch := _torch_on_a_gpu()) is not None:
            # Memory in torch's cache is not available to the other workers.
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
            if is_device_fault(call.excinfo.value) or _is_broken():
                self._write(event="broken", test=item.nodeid, text=_text(report), launches=launches)
                os._exit(BROKEN)
        return report

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        # A file that cannot be imported has no tests, so its error must be recorded here.
        if report.failed and not self._is_worker:
            text = report.longreprtext[-MAX_TEXT:]
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
    """Return the end of the traceback of ``report``, and the end of what was printed to standard error.

    Compilers print their errors there.
    """
    text = report.longreprtext[-MAX_TEXT:]
    printed = report.capstderr[-MAX_PRINTED:].strip()
    if printed:
        text += f"\nstandard error:\n{printed}"
    return text


def _torch_on_a_gpu() -> Any:
    """Return torch if it is loaded and uses a GPU, otherwise None."""
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
    # torch's specific exception for CUDA errors does not exist in the oldest supported version.
    except RuntimeError:
        return True
    return False


def read_record(record: Path) -> list[dict[str, Any]]:
    """Return the recorded events of all processes of a run."""
    events = []
    for file in sorted(record.parent.glob(f"{record.stem}.*{record.suffix}")):
        events += read_events(file)
    return events


def read_events(file: Path) -> list[dict[str, Any]]:
    """Return the JSON lines of ``file``, or an empty list if it does not exist.

    A line that is incomplete because its process was killed is left out.
    """
    events: list[dict[str, Any]] = []
    if not file.exists():
        return events
    for line in file.read_text().splitlines():
        with contextlib.suppress(ValueError):
            events.append(json.loads(line))
    return events
