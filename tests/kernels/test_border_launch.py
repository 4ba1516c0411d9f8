"""Writing reflected borders and folding them back gives the same as PyTorch's padding and its gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastcyclegan.kernels import border_launch
from tests.kernels.arguments import channels_last

# Among these are borders of more than half a small image, images of two rows, lines that are reflected from
# both sides, in different tiles, and images of several tiles.
BORDERS = [
    ((2, 5, 2, 2), 1),
    ((1, 3, 3, 40), 1),
    ((1, 3, 40, 3), 1),
    ((1, 3, 3, 2), 1),
    ((1, 17, 9, 7), 1),
    ((1, 4, 4, 5), 3),
    ((2, 8, 13, 11), 3),
]


@pytest.mark.parametrize(("shape", "border"), BORDERS)
def test_reflected_border_and_its_gradient_match_torch(
    shape: tuple[int, ...], border: int, device: str
) -> None:
    torch.manual_seed(0)
    x = channels_last(*shape, device=device).requires_grad_()
    padded = F.pad(x, (border,) * 4, mode="reflect")
    assert torch.equal(border_launch.reflect_pad(x.detach(), border), padded)
    g = channels_last(*padded.shape, device=device)
    padded.backward(g)
    H, W = shape[2:]
    folded = border_launch.fold_border_(g.clone(), border)[:, :, border : border + H, border : border + W]
    torch.testing.assert_close(folded, x.grad)


@pytest.mark.parametrize(
    ("shape", "padding"), [((1, 5, 2, 3), 1), ((2, 3, 3, 4), 2), ((1, 16, 8, 9), 3), ((1, 20, 13, 3), 1)]
)
def test_fold_matches_the_gradient_of_torchs_padding(
    shape: tuple[int, ...], padding: int, device: str
) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last).requires_grad_()
    padded = F.pad(x, (padding,) * 4, mode="reflect")
    g = torch.randn_like(padded)
    padded.backward(g)
    torch.testing.assert_close(border_launch.fold(g, padding), x.grad)
