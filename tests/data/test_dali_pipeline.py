"""The reasons that are reported if DALI cannot be used."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from fastcyclegan.data.dali_pipeline import DaliPipeline, why_not_dali
from fastcyclegan.data.fit import Fit
from fastcyclegan.errors import UserError


@pytest.mark.parametrize(("torch_cuda", "extra"), [("12.8", "dali-cu12"), ("14.0", "dali")])
def test_reports_a_dali_for_another_cuda_and_the_fix(
    monkeypatch: pytest.MonkeyPatch, torch_cuda: str, extra: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    reason = why_not_dali(torch.device("cuda"))
    assert f"is built for CUDA 13, but torch for CUDA {torch_cuda[:2]}; install the extra {extra}" in reason
    assert why_not_dali(torch.device("cpu")) == ""  # on a CPU, the CUDA version does not matter


def test_a_lack_of_threads_is_a_line_for_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(pipe: object) -> None:
        raise RuntimeError(os.strerror(errno.EAGAIN))

    monkeypatch.setattr("nvidia.dali.Pipeline.build", fails)
    with pytest.raises(UserError, match=r"cannot start its threads: .*; use --loader folder$"):
        DaliPipeline(Fit(), torch.device("cpu"), 1).build()
