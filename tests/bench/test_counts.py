"""Exact counts of the launches and PyTorch calls of a training step and of a translation.

Counts are reproducible, the official order launches no kernels, and each block adds a fixed number.
"""

from __future__ import annotations

from bench.counts import (
    pix2pix_step_counts,
    pix2pix_translation_counts,
    step_counts,
    translation_counts,
)
from bench.figures import COUNTS


def test_our_step_makes_launches_and_the_official_order_only_aten_calls() -> None:
    official, ours = (step_counts(name, 32, 1, blocks=1, precision="fp32") for name in ("official", "ours"))
    assert official.launches.total() == 0
    assert ours.launches.total() > 100
    assert ours.aten.total() < official.aten.total() / 2
    assert ours.saved_bytes < official.saved_bytes
    assert ours == step_counts("ours", 32, 1, blocks=1, precision="fp32")


def test_the_official_step_is_counted_as_on_a_gpu() -> None:
    """Adam updates all weights together, and autocast pads in bf16, which on a CPU would be fp32."""
    one, two = (step_counts("official_bf16", 32, 1, blocks=n) for n in (1, 2))
    assert one.aten["_foreach_lerp_"] == 2
    assert "lerp_" not in one.aten
    # A block adds only the casts of the weights and biases of two convolutions, and those of their gradients.
    assert two.aten["_to_copy"] - one.aten["_to_copy"] == 2 * 2 * (2 + 2)


def test_a_block_adds_twelve_launches_in_each_of_two_stages() -> None:
    one, two = (step_counts("ours", 32, 1, blocks=n, precision="fp32") for n in (1, 2))
    assert two.launches.total() - one.launches.total() == 2 * (4 + 8)


def test_identity_passes_need_no_extra_launches() -> None:
    with_identity, without = (
        step_counts("ours", 32, 1, blocks=1, identity=on, precision="fp32") for on in (True, False)
    )
    assert with_identity.launches == without.launches


def test_launches_of_an_iteration_by_part() -> None:
    """An iteration at 256x256 in bf16 makes at most 520 launches and PyTorch calls, with a limit per part."""
    counts = step_counts("ours", 256, 1)
    total = counts.launches.total() + counts.aten.total()
    assert sum(counts.parts.values()) == total <= 520
    # Two stages, each with 36 in the blocks and 14 to 20 around them, plus the discriminators, the losses and
    # the converted weights.
    assert counts.parts["G forward"] <= 2 * 56 + 30
    # Two stages, each with 72 in the blocks and 40 around them, plus the discriminators and the losses.
    assert counts.parts["G backward"] <= 2 * 112 + 30
    assert counts.parts["D forward"] + counts.parts["D backward"] <= 100
    assert total - sum(n for part, n in counts.parts.items() if part[:2] in ("G ", "D ")) <= 40


def test_every_count_has_a_label_in_the_report() -> None:
    assert {"launches", "aten_calls", "saved_bytes"} <= COUNTS.keys()


def test_translation_of_one_image() -> None:
    """A translation makes 49 launches. In bf16, 20 of the calls only round weights."""
    official, fp32, bf16 = (
        translation_counts(name, precision)
        for name, precision in (("official", "fp32"), ("ours", "fp32"), ("ours", "bf16"))
    )
    assert official.launches.total() == 0
    assert official.aten["convolution"] == 24
    assert fp32.launches.total() == bf16.launches.total() == 49
    assert bf16.aten.total() == fp32.aten.total() + 20
    assert bf16.aten["copy_"] == fp32.aten["copy_"] + 20
    blocks = [translation_counts("ours", "bf16", 32, blocks=n).launches.total() for n in (1, 2)]
    assert blocks[1] - blocks[0] == 4


def test_a_step_of_pix2pix_launches_kernels_for_instance_norm() -> None:
    official, ours, batch = (
        pix2pix_step_counts(name, 32, norm, "fp32")
        for name, norm in (("official", "instance"), ("ours", "instance"), ("ours", "batch"))
    )
    assert official.launches.total() == 0
    # A U-Net of 32 has 5 + 5 convolutions, and the discriminator, which runs three times, has 5.
    assert official.aten["convolution"] == 10 + 3 * 5
    # Real and fake pairs share a batch only with instance norm.
    assert ours.aten["convolution"] == 10 + 2 * 5
    assert batch.aten["convolution"] == 10 + 3 * 5
    assert ours.launches.total() > 0
    assert ours.aten.total() < official.aten.total()
    assert ours.saved_bytes < official.saved_bytes


def test_a_translation_by_pix2pix_is_one_graph_or_one_call_per_layer() -> None:
    for norm in ("batch", "instance"):
        assert pix2pix_translation_counts("official", "fp32", 32, norm).aten["convolution"] == 10
        calls = pix2pix_translation_counts("ours", "bf16", 32, norm).aten
        # In inference mode, PyTorch does not split these calls any further.
        assert calls["conv2d"] == calls["conv_transpose2d"] == 5
        assert pix2pix_translation_counts("captured", "bf16", 32, norm).launches == {"graph": 1}
    as_trained = pix2pix_translation_counts("official", "fp32", 32, "batch")
    # The running statistics, which a network in evaluation mode would leave alone.
    assert as_trained.aten["add_"] == 7
