"""Run the command of the GPU suite without a GPU: its stages, the files that it writes, and how it ends."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu_suite
from bench.figures import Row, read_results
from bench.gpu_outcome import Context, Failure, Outcome
from bench.gpu_stages import SECONDS, STAGES
from bench.gpu_summary import Printer
from bench.gpu_tasks import Benches, Command
from bench.gpu_test_task import Tests
from fastcyclegan.kernels import backend_table
from tests.bench.parts import ABOUT, ROOT, running

# --- A stage ------------------------------------------------------------------------------------------------


def test_every_part_selects_existing_tests() -> None:
    """The keywords of a part match GPU tests in each of its files; otherwise the part would check nothing."""
    for part in [part for parts in STAGES.values() for part in parts if isinstance(part, Tests)]:
        for file in part.files:
            names = re.findall(
                r"@pytest\.mark\.gpu\n(?:@.*\n|    .*\n|\)\n)*def (\w+)", (ROOT / file).read_text()
            )
            assert not part.keywords or any(word in name for word in part.keywords for name in names), (
                part.name,
                file,
            )
    for part in [part for part in STAGES[3] if isinstance(part, Benches)]:
        assert (ROOT / "bench" / part.file).exists()
    for part in [part for part in STAGES[2] if isinstance(part, Command)]:
        assert (ROOT / part.arguments[0]).exists()
    assert SECONDS[1] < 240
    assert max(SECONDS.values()) < 590


class Part:
    """A part of the suite that returns ``outcome`` at once, or raises it if it is an exception."""

    seconds = 30.0

    def __init__(self, outcome: Outcome | Exception) -> None:
        self.outcome = outcome
        self.name = outcome.name if isinstance(outcome, Outcome) else "unreadable"

    def run(self, context: Context, seconds: float) -> Outcome:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def suite_of(
    context: Context, monkeypatch: pytest.MonkeyPatch, stage: int = 1, seconds: float = 100.0
) -> gpu_suite.Suite:
    monkeypatch.setattr(
        gpu_suite, "machine", lambda: {name: value for name, value in ABOUT.items() if name != "stage"}
    )
    return gpu_suite.Suite(stage, context, seconds, Printer())


def test_writes_results_after_every_part(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = suite_of(context, monkeypatch)
    seen: list[int] = []

    class Looking(Part):
        def run(self, context: Context, seconds: float) -> Outcome:
            seen.append(len(json.loads((context.results / "stage1.json").read_text())["parts"]))
            return super().run(context, seconds)

    failed = Outcome("b", "", 1, {"failed": 1}, [Failure("t::x", "E  y: far off", [])], output="all of it")
    good = [Outcome(name, counts={"passed": 2}) for name in "ac"]
    parts = [Part(good[0]), Looking(failed), Looking(good[1]), Part(ValueError("no JSON"))]
    assert suite.run(parts) == 1  # type: ignore[arg-type]
    assert seen == [1, 2]
    written = json.loads((context.results / "stage1.json").read_text())
    assert [part["holds"] for part in written["parts"]] == [True, False, True, False]
    assert written["parts"][3]["why"] == "cannot read its result: ValueError: no JSON"
    text = (context.results / "stage1.md").read_text()
    assert "2 of 4 parts FAILED" in text
    assert "FAILED t::x\n  E  y: far off" in text
    assert "all of it" in (context.results / "stage1.log").read_text()


def test_a_part_without_time_does_not_run_and_fails(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = suite_of(context, monkeypatch, seconds=gpu_suite.ENDING + gpu_suite.LEAST - 1)
    assert suite.run([Part(Outcome("a", counts={"passed": 2}))]) == 1  # type: ignore[list-item]
    assert suite.outcomes[0].why.startswith("not run: ")


def test_merges_the_rows_of_all_benches_into_one_file(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The earlier stages' test results are added to the report, and the table of backends is written too."""
    suite = suite_of(context, monkeypatch, stage=3)
    parts = [part for part in STAGES[3] if isinstance(part, Benches)][:2]
    for part, backend in zip(parts, ("triton", "cudnn"), strict=True):
        info = {"provider": "ours", "backend": backend, "backend_key": "k"}
        row = {
            "group": "g",
            "fullname": f"bench/{part.file}::b",
            "name": "b",
            "stats": {"data": [0.5, 1.0]},
            "extra_info": info,
        }
        part.rows_of(context).write_text(
            json.dumps({"machine_info": {"fastcyclegan": ABOUT}, "benchmarks": [row]})
        )
    earlier = {
        "parts": [{"name": "kernels", "why": "", "holds": False, "counts": {"passed": 3, "failed": 1}}]
    }
    (context.results / "stage1.json").write_text(json.dumps(earlier))
    suite.write()
    file = context.results / "Test-GPU-torch-2.13-triton-3.7.json"
    assert [row.file for row in read_results(file).rows] == [part.file for part in parts]
    assert "Tests, kernels: finished; 3 passed, 1 failed" in file.with_suffix(".md").read_text()
    assert json.loads((context.results / "backends" / "Test_GPU.json").read_text()) == {
        "k": {"triton": 750.0, "cudnn": 750.0}
    }


