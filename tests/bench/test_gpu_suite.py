"""The GPU suite's own logic without a GPU: what a part that fails, hangs, crashes or is killed leaves behind,
and what is shown of it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu_options, gpu_suite, gpu_tasks, processes
from bench.figures import Row, read_results
from bench.gpu_stages import SECONDS, STAGES
from bench.gpu_summary import MOST, MOST_OF_A_SUMMARY, Printer, summary
from bench.gpu_tasks import Benches, Command, Failure, Options, Outcome, Surroundings, Tests, outcome_of
from bench.launches import breaks_the_device
from bench.processes import Ended
from fastcyclegan.kernels import backend_table

ROOT = Path(__file__).parents[2]
ABOUT = {
    "hardware": "Test/GPU",
    "device": "cuda",
    "torch": "2.13",
    "triton": "3.7",
    "stage": "1: correctness",
}


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    for name in ("work", "results"):
        (tmp_path / name).mkdir()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = {**inherited, "PYTHONPATH": f"{ROOT}:{ROOT / 'bench'}", "TRITON_INTERPRET": "1"}
    return Surroundings(tmp_path / "work", tmp_path / "results", environment)


def stand_in(path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a shell ``script`` be the Python that parts start."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


# --- Tests --------------------------------------------------------------------------------------------------


def test_a_pytest_that_is_killed_has_told_what_it_knew(
    around: Surroundings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is too slow, with one failure behind it and one test in its hands, and processes that would
    outlive it.
    """
    events = [
        {"event": "started", "test": "a"}, {"event": "passed", "test": "a", "text": "", "launches": []},
        {"event": "started", "test": "b"},
        {"event": "failed", "test": "b", "text": "E  far off", "launches": [{"kernel": "k"}]},
        {"event": "started", "test": "c"},
    ]  # fmt: skip
    record = around.work / "slow.1.jsonl"
    (tmp_path / "lines").write_text("".join(json.dumps(event) + "\n" for event in events) + '{"event": "pas')
    stand_in(
        tmp_path / "python",
        f"trap '' INT\ncp {tmp_path}/lines {record}\necho so far\nsleep 77 &\nsleep 77",
        monkeypatch,
    )
    monkeypatch.setattr(processes, "GRACE", 0.2)
    outcome = Tests("slow", ("tests/kernels/test_tune.py",), 9).run(around, 1)
    assert not outcome.holds
    assert outcome.why == "ended at its limit of 1 s"
    assert outcome.counts == {"passed": 1, "failed": 1, "unfinished": 1, "skipped": 0}
    assert [failure.where for failure in outcome.failures] == ["b", "c"]
    assert outcome.failures[0].launches == [{"kernel": "k"}]
    assert "did not end" in outcome.failures[1].text
    assert "so far" in outcome.output
    assert not _running("sleep 77")


CRASHING = """
import pytest, torch
from fastcyclegan.kernels import instance_norm

X = torch.randn(1, 4, 5, 3)

def test_first():
    instance_norm(X, impl="triton")

def test_illegal():
    instance_norm(X, impl="triton")
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

def test_wrong():
    from fastcyclegan.testing import assert_parity
    y = instance_norm(X, impl="triton")
    assert_parity("y", torch.where(torch.arange(3) == 1, y + 1, y), y, y.double(), torch.float32)

@pytest.mark.parametrize("n", range(3))
def test_later(n):
    pass
"""


