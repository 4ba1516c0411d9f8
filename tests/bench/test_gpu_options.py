"""Every option of the engine, tiny: what is wrong does not hold, and what is right does."""

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
