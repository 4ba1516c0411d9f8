"""Images of one domain must have one size if several form a batch; otherwise a message names two of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastcyclegan.config import DataConfig
from fastcyclegan.data.equal_sizes import largest_sides, required_size
from fastcyclegan.data.fit import Fit
from fastcyclegan.errors import UserError
from tests.conftest import source, write_images


def test_the_size_that_images_must_have(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "a", 2, (40, 24))
    checked = source(paths, Fit()).checked
    for fit, size in (
        (Fit("none"), (40, 24)),
        (Fit("none", multiple=16), (32, 32)),
        (Fit("scale_width", 20, 8), (20, 12)),
        (Fit("crop", 0, (16, 24)), (24, 16)),
    ):
        assert required_size(paths, checked, fit, DataConfig(batch_size=2)) == size
    assert required_size(paths, checked, Fit("none"), DataConfig(batch_size=1)) is None
    assert required_size(paths, checked, Fit("crop", 0, (16, 24)), DataConfig(batch_size=1)) == (24, 16)


def test_images_of_other_sizes_are_named(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "a", 2, (40, 24)) + write_images(tmp_path / "b", 2, (40, 34))
    checked = source(paths, Fit()).checked
    with pytest.raises(UserError) as error:
        required_size(paths, checked, Fit("none"), DataConfig(batch_size=3))
    assert str(error.value) == (
        "--batch_size 3 needs images of equal size, but after --preprocess none"
        f" {paths[0]} is 40x24 and {paths[2]} is 40x32: remove those of other sizes, or pass"
        " --skip_bad_images; a new run can use --batch_size 1, or --preprocess scale_width_and_crop or crop"
        " with --crop_size HEIGHT WIDTH"
    )
    most = [*paths, paths[0]]
    assert required_size(most, checked, Fit("none"), DataConfig(batch_size=3, skip_bad_images=True)) == (
        40,
        24,
    )
    assert required_size(paths, checked, Fit("none"), DataConfig(batch_size=1)) is None
    assert required_size(paths, checked, Fit("crop", 0, 8), DataConfig(batch_size=3)) == (8, 8)
    # Rounding, or the least height, makes them equal.
    assert required_size(paths, checked, Fit("none", multiple=32), DataConfig(batch_size=3)) == (32, 32)
    assert required_size(paths, checked, Fit("scale_width", 8, 16), DataConfig(batch_size=3)) == (8, 16)


def test_the_largest_sides(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "a", 1, (40, 24)) + write_images(tmp_path / "b", 1, (16, 32))
    checked = source(paths, Fit()).checked
    assert largest_sides(paths, checked, Fit("none")) == (40, 32)
    assert largest_sides(paths, checked, Fit("crop", 0, (8, 12))) == (12, 8)


def test_halves_have_half_the_width(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "a", 1, (80, 24)) + write_images(tmp_path / "b", 1, (32, 40))
    checked = source(paths, Fit()).checked
    assert largest_sides(paths, checked, Fit("none"), "left") == (40, 40)
    assert required_size(paths[:1], checked, Fit("none"), DataConfig(batch_size=2), "right") == (40, 24)
    with pytest.raises(UserError, match=r"000.png is 40x24 and \S*000.png is 16x40: remove those"):
        required_size(paths, checked, Fit("none"), DataConfig(batch_size=2), "left")
