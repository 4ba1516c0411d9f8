"""Tests of planned outputs: each image has its own, no input is overwritten, and errors are found early."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from fastcyclegan.errors import UserError
from fastcyclegan.inference import outputs
from fastcyclegan.inference.outputs import plan_outputs


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def planned(tmp_path: Path, names: tuple[str, ...], grid: bool = False) -> dict[str, str]:
    """Return the output of each image (and of the grid, under "grid"), relative to the folder."""
    source, output = touch(tmp_path / "in", *names), tmp_path / "out"
    plan = plan_outputs(source, output, grid)
    targets = {
        one.source.relative_to(source).as_posix(): one.target.relative_to(output).as_posix()
        for one in plan.outputs
    }
    if plan.grid is not None:
        targets["grid"] = plan.grid.relative_to(output).as_posix()
    return targets


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # The simple cases: the suffix is kept only where it is needed.
        (("a.jpg",), ("a.png",)),
        (("a.jpg", "a.tif", "b.bmp"), ("a.jpg.png", "a.tif.png", "b.png")),
        # The kept suffix leads to the simple name of another image.
        (("x.jpg", "x.jpg.png", "x.tif"), ("x.jpg-2.png", "x.jpg.png", "x.tif.png")),
        (
            ("x.jpg", "x.jpg-2.tif", "x.jpg.png", "x.tif"),
            ("x.jpg-3.png", "x.jpg-2.png", "x.jpg.png", "x.tif.png"),
        ),
        # A folder of the same name must be created.
        (("x.jpg", "x.png/a.jpg"), ("x.jpg.png", "x.png/a.png")),
        (("x.jpg", "x.jpg.png/a.jpg", "x.png/a.jpg"), ("x.jpg-2.png", "x.jpg.png/a.png", "x.png/a.png")),
        # Names that are the same on disks that ignore case, or how accents are encoded.
        (("A.jpg", "a.jpg"), ("A.jpg.png", "a.jpg-2.png")),
        (("D/a.jpg", "d/A.tif"), ("D/a.jpg.png", "d/A.tif.png")),
        (("e\u0301.jpg", "\u00e9.tif"), ("e\u0301.jpg.png", "\u00e9.tif.png")),
    ],
)
def test_every_image_has_its_own_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    """The outputs do not depend on the order in which images are listed."""
    assert planned(tmp_path, names) == dict(zip(names, expected, strict=True))
    find = outputs.find_files
    monkeypatch.setattr(
        outputs, "find_files", lambda folder: replace(find(folder), images=find(folder).images[::-1])
    )
    assert planned(tmp_path, names) == dict(zip(names, expected, strict=True))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("before_after.jpg",), {"before_after.jpg": "before_after.jpg.png", "grid": "before_after.png"}),
        (("Before_After.jpg",), {"Before_After.jpg": "Before_After.jpg.png", "grid": "before_after.png"}),
        (
            ("before_after.png/a.jpg",),
            {"before_after.png/a.jpg": "before_after.png/a.png", "grid": "before_after-2.png"},
        ),
    ],
)
def test_the_grid_meets_no_translation(
    tmp_path: Path, names: tuple[str, ...], expected: dict[str, str]
) -> None:
    assert planned(tmp_path, names, grid=True) == expected


def test_folders_of_the_output_that_are_links_to_each_other(tmp_path: Path) -> None:
    (tmp_path / "out" / "b").mkdir(parents=True)
    (tmp_path / "out" / "a").symlink_to("b")
    assert planned(tmp_path, ("a/x.jpg", "b/x.jpg")) == {"a/x.jpg": "a/x.jpg.png", "b/x.jpg": "b/x.jpg-2.png"}


def test_a_single_image_can_have_a_file_as_its_output(tmp_path: Path) -> None:
    image = touch(tmp_path, "x.jpg") / "x.jpg"
    for name in ("painted.png", "new/folder/painted.PNG"):
        (one,) = plan_outputs(image, tmp_path / name).outputs
        assert one.target == tmp_path / name
    assert plan_outputs(image, tmp_path / "painted.png", grid=True).grid == tmp_path / "before_after.png"
    plan = plan_outputs(image, tmp_path / "Before_After.png", grid=True)
    assert plan.grid == tmp_path / "before_after-2.png"
    (tmp_path / "folder.png").mkdir()
    for folder in ("folder.png", "painted", "v1.5"):
        (one,) = plan_outputs(image, tmp_path / folder).outputs
        assert one.target == tmp_path / folder / "x.png"


def test_an_image_is_translated_into_a_folder_that_contains_it(tmp_path: Path) -> None:
    source = touch(tmp_path, "in/deep/x.jpg") / "in"
    for path in (source / "deep" / "x.jpg", source / "deep"):
        (one,) = plan_outputs(path, source).outputs
        assert one.target == source / "x.png"
    assert [one.target.name for one in plan_outputs(source, source / "out").outputs] == ["x.png"]
    touch(source, "out/deep/x.png")  # an earlier translation
    assert [one.source.name for one in plan_outputs(source, source / "out").outputs] == ["x.jpg"]
    with pytest.raises(UserError, match="no images to translate"):
        plan_outputs(touch(tmp_path, "only/out/x.png") / "only", tmp_path / "only" / "out")


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        ("missing", "out", "missing: no such file or folder"),
        ("empty", "out", "empty: contains no images"),
        ("in/x.jpg", "painted.jpg", "painted.jpg: translations are PNG files; use .*painted.png"),
        ("in/x.jpg", "painted.gif", "painted.gif: translations are PNG files"),
        ("in/x.jpg", "text", "text: not a folder"),
        ("in/x.jpg", "text/painted.png", "text: not a folder"),
        ("in", "painted.png", "painted.png: the name of an image, but --output must be a folder for .*in"),
        ("in", "in/x.jpg", "x.jpg: not a folder"),
        ("in", "text/deep", "text: not a folder"),
        ("in", "dangling", "dangling: not a folder"),
        ("in", "in", "in: the folder of the images, where .* next time: choose another --output"),
        ("in", "in/../in", "in: the folder of the images"),
        ("in", "link", "link: the folder of the images"),
        ("in/deep", "in", "y.png is one of the input images: choose another --output"),
        ("in/y.png", "in/y.png", "y.png is one of the input images"),
        ("in/y.png", "link/y.png", "y.png is one of the input images"),
        ("in/before_after.png", "in", "before_after.png is one of the input images"),
        ("in", "blocked", "x.png: a folder, where the translation of .*x.jpg must be written"),
        ("in/x.jpg", "pipe.png", "pipe.png: not a regular file, where the translation of .*x.jpg must be"),
        ("in/x.jpg", "device.png", "device.png: not a regular file, where the translation"),
        ("in", "gridless", "before_after.png: a folder, where the grid must be written"),
    ],
)
def test_impossible_outputs_are_refused(tmp_path: Path, source: str, output: str, message: str) -> None:
    touch(tmp_path, "in/x.jpg", "in/y.png", "in/before_after.png", "text")
    (tmp_path / "in" / "deep").mkdir()
    (tmp_path / "in" / "deep" / "y.png").hardlink_to(tmp_path / "in" / "y.png")
    for folder in ("empty", "blocked/x.png", "gridless/before_after.png"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "link").symlink_to("in")
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "device.png").symlink_to("/dev/full")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match=message) as raised:
        plan_outputs(tmp_path / source, tmp_path / output, grid=True)
    assert "\n" not in str(raised.value)


def test_a_file_where_a_folder_must_be_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "in/deep/x.jpg", "out/deep")
    with pytest.raises(UserError, match="deep: not a folder"):
        plan_outputs(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("stem", ["x" * 251, "\u00e9" * 125])
def test_names_that_are_too_long_are_refused(tmp_path: Path, stem: str) -> None:
    """A second image of the same name gets a longer one, which may not fit."""
    touch(tmp_path, f"in/{stem}.jpg", "in/short.jpg")
    assert len(plan_outputs(tmp_path / "in", tmp_path / "out").outputs) == 2
    touch(tmp_path, f"in/{stem}.bmp")
    with pytest.raises(UserError, match=rf"the translation of .*{stem}.(jpg|bmp) would have too long a name"):
        plan_outputs(tmp_path / "in", tmp_path / "out")


def test_images_that_cannot_be_read_do_not_prevent_the_plan(tmp_path: Path) -> None:
    touch(tmp_path, "in/y.jpg")
    (tmp_path / "in" / "x.jpg").symlink_to("nothing")
    (tmp_path / "in" / "z.jpg").symlink_to("y.jpg")
    targets = [one.target.name for one in plan_outputs(tmp_path / "in", tmp_path / "out").outputs]
    assert targets == ["x.png", "y.png", "z.png"]


def test_links_to_inputs_are_never_overwritten(tmp_path: Path) -> None:
    touch(tmp_path, "in/x.png", "out/other")
    os.link(tmp_path / "in" / "x.png", tmp_path / "out" / "x.png")
    with pytest.raises(UserError, match=r"x\.png is one of the input images"):
        plan_outputs(tmp_path / "in", tmp_path / "out")


def test_numbered_names_are_told(tmp_path: Path) -> None:
    plan = plan_outputs(touch(tmp_path / "in", "x.jpg", "x.jpg.png", "x.tif", "y.bmp"), tmp_path / "out")
    assert plan.numbered == (
        "1 translation has a number because others have the name: x.jpg becomes x.jpg-2.png"
    )
    assert plan_outputs(tmp_path / "in" / "x.jpg", tmp_path / "x-2.png").numbered == ""
    assert plan_outputs(tmp_path / "in" / "y.bmp", tmp_path / "out").numbered == ""


def test_links_that_form_a_loop_are_left_to_the_reader(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.png")
    (tmp_path / "in" / "loop.jpg").symlink_to("loop.jpg")
    plan = plan_outputs(tmp_path / "in", tmp_path / "out")
    assert [output.target.name for output in plan.outputs] == ["a.png", "loop.png"]
