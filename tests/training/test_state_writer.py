"""The previous state is kept if a new one is not finite or does not fit on the disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from fastcyclegan.errors import UserError
from fastcyclegan.tensor_files import load_tensors
from tests.training.runs import run


def test_weights_that_are_not_finite_are_not_saved(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is computed before the update, so it can be finite even if the last update broke the weights.

    The writer therefore checks the weights too.
    """
    from fastcyclegan.engine import Engine

    step = Engine.step

    def ruin(self: Engine, batch: Any, lr: float) -> torch.Tensor:
        losses = step(self, batch, lr)
        with torch.no_grad():
            next(self.nets["G_AB"].parameters()).fill_(float("nan"))
        return losses

    run(dataset, tmp_path, "r", "--max_iters", "1")
    before = (tmp_path / "r" / "state.pt").read_bytes()
    monkeypatch.setattr(Engine, "step", ruin)
    with pytest.raises(
        UserError, match="weights are not finite after iteration 2; the last good state is from iteration 1"
    ):
        run(dataset, tmp_path, "r", "--continue_train", "--max_iters", "2")
    assert (tmp_path / "r" / "state.pt").read_bytes() == before


@pytest.mark.parametrize("full", ["state", "weights"])
def test_a_full_disk_keeps_the_old_state(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    run(dataset, tmp_path, "r", "--max_iters", "2")
    files = {path: path.read_bytes() for path in (tmp_path / "r").glob("*.pt*")}
    save = torch.save

    def refuse(value: Any, file: IO[bytes]) -> None:
        """Imitate torch on a full disk: it raises its own error while the file's error is being handled."""
        if full == "weights" and "state" in file.name:
            return save(value, file)
        file.write(b"half")
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc]") from None

    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(
        UserError,
        match=(
            r"saving failed at iteration 3: No space left on device; the last good state is from iteration"
            r" [23]"
        ),
    ):
        run(dataset, tmp_path, "r", "--continue_train", "--max_iters", "3")
    files_after = {path: path.read_bytes() for path in (tmp_path / "r").glob("*.pt*")}
    if full == "state":
        assert files_after == files
    assert files_after.keys() == files.keys()
    assert not list((tmp_path / "r").glob(".*"))
    assert load_tensors(tmp_path / "r" / "state.pt")["iteration"] == (2 if full == "state" else 3)
