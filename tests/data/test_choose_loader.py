"""The choice of a loader, and the reason that is reported for it."""

from __future__ import annotations

import pytest
import torch

from fastcyclegan.data import choose_loader, dali_pipeline
from fastcyclegan.data.choose_loader import choose, cores
from fastcyclegan.errors import UserError

CPU = torch.device("cpu")


def test_auto_chooses_dali_if_it_works() -> None:
    choice = choose("auto", CPU)
    assert (choice.kind, choice.threads) == ("dali", min(cores(), 16))
    assert str(choice).startswith(f"dali, {choice.threads} thread")
    assert str(choose("dali", CPU, 3)) == "dali, 3 threads (requested, decodes on the CPU)"
    assert choose("dali", CPU, 0).threads == 1


def test_folder_can_be_requested() -> None:
    assert str(choose("folder", CPU)) == "folder, 4 processes (requested)"
    assert str(choose("folder", CPU, 1)) == "folder, 1 process (requested)"
    assert choose("folder", CPU, 0).threads == 0


def test_auto_falls_back_to_pillow_and_gives_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dali_pipeline, "find_spec", lambda name: None)
    choice = choose("auto", CPU)
    assert choice.kind == "folder"
    assert "DALI is not installed: install the extra dali, or dali-cu12" in choice.reason
    with pytest.raises(UserError, match="--loader dali: DALI is not installed"):
        choose("dali", CPU)


def test_other_problems_with_dali_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object) -> None:
        raise RuntimeError("driver\n  too old")

    monkeypatch.setattr(dali_pipeline.DaliPipeline, "build", broken)
    assert choose_loader.choose("auto", CPU).reason == "DALI does not work here: driver too old"
    assert dali_pipeline.why_not_dali(torch.device("mps")) == "DALI does not support the device mps"
