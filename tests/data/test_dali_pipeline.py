"""Why DALI is not taken where it could not work."""

from __future__ import annotations

import pytest
import torch

from fastcyclegan.data.dali_pipeline import why_not_dali


@pytest.mark.parametrize(("ours", "extra"), [("12.8", "dali-cu12"), ("14.0", "dali")])
def test_dali_for_another_cuda_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, ours: str, extra: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", ours)
    reason = why_not_dali(torch.device("cuda"))
    assert f"is built for CUDA 13 and torch for CUDA {ours[:2]}: install the extra {extra}" in reason
    assert why_not_dali(torch.device("cpu")) == ""  # images for a CPU need no CUDA