def test_a_fault_of_the_device_ends_its_process_alone(around: Surroundings, tmp_path: Path) -> None:
    """The others go on in a new process; the one is run again alone, and the last launch before it is
    known."""
    file = tmp_path / "test_crashing.py"
    file.write_text(CRASHING)
    outcome = Tests("crash", (str(file),), 100, workers=2).run(around, 100)
    assert outcome.counts == {"passed": 4, "failed": 2, "unfinished": 0, "skipped": 0}, outcome.output
    found = {failure.where.rpartition("::")[2]: failure for failure in outcome.failures}
    assert set(found) == {"test_illegal", "test_wrong"}
    illegal, wrong = found["test_illegal"], found["test_wrong"]
    assert "illegal memory access" in illegal.text
    assert illegal.again.startswith("alone, with CUDA_LAUNCH_BLOCKING=1: exit code 70; last launch")
    assert '"kernel": "_instance_norm_small_fwd_kernel"' in illegal.again
    # Enough to mend it elsewhere: both errors, layout, the first wrong number, what was launched and how.
    assert "relative error" in wrong.text
    assert (
        "float32 [1, 4, 5, 3] strides [60, 15, 3, 1]; 20 of 60 numbers are wrong, first at [0, 0, 0, 1]:"
        in wrong.text
    )
    (launch,) = wrong.launches
    assert launch["configuration"]["BLOCK_S"] == 16
    assert launch["arguments"][0].startswith("float32[1, 4, 5, 3] strides [60, 15, 3, 1] aligned")
    assert not wrong.again


CROWDED = """
import os
import pytest

@pytest.mark.parametrize("n", range(3))
def test_large(n):
    if n == 1 and os.environ.get("PYTEST_XDIST_WORKER"):
        raise RuntimeError("CUDA out of memory. Tried to allocate 8.00 GiB")
    if n == 2:
        raise RuntimeError("CUDA out of memory. Tried to allocate 999.00 GiB")
"""


