"""Tests of which convolutions zero_conv's kernels support."""

from __future__ import annotations

from fastcyclegan.kernels.zero_conv import serves


def test_serves_the_layers_of_the_networks_and_rejects_others() -> None:
    """``serves`` accepts every layer of the networks that is not reflection-padded, at any width.

    It rejects every convolution that the kernels would compute wrongly.
    """
    assert all(serves(c, (2 * c, c, 3, 3), 2, 1, False, 0) for c in (4, 64, 128))
    assert all(serves(c, (c, c // 2, 3, 3), 2, 1, True, 1) for c in (4, 256, 128))
    assert all(
        serves(c, (o, c, 4, 4), s, 1, False, 0)
        for c, o, s in ((1, 64, 2), (3, 64, 2), (256, 512, 1), (512, 1, 1))
    )
    wrong = [
        (4, (8, 2, 3, 3), 2, 1, False, 0), (4, (8, 4, 3, 4), 2, 1, False, 0),
        (4, (8, 4, 3, 3), 3, 1, False, 0),
        (4, (8, 4, 3, 3), 2, 3, False, 0), (4, (8, 4, 9, 9), 1, 4, False, 0),
        (4, (4, 8, 3, 3), 1, 1, True, 1),
        (4, (8, 4, 3, 3), 2, 1, False, 1), (4, (8, 4, 3), 1, 1, False, 0), (0, (8, 0, 3, 3), 1, 1, False, 0),
    ]  # fmt: skip
    assert not any(serves(*arguments) for arguments in wrong)
