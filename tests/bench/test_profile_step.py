"""Profile a step on this machine's CPU, and analyse a handwritten GPU trace with a kernel in every part."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import profile_step, roofline
from bench.chrome_trace import PARTS, PHASE, STEP, analyse


def event(name: str, kind: str, start: float, length: float, thread: int = 1, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "name": name, "cat": kind, "ts": start, "dur": length, "tid": thread, "args": args}


def launched(
    number: int, at: float, thread: int, name: str, length: float, **operator: Any
) -> list[dict[str, Any]]:
    """Return the events of an operator, its launch, and its kernel, which runs much later."""
    return [
        event(
            operator.get("op", "aten::op"),
            "cpu_op",
            at,
            4,
            thread,
            **{"External id": number, "Input Dims": operator.get("shapes", [])},
        ),
        event("cudaLaunchKernel", "cuda_runtime", at + 1, 2, thread, correlation=number),
        event(name, "kernel", 1000 + 10 * at, length, 7, correlation=number, **{"External id": number}),
    ]


GPU = {
    "traceEvents": [
        event(STEP, "user_annotation", 0, 200),
        *launched(
            1, 10, 1, "gemm", 30, op="aten::conv", shapes=[[1, 3, 8, 8], [[4, 3, 3, 3], [4, 3, 3, 3]], []]
        ),
        # The backward runs in a separate thread.
        event("autograd::engine::evaluate_function: ConvBackward", "cpu_op", 50, 20, 2),
        *launched(2, 55, 2, "gemm", 50, op="aten::conv_backward"),
        event("Optimizer.step#Adam.step", "user_annotation", 80, 10),
        *launched(3, 82, 1, "adam", 5),
        event(PHASE, "user_annotation", 100, 20),
        *launched(4, 105, 1, "gemm", 10),
        event("autograd::engine::evaluate_function: ConvBackward", "cpu_op", 130, 20, 2),
        *launched(5, 135, 2, "copy", 3),
        *launched(6, 900, 1, "after the step", 1000),
        {"ph": "M", "name": "process_name"},
    ]
}


def test_analyses_a_gpu_trace() -> None:
    profile = analyse(GPU)
    assert profile.launches == {"G forward": 1, "G backward": 1, "D": 2, "rest": 1}
    assert profile.seconds == pytest.approx(
        {"G forward": 30e-6, "G backward": 50e-6, "D": 13e-6, "rest": 5e-6}
    )
    assert list(profile.kernels) == ["gemm", "adam", "copy"]
    assert profile.kernels["gemm"] == (pytest.approx(90e-6), 3)
    first = next(entry for entry in profile.operators if entry["name"] == "aten::conv")
    assert (first["shapes"], first["backward"], first["calls"]) == (
        [[1, 3, 8, 8], [4, 3, 3, 3], [4, 3, 3, 3]],
        False,
        1,
    )
    assert next(entry for entry in profile.operators if entry["name"] == "aten::conv_backward")["backward"]
    # The step lasts from its start to the end of its last kernel.
    assert profile.step == pytest.approx((1000 + 1350 + 3) * 1e-6)


def test_rejects_a_trace_without_a_step() -> None:
    with pytest.raises(ValueError, match="the trace contains no training step"):
        analyse({"traceEvents": [event("x", "cpu_op", 0, 1)]})


@pytest.mark.parametrize("provider", ["official", "ours"])
def test_profiles_a_step_on_this_machine(
    provider: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--provider",
        provider,
        "--size",
        "32",
        "--blocks",
        "1",
        "--output",
        str(tmp_path / "profile"),
    ]
    assert profile_step.main(arguments) == 0
    logged = capsys.readouterr().out
    assert all(f"\n{part}" in logged for part in PARTS)
    with gzip.open(tmp_path / "profile" / "trace.json.gz", "rt") as file:
        trace = json.load(file)
    profile = analyse(trace)
    assert all(profile.launches[part] > 0 for part in PARTS)
    # Nothing is counted twice: the operators' self times add up to no more than the step.
    assert 0.5 * profile.step < sum(profile.seconds.values()) <= profile.step
    assert roofline.main(["--profile", str(tmp_path / "profile" / "profile.json"), "--launches", "1"]) == 0
    table = capsys.readouterr().out
    # A profile shows no shapes of the layers that the C++ kernels compute: bench.layer_shares times those.
    shown = ["transposed conv 3x3, 128 to 64, 32x32"]
    if provider != "ours" or torch.cuda.is_available():
        shown += ["residual conv 3x3, 256 to 256, 8x8", "conv 7x7, 3 to 64, 32x32"]
    for layer in shown:
        rows = [line for line in table.splitlines() if line.startswith(layer)]
        assert rows
        assert all(" ms " in line and line.endswith("x") for line in rows), rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--provider official_max_autotune",
            "official_max_autotune: max-autotune uses CUDA graphs, which need a GPU",
        ),
        ("--size 31", "--size must be a multiple of 4"),
    ],
)
@pytest.mark.skipif(profile_step.DEVICE == "cuda", reason="on a GPU every provider is available")
def test_reports_bad_input(
    arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        profile_step.main([*arguments.split(), "--output", str(tmp_path)])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
