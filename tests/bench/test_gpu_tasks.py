"""Parts of the GPU suite that are options or benches: what is told of those that fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.gpu_outcome import Surroundings
from bench.gpu_tasks import Benches, Options
from tests.bench.parts import stand_in


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
