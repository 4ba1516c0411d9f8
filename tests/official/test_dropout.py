"""Dropout in a checkout's networks drops what the checkout's own would, in every memory layout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastcyclegan.official.dropout import order_dropout

LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_mask_does_not_depend_on_the_layout(device: str, layout: torch.memory_format) -> None:
    x = torch.randn(2, 8, 6, 5, device=device)
    upstream = torch.randn_like(x)
    results = []
    for is_ours in (False, True):
        net = nn.Sequential(nn.Identity(), nn.Sequential(nn.Dropout(0.5)))
        y = x.clone().requires_grad_()
        if is_ours:
            order_dropout(net)
            y = x.to(memory_format=layout, copy=True).requires_grad_()
        torch.manual_seed(3)
        result = net(y)
        result.backward(upstream)
        assert y.grad is not None
        results.append((result.detach(), y.grad, torch.rand(1)))
    for ours, official in zip(results[1], results[0], strict=True):
        assert torch.equal(ours, official)


def test_evaluation_mode_and_the_rate_are_kept() -> None:
    net = nn.Sequential(nn.Dropout(0.25)).eval()
    order_dropout(net)
    x = torch.randn(1, 4, 3, 3).to(memory_format=torch.channels_last)
    assert torch.equal(net(x), x)
    assert (net[0].p, net.train()[0].training) == (0.25, True)
