"""Run the checks of the engine's options at tiny sizes: correct options pass, and faulty ones fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import gpu_options


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            lambda engine: list(engine.nets["D_A"].parameters())[-1].data.add_(0.5),
            "losses of iteration 1: relative error",
        ),
        (lambda engine: setattr(engine, "graphs", None), "0 graphs were captured, expected 1"),
        (
            lambda engine: [setattr(trained, "step", list) for trained in engine.phase_optimizers.values()],
            "have not changed in 20 iterations",
        ),
    ],
    ids=["wrong", "not captured", "not trained"],
)
def test_a_faulty_option_fails(
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


def test_options_without_a_fault_pass(capsys: pytest.CaptureFixture[str]) -> None:
    """A few cases pass the checks. The other cases are run by the rehearsal."""
    for name in (
        "the default: bf16, graph, pairs, overlapped gradients",
        "--batch_size 4, the last batch smaller",
        "pix2pix",
        "pix2pix --norm instance --batch_size 4",
    ):
        assert gpu_options.main(["--tiny", "--only", name]) == 0
        assert name in capsys.readouterr().out


def test_a_wrong_result_of_pix2pix_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    make = gpu_options.engine_of

    def faulty(*args: Any) -> Any:
        engine = make(*args)
        list(engine.nets["D"].parameters())[-1].data.add_(50)
        return engine

    monkeypatch.setattr(gpu_options, "engine_of", faulty)
    assert gpu_options.main(["--tiny", "--only", "pix2pix --no_dropout"]) == 1