def test_what_finds_no_memory_beside_others_is_run_alone(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_tasks, "ROOT", tmp_path)
    monkeypatch.setattr(processes, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (tmp_path / "test_large.py").write_text(CROWDED)
    outcome = Tests("large", ("test_large.py",), 100, workers=2).run(around, 100)
    assert outcome.counts == {"passed": 2, "failed": 1, "unfinished": 0, "skipped": 0}, outcome.output
    assert [failure.where for failure in outcome.failures] == ["test_large.py::test_large[2]"]
    assert outcome.note == "2 found no memory beside others and ran again alone"


def test_what_a_device_survives() -> None:
    assert breaks_the_device("CUDA error: misaligned address")
    assert breaks_the_device("Triton Error [CUDA]: an illegal memory access was encountered")
    assert not breaks_the_device("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert not breaks_the_device("Failed to create tensor map descriptor")
    outer = AssertionError("y is wrong")
    outer.__cause__ = RuntimeError("CUDA error: unspecified launch failure")
    assert breaks_the_device(outer)


@pytest.mark.parametrize(
    ("ended", "why"),
    [
        (Ended(0, 1, False, "no tests ran"), "no test passed"),
        (Ended(-11, 1, False, ""), "killed by SIGSEGV"),
        (Ended(4, 1, False, "ERROR: not found"), "exit code 4"),
        (Ended(3, 1, False, "INTERNALERROR"), "exit code 3"),
    ],
)
def test_a_pytest_without_a_result_does_not_hold(ended: Ended, why: str) -> None:
    outcome = outcome_of("x", ended, 9, [])
    assert not outcome.holds
    assert outcome.why == why


def test_every_part_names_tests_that_are_there() -> None:
    """A word that no test for a GPU has would make a part that asks nothing."""
    for part in [part for parts in STAGES.values() for part in parts if isinstance(part, Tests)]:
        for file in part.files:
            names = re.findall(
                r"@pytest\.mark\.gpu\n(?:@.*\n|    .*\n|\)\n)*def (\w+)", (ROOT / file).read_text()
            )
            assert not part.words or any(word in name for word in part.words for name in names), (
                part.name,
                file,
            )
    for part in [part for part in STAGES[3] if isinstance(part, Benches)]:
        assert (ROOT / "bench" / part.file).exists()
    for part in [part for part in STAGES[2] if isinstance(part, Command)]:
        assert (ROOT / part.arguments[0]).exists()
    assert SECONDS[1] < 240
    assert max(SECONDS.values()) < 590


def test_words_that_no_test_has_are_an_error(around: Surroundings) -> None:
    outcome = Tests("none", ("tests/kernels/test_tune.py",), 60, words=("two_to_the_99",), workers=1).run(
        around, 60
    )
    assert outcome.why == "exit code 4"
    assert "no test is called two_to_the_99" in outcome.failures[0].text


def test_a_file_that_cannot_be_imported_is_told(around: Surroundings, tmp_path: Path) -> None:
    file = tmp_path / "test_broken.py"
    file.write_text("import no_such_package\n\ndef test_x():\n    pass\n")
    outcome = Tests("broken", (str(file),), 60, workers=1).run(around, 60)
    assert not outcome.holds
    assert "No module named 'no_such_package'" in outcome.failures[0].text


# --- Options and benches ------------------------------------------------------------------------------------


def test_options_go_on_behind_a_fault(
    around: Surroundings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case b breaks the device, c ends its process by a signal; both are run again alone, and d runs in a
    process of its own.
    """
    record = around.work / "options.jsonl"
    script = f"""
line='{{"event": "%s", "case": "%s", "text": "illegal memory access", "line": "%s took 1 ms"}}'
say() {{ printf "$line\\n" $1 $2 $2 >> {record}; }}
case "$*" in
*--only*) for last; do
    case "$last" in --launch-log=*) echo '{{"kernel": "k"}}' > "${{last#*=}}";; esac
  done; exit 70;;
esac
if [ ! -e {record} ]; then say began a; say held a; say began b; say broken b; exit 70; fi
if ! grep -q '"c"' {record}; then say began c; echo '{{"event": "hel' >> {record}; kill -9 $$; fi
say began d; say held d
"""
    stand_in(tmp_path / "python", script, monkeypatch)
    outcome = Options("every option", 200).run(around, 200)
    assert outcome.counts == {"passed": 2, "failed": 2}
    assert outcome.shown == ["a took 1 ms", "d took 1 ms"]
    assert [failure.where for failure in outcome.failures] == ["b", "c"]
    for failure in outcome.failures:
        assert (
            failure.again == 'alone, with CUDA_LAUNCH_BLOCKING=1: exit code 70; last launch {"kernel": "k"}'
        )


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            lambda engine: list(engine.nets["D_A"].parameters())[-1].data.add_(0.5),
            "losses of iteration 1: relative error",
        ),
        (lambda engine: setattr(engine, "graphs", None), "0 graphs were captured, 1 expected"),
        (
            lambda engine: [setattr(trained, "step", list) for trained in engine.phase_optimizers.values()],
            "has not moved in 20 iterations",
        ),
    ],
    ids=["wrong", "not captured", "not trained"],
)
def test_an_option_that_is_wrong_does_not_hold(
    fault: Any,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case, make = gpu_options.CASES[0], gpu_options.engine_of

    def faulty(*args: Any) -> Any:
        engine = make(*args)
        fault(engine)
        return engine

    monkeypatch.setattr(gpu_options, "engine_of", faulty)
    record = tmp_path / "one.jsonl"
    assert gpu_options.main(["--tiny", "--only", case.name, f"--record={record}"]) == 1
    began, failed = (json.loads(line) for line in record.read_text().splitlines())
    assert (began["event"], failed["event"], failed["case"]) == ("began", "failed", case.name)
    assert message in failed["text"]
    assert f"{case.name}: FAILED" in capsys.readouterr().out


def test_every_option_has_a_case_that_holds(capsys: pytest.CaptureFixture[str]) -> None:
    """The plain ones here; all of them in the rehearsal."""
    for name in (
        "the default: bf16, graph, pairs, weight gradients beside",
        "--batch_size 4, the last batch smaller",
    ):
        assert gpu_options.main(["--tiny", "--only", name]) == 0
        assert name in capsys.readouterr().out


def bench(group: str, provider: str, median: float, **info: Any) -> Row:
    return Row("bench_x.py", group, provider, [median / 2, median, 2 * median], info)


def test_the_backend_of_a_shape_is_the_faster_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From the rows of the benches to what a convolution asks; a shape of which one was measured alone stays
    unmeasured.
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
    assert "Triton is faster in 1, cuDNN in 1" in backend_table.describe_backends(torch.device("cuda"))

    class OnGpu:
        """As much of a tensor as a look-up asks for."""

        device, dtype, shape = torch.device("cuda"), x.dtype, x.shape

    found = [backend_table.backend_of("reflect_conv", OnGpu(), x.dtype, 1, out, 3) for out in (8, 16, 32)]  # type: ignore[arg-type]
    assert found == ["cudnn", "triton", "triton"]
    assert backend_table.backend_of("reflect_conv", x, x.dtype, 1, 8, 3) == "triton"
    backend_table._table.cache_clear()


# --- A stage ------------------------------------------------------------------------------------------------


class Part:
    """A part that takes no time."""

    seconds = 30.0

    def __init__(self, outcome: Outcome | Exception) -> None:
        self.outcome = outcome
        self.name = outcome.name if isinstance(outcome, Outcome) else "unreadable"

    def run(self, around: Surroundings, seconds: float) -> Outcome:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def suite_of(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch, stage: int = 1, seconds: float = 100.0
) -> gpu_suite.Suite:
    monkeypatch.setattr(
        gpu_suite, "machine", lambda: {name: value for name, value in ABOUT.items() if name != "stage"}
    )
    return gpu_suite.Suite(stage, around, seconds, Printer())


def test_what_is_known_is_written_as_it_comes(around: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = suite_of(around, monkeypatch)
    seen: list[int] = []

    class Looking(Part):
        def run(self, around: Surroundings, seconds: float) -> Outcome:
            seen.append(len(json.loads((around.results / "stage1.json").read_text())["parts"]))
            return super().run(around, seconds)

    failed = Outcome("b", "", 1, {"failed": 1}, [Failure("t::x", "E  y: far off", [])], output="all of it")
    good = [Outcome(name, counts={"passed": 2}) for name in "ac"]
    parts = [Part(good[0]), Looking(failed), Looking(good[1]), Part(ValueError("no JSON"))]
    assert suite.run(parts) == 1  # type: ignore[arg-type]
    assert seen == [1, 2]
    kept = json.loads((around.results / "stage1.json").read_text())
    assert [part["holds"] for part in kept["parts"]] == [True, False, True, False]
    assert kept["parts"][3]["why"] == "its result cannot be read: ValueError: no JSON"
    text = (around.results / "stage1.md").read_text()
    assert "2 of 4 parts DO NOT HOLD" in text
    assert "FAILED t::x\n  E  y: far off" in text
    assert "all of it" in (around.results / "stage1.log").read_text()


def test_a_part_without_time_is_not_run_and_does_not_hold(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = suite_of(around, monkeypatch, seconds=gpu_suite.ENDING + gpu_suite.LEAST - 1)
    assert suite.run([Part(Outcome("a", counts={"passed": 2}))]) == 1  # type: ignore[list-item]
    assert suite.outcomes[0].why.startswith("not run: ")


def test_rows_of_all_benches_become_one_file(around: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what the earlier stages said of their tests, and the table of backends."""
    suite = suite_of(around, monkeypatch, stage=3)
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
        part.rows_of(around).write_text(
            json.dumps({"machine_info": {"fastcyclegan": ABOUT}, "benchmarks": [row]})
        )
    earlier = {
        "parts": [{"name": "kernels", "why": "", "holds": False, "counts": {"passed": 3, "failed": 1}}]
    }
    (around.results / "stage1.json").write_text(json.dumps(earlier))
    suite.write()
    file = around.results / "Test-GPU-torch-2.13-triton-3.7.json"
    assert [row.file for row in read_results(file).rows] == [part.file for part in parts]
    assert "Tests, kernels: done; 3 passed, 1 failed" in file.with_suffix(".md").read_text()
    assert json.loads((around.results / "backends" / "Test_GPU.json").read_text()) == {
        "k": {"triton": 750.0, "cudnn": 750.0}
    }


def test_a_stage_goes_on_whatever_cannot_be_written(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a file of rows, as a killed pytest leaves it, and results that are gone: the parts are run, the
    summary is printed.
    """
    suite = suite_of(around, monkeypatch, stage=3)
    benches = [part for part in STAGES[3] if isinstance(part, Benches)]
    benches[0].rows_of(around).write_text('{"machine_info": {')

    class Removing(Part):
        def run(self, given: Surroundings, seconds: float) -> Outcome:
            shutil.rmtree(around.results)
            return super().run(given, seconds)

    printed: list[str] = []
    monkeypatch.setattr(suite.printer, "summary", printed.extend)
    good = [Outcome(name, counts={"passed": 1}) for name in "ab"]
    assert suite.run([Removing(good[0]), Part(good[1])]) == 0  # type: ignore[list-item]
    assert any("not written: FileNotFoundError" in line for line in printed)
    assert any("all 2 parts hold" in line for line in printed)


def test_an_unfinished_stage_says_so(around: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run that was killed leaves must not read as a success."""
    suite = suite_of(around, monkeypatch)

    class Killed(Part):
        def run(self, around: Surroundings, seconds: float) -> Outcome:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        suite.run([Part(Outcome("a", counts={"passed": 2})), Killed(Outcome("b"))])  # type: ignore[list-item]
    assert (
        "UNFINISHED, 1 of 2 parts are known; of these all 1 parts hold"
        in (around.results / "stage1.md").read_text()
    )
    assert not json.loads((around.results / "stage1.json").read_text())["finished"]


def test_different_errors_are_told_before_the_same_again() -> None:
    texts = [
        "E   AssertionError: y: relative error 2.5e-01",
        "E   AssertionError: y: relative error 7.5e-03",
        "E   TypeError: no",
        "E   KeyError: 3",
    ]
    failures = [Failure(f"t::{n}", text) for n, text in enumerate(texts)]
    lines = summary(ABOUT, [Outcome("a", failures=failures)], 1, 9, [])
    assert [line for line in lines if line.startswith("FAILED")] == [f"FAILED t::{n}" for n in (0, 2, 3, 1)]
    compiler = Failure("t::x", "E   CompilationError: at 1:0:\nE   def _k(x):\nE   ^\nE   too many registers")
    told = "\n".join(summary(ABOUT, [Outcome("a", failures=[compiler])], 1, 9, []))
    assert "CompilationError: at 1:0:" in told
    assert "too many registers" in told


def test_failing_benches_tell_what_failed(
    around: Surroundings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = (
        "FAILED bench/bench_x.py::bench_x[3-D U-Net, 1 of 4-ours] - AssertionError: ours: relative error"
        " 2.5e-01 against float64"
    )
    stand_in(tmp_path / "python", f"echo '{line}'\nexit 1", monkeypatch)
    outcome = Benches("x", "bench_x.py", 20).run(around, 20)
    assert [(failure.where, failure.text) for failure in outcome.failures] == [
        tuple(line.removeprefix("FAILED ").split(" - "))
    ]


def test_a_summary_fits_into_what_comes_back() -> None:
    """However much fails: the first of each part before the second of any, and how many more there are."""
    arguments = ["bfloat16[1, 256, 64, 64]" * 9] * 12
    launch: dict[str, Any] = {
        "kernel": "_k",
        "grid": 7,
        "arguments": arguments,
        "configuration": {"BLOCK_M": 128},
    }
    text, again = "E  " + "far off " * 99, "alone: " + "x" * 999

    def failures(part: int) -> list[Failure]:
        return [
            Failure(f"tests/kernels/test_{part}.py::test_y[{n}]", text, [launch] * 12, again)
            for n in range(50)
        ]

    outcomes = [
        Outcome(f"part {n}", "", 9, {"passed": 1, "failed": 50}, failures(n), ["a figure " * 30] * 99)
        for n in range(12)
    ]
    outcomes += [Outcome(f"good {n}", "", 9, {"passed": 1}, [], ["a figure " * 30] * 99) for n in range(3)]
    lines = summary(ABOUT, outcomes, 15, 99, ["file" * 99] * 9)
    assert len("\n".join(lines)) < 8000
    told = [line for line in lines if line.startswith("FAILED")]
    assert len(told) >= 5
    assert any("more failures are in the files" in line for line in lines)
    assert any("last launch: _k grid 7" in line for line in lines)
    good = summary(ABOUT, outcomes[12:], 3, 99, [])
    assert "all 3 parts hold" in good[0]
    assert any(line.startswith("a figure") for line in good)
    assert len("\n".join(good)) < 8000


def test_all_output_fits_too(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer()
    for _ in range(1000):
        printer.line("x" * 400)
    printer.summary(["y" * (MOST_OF_A_SUMMARY - 1)])
    assert MOST_OF_A_SUMMARY < len(capsys.readouterr().out) <= MOST < 20_000


def test_compiled_kernels_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces that are small enough, back to the place that they name, and nowhere else."""
    cache, results = tmp_path / "tc", tmp_path / "results"
    results.mkdir()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
    monkeypatch.setattr(gpu_suite, "PIECE", 6 << 10)
    gpu_suite.save_compiled(results)
    assert not list(results.iterdir())
    for n in range(3):
        (cache / f"k{n}").mkdir(parents=True)
        (cache / f"k{n}" / "a.cubin").write_bytes(os.urandom(3000))
    gpu_suite.save_compiled(results)
    assert len(list(results.glob("triton-cache.tgz.*"))) == 2
    # With the files of a stage there are 8 at most: the rest is compiled again.
    for n in range(7):
        (results / f"other{n}").touch()
    gpu_suite.save_compiled(results)
    assert len(list(results.iterdir())) == 8
    for other in results.glob("other*"):
        other.unlink()
    gpu_suite.save_compiled(results)
    kept = {file: file.read_bytes() for file in cache.rglob("a.cubin")}
    for file in kept:
        file.unlink()
    assert gpu_suite.load_compiled(results) == 3
    assert {file: file.read_bytes() for file in cache.rglob("a.cubin")} == kept
    for piece in results.iterdir():
        piece.unlink()
    with tarfile.open(results / "triton-cache.tgz.0", "w:gz") as tar:
        tar.add(cache / "k0", arcname=str(tmp_path / "elsewhere").lstrip("/"))
    assert f"they were made in another folder than {cache}" in gpu_suite.told_of_compiled(results)
    assert not (tmp_path / "elsewhere").exists()
    (results / "triton-cache.tgz.0").write_bytes(b"\x1f\x8b half")
    assert "are not used: " in gpu_suite.told_of_compiled(results)


# --- The command line ---------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "sees no CUDA GPU on this machine; --rehearse runs a stage without one"),
        (["--rehearse"], "bench/results is for what a GPU gave"),
        (
            ["--rehearse", "--results", str(ROOT / "bench" / "results" / "mine")],
            "bench/results is for what a GPU gave",
        ),
        (["--stage", "4"], "invalid choice: 4"),
        (["--seconds", "5"], "--seconds must be more than 20, got 5"),
        (["--compiled", "nowhere"], "--compiled nowhere holds no triton-cache.tgz"),
    ],
)
def test_bad_arguments_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu_suite.main(arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_what_it_started_does_not_outlive_it(tmp_path: Path) -> None:
    """Killed outright, as at the end of a call: nothing may hold the GPU after it."""
    script = f"""
from pathlib import Path
from bench import processes
print("begun", flush=True)
processes.run_process(["sleep", "79.5"], 60, {{"PATH": "/usr/bin:/bin"}}, Path({str(tmp_path / "log")!r}))
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        deadline = time.monotonic() + 20
        while not _running("sleep 79.5") and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
    deadline = time.monotonic() + 5
    while _running("sleep 79.5") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _running("sleep 79.5")


def _running(command: str) -> bool:
    return subprocess.run(["pgrep", "-xf", command], capture_output=True, check=False).stdout != b""


def test_ended_from_outside_it_ends_what_it_started(tmp_path: Path) -> None:
    """SIGTERM in the middle of a part: exit code 130, the part's processes are gone, and the temporary folder
    too.
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
        rest = process.stdout.read()
    assert process.returncode == 130
    assert "ended from outside" in rest
    assert not Path(line.split()[1]).exists()
    assert not _running("sleep 78.5")
