"""Tests that launches find the kernels compiled ahead, and that a lock that cannot be created is skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.devtools.iterations import run

pytest.importorskip("triton")

from fastcyclegan.devtools import compile_ahead as _ahead

CACHE = """
from fastcyclegan.devtools.jobs import Job

iteration("bf16", "auto")
by_kernel = {launch.kernel: (launch, job) for launch, job in recorded}
quick = ("_instance_norm_stats_kernel", "_reflect_conv_wgrad_sum_kernel", "_instance_norm_bwd_sums_kernel")
launches, jobs = zip(*(by_kernel[name] for name in quick))
wrong = dataclasses.replace(jobs[0], data=jobs[0].data.replace('"*bf16"', '"*nonsense"'))
before = [_jobs.is_compiled(job) for job in jobs]
reported = []
outcome = compile_ahead.compile_ahead([*jobs, wrong], lambda count, total: reported.append([count, total]), 2)
after = compile_ahead.missing(jobs)

hits = []
triton.knobs.compilation.listener = lambda **event: hits.append(event["cache_hit"])
driver.set_active(Driver())
for launch in launches:
    _launch.REGISTRY[launch.kernel].warmup(*launch.args, grid=(launch.grid,), **launch.keywords)
print(json.dumps([before, reported, dataclasses.astuple(outcome), len(after), hits]))
"""


def test_the_jit_finds_kernels_compiled_ahead(tmp_path: Path) -> None:
    before, reported, (compiled, processes, _, failures), missing, hits = run(CACHE, tmp_path)
    assert before == [False] * 3
    assert [count for count, _ in reported] == [0, 1, 2, 3, 4]
    assert (compiled, processes, missing) == (3, 2, 0)
    # A job that does not compile is reported, and the others are still compiled.
    assert [kernel for kernel, _ in failures] == ["_instance_norm_stats_kernel"]
    assert hits == [True] * 3


def test_does_not_wait_if_no_file_can_be_locked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "fastcyclegan").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with _ahead.exclusive():
        assert not (tmp_path / "fastcyclegan").is_dir()
