"""The reasons that are reported if DALI cannot be used."""

from __future__ import annotations

import pytest
import torch

from fastcyclegan.data.dali_pipeline import why_not_dali


@pytest.mark.parametrize(("torch_cuda", "extra"), [("12.8", "dali-cu12"), ("14.0", "dali")])
def test_reports_a_dali_for_another_cuda_and_the_fix(
    monkeypatch: pytest.MonkeyPatch, torch_cuda: str, extra: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    reason = why_not_dali(torch.device("cuda"))
    assert f"is built for CUDA 13, but torch for CUDA {torch_cuda[:2]}; install the extra {extra}" in reason
    assert why_not_dali(torch.device("cpu")) == ""  # on a CPU, the CUDA version does not matter
