"""Tests of which convolutions the kernels of zero_conv support."""

from __future__ import annotations

from fastcyclegan.kernels.zero_conv import serves


def test_serves_the_networks_layers_and_nothing_else() -> None:
    """Every layer of the networks that is not reflection-padded is supported, at any width.

    Convolutions that the kernels would compute incorrectly are not.
    """
    assert all(serves(c, (2 * c, c, 3, 3), 2, 1, False, 0) for c in (4, 64, 128))
    assert all(serves(c, (c, c // 2, 3, 3), 2, 1, True, 1) for c in (4, 256, 128))
    assert all(
        serves(c, (o, c, 4, 4), s, 1, False, 0)
        for c, o, s in ((1, 64, 2), (3, 64, 2), (256, 512, 1), (512, 1, 1))
    )
    unsupported = [
        (4, (8, 2, 3, 3), 2, 1, False, 0), (4, (8, 4, 3, 4), 2, 1, False, 0),
        (4, (8, 4, 3, 3), 3, 1, False, 0),
        (4, (8, 4, 3, 3), 2, 3, False, 0), (4, (8, 4, 9, 9), 1, 4, False, 0),
        (4, (4, 8, 3, 3), 1, 1, True, 1),
        (4, (8, 4, 3, 3), 2, 1, False, 1), (4, (8, 4, 3), 1, 1, False, 0), (0, (8, 0, 3, 3), 1, 1, False, 0),
    ]  # fmt: skip
    assert not any(serves(*arguments) for arguments in unsupported)
