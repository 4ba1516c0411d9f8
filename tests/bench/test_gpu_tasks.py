"""Parts of the GPU suite that run options and benches: how their failures are reported."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bench.gpu_outcome import Context
from bench.gpu_tasks import NEEDS_GPU, Benches, Command, Options
from tests.bench.parts import stand_in


def test_options_continue_after_a_fault(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The remaining cases run in a new process after one case crashes its process.

    Case b causes a device fault, and c ends its process with a signal. Both are rerun alone, and d still
    runs.
    """
    record = context.work / "options.jsonl"
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
    outcome = Options("every option", 200).run(context, 200)
    assert outcome.counts == {"passed": 2, "failed": 2}
    assert outcome.shown == ["a took 1 ms", "d took 1 ms"]
    assert [failure.where for failure in outcome.failures] == ["b", "c"]
    for failure in outcome.failures:
        assert (
            failure.again == 'alone, with CUDA_LAUNCH_BLOCKING=1: exit code 70; last launch {"kernel": "k"}'
        )


def test_a_command_without_a_small_size_is_not_rehearsed(context: Context) -> None:
    part = Command("x", ("-c", "raise SystemExit(3)"), 20, gpu_only=True)
    rehearsed = part.run(dataclasses.replace(context, rehearsed=True), 20)
    assert (rehearsed.note, rehearsed.holds) == (NEEDS_GPU, True)
    assert "exit code 3" in part.run(context, 20).why


def test_reports_the_benches_that_failed(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = (
        "FAILED bench/bench_x.py::bench_x[3-D U-Net, 1 of 4-ours] - AssertionError: ours: relative error"
        " 2.5e-01 against float64"
    )
    stand_in(tmp_path / "python", f"echo '{line}'\nexit 1", monkeypatch)
    outcome = Benches("x", "bench_x.py", 20).run(context, 20)
    assert [(failure.where, failure.text) for failure in outcome.failures] == [
        tuple(line.removeprefix("FAILED ").split(" - "))
    ]