def test_a_stage_continues_if_results_cannot_be_written(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All parts still run, and the summary is printed, if the results folder disappears.

    There is also an incomplete file of rows, as a killed pytest leaves behind.
    """
    suite = suite_of(context, monkeypatch, stage=3)
    benches = [part for part in STAGES[3] if isinstance(part, Benches)]
    benches[0].rows_of(context).write_text('{"machine_info": {')

    class Removing(Part):
        def run(self, part_context: Context, seconds: float) -> Outcome:
            shutil.rmtree(context.results)
            return super().run(part_context, seconds)

    printed: list[str] = []
    monkeypatch.setattr(suite.printer, "summary", printed.extend)
    good = [Outcome(name, counts={"passed": 1}) for name in "ab"]
    assert suite.run([Removing(good[0]), Part(good[1])]) == 0  # type: ignore[list-item]
    assert any("cannot write a result file: FileNotFoundError" in line for line in printed)
    assert any("all 2 parts passed" in line for line in printed)


def test_reports_an_unfinished_stage(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result files of a killed run say that it is unfinished, so that they do not look like a success."""
    suite = suite_of(context, monkeypatch)

    class Killed(Part):
        def run(self, context: Context, seconds: float) -> Outcome:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        suite.run([Part(Outcome("a", counts={"passed": 2})), Killed(Outcome("b"))])  # type: ignore[list-item]
    assert "UNFINISHED, 1 of 2 parts ran; all 1 parts passed" in (context.results / "stage1.md").read_text()
    assert not json.loads((context.results / "stage1.json").read_text())["finished"]


# --- The table of backends ----------------------------------------------------------------------------------


def bench(group: str, provider: str, median: float, **info: Any) -> Row:
    return Row("bench_x.py", group, provider, [median / 2, median, 2 * median], info)


def test_uses_the_faster_backend_for_each_shape(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The benches' rows become a table, in which a convolution looks up the faster backend for its shape.

    A shape that was measured with only one backend counts as unmeasured.
    """
    x = torch.zeros(3, 8, 5, 5)
    keys = {
        out: backend_table.backend_key("reflect_conv", x.dtype, 3, 1, 25, 8, out, 3) for out in (8, 16, 32)
    }
    rows = [
        ("triton", 8, 2.0, 1),
        ("cudnn", 8, 6.0, 4),
        ("triton", 16, 1.0, 1),
        ("cudnn", 16, 2.0, 1),
        ("cudnn", 32, 1.0, 1),
    ]
    benches = [bench("g", "p", s, backend=b, backend_key=keys[out], operations=n) for b, out, s, n in rows]
    table = gpu_suite.backends([*benches, bench("step", "ours", 1.0)])
    assert table == {
        keys[8]: {"triton": 2000.0, "cudnn": 1500.0},
        keys[16]: {"triton": 1000.0, "cudnn": 2000.0},
    }
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Test/GPU")
    monkeypatch.setattr(backend_table, "SHIPPED", tmp_path)
    backend_table._table.cache_clear()
    assert backend_table.describe_backends(torch.device("cuda")) == "Triton (unmeasured on this device)"
    backend_table.table_file("Test/GPU").write_text(json.dumps(table))
    backend_table._table.cache_clear()
    assert "Triton is faster for 1, cuDNN for 1" in backend_table.describe_backends(torch.device("cuda"))

    class OnGpu:
        """A stand-in for a GPU tensor, with the attributes that the look-up needs."""

        device, dtype, shape = torch.device("cuda"), x.dtype, x.shape

    chosen = [backend_table.backend_of("reflect_conv", OnGpu(), x.dtype, 1, out, 3) for out in (8, 16, 32)]  # type: ignore[arg-type]
    assert chosen == ["cudnn", "triton", "triton"]
    assert backend_table.backend_of("reflect_conv", x, x.dtype, 1, 8, 3) == "triton"
    backend_table._table.cache_clear()


# --- The command line ---------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "finds no CUDA GPU on this machine; use --rehearse to run without one"),
        (["--rehearse"], "bench/results is reserved for GPU results"),
        (
            ["--rehearse", "--results", str(ROOT / "bench" / "results" / "mine")],
            "bench/results is reserved for GPU results",
        ),
        (["--stage", "4"], "invalid choice: 4"),
        (["--seconds", "5"], "--seconds must be more than 20, got 5"),
        (["--compiled", "nowhere"], "--compiled nowhere: the folder contains no triton-cache.tgz"),
    ],
)
def test_reports_bad_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu_suite.main(arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_sigterm_ends_the_suite_and_its_processes(tmp_path: Path) -> None:
    """SIGTERM during a part ends the suite with exit code 130.

    The processes of the part and the temporary folder are gone afterwards.
    """
    script = f"""
import sys
from bench import gpu_suite, processes
class Sleeping:
    name, seconds = "sleeping", 60.0
    def run(self, around, seconds):
        print("begun", around.work, flush=True)
        processes.run_process(["sleep", "78.5"], seconds, around.environment, around.work / "log")
gpu_suite.STAGES[1] = [Sleeping()]
sys.exit(gpu_suite.main(["--stage", "1", "--in-rehearsal", "--results", {str(tmp_path / "results")!r}]))
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("begun"))
        time.sleep(0.5)
        process.terminate()
        output = process.stdout.read()
    assert process.returncode == 130
    assert "stopped by a signal" in output
    assert not Path(line.split()[1]).exists()
    assert not running("sleep 78.5")
