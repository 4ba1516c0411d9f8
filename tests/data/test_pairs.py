"""Which images of two folders are pairs, which have no partner, and which names are ambiguous."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastcyclegan.data.pairs import Pairs, find_pairs
from fastcyclegan.errors import UserError

A, B = Path("a"), Path("b")


def found(in_A: str, in_B: str) -> Pairs:
    """Return the pairs of the images ``in_A`` of folder a and ``in_B`` of folder b, both sorted by name."""
    return find_pairs(A, [A / name for name in in_A.split()], B, [B / name for name in in_B.split()])


def named(pairs: Pairs) -> list[tuple[str, str]]:
    """Return the paths of each pair in its folders."""
    return [
        (a.relative_to(A).as_posix(), b.relative_to(B).as_posix())
        for a, b in zip(pairs.A, pairs.B, strict=True)
    ]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("x.png", "x.png"),
        ("x.jpg", "x.PNG"),  # the suffix does not matter
        ("x.old.jpg", "x.old.png"),  # only the last one is the suffix
        ("x_A.jpg", "x_B.jpg"),
        ("x_A.jpg", "x.jpg"),
        ("x.jpg", "x_B.jpg"),
        ("x_A.jpg", "x_A.jpg"),
        ("x_B.jpg", "x_B.jpg"),
        ("_A.jpg", "_A.jpg"),
        ("sub/x_A.jpg", "sub/x_B.jpg"),
    ],
)
def test_names_of_pairs(a: str, b: str) -> None:
    assert found(a, b) == Pairs([A / a], [B / b], [], [])


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("x.png", "X.png"),
        ("x.old.png", "x.png"),
        ("x_B.png", "x_A.png"),  # the endings of the other side
        ("x_B.png", "x.png"),
        ("one/x.png", "two/x.png"),  # equal names in other subfolders
        ("sub/x.png", "x.png"),
        ("_A.png", "_B.png"),  # nothing is left of the names
        ("sub/_A.png", "sub/_B.png"),
    ],
)
def test_names_of_images_without_a_partner(a: str, b: str) -> None:
    assert found(a, b) == Pairs([], [], [A / a], [B / b])


def test_pairs_and_the_rest_are_in_the_order_of_their_folders() -> None:
    pairs = found("2.png 1.png 9.png 3_A.png 8.png", "7.png 3.png 1_B.png 6.png 2.jpg")
    assert named(pairs) == [("2.png", "2.jpg"), ("1.png", "1_B.png"), ("3_A.png", "3.png")]
    assert pairs.only_A == [A / "9.png", A / "8.png"]
    assert pairs.only_B == [B / "7.png", B / "6.png"]


def test_equal_names_are_pairs_whatever_they_end_in() -> None:
    """Images of letters end in _A and _B in both folders, and are no candidates for each other."""
    letters = "serif.png serif_A.png serif_B.png"
    assert named(found(letters, letters)) == [(name, name) for name in letters.split()]
    pairs = found("x.png x_A.png", "x.png x_B.png")
    assert named(pairs) == [("x.png", "x.png"), ("x_A.png", "x_B.png")]


@pytest.mark.parametrize(
    ("in_A", "in_B", "named_images"),
    [
        ("x.png", "x.jpg x.png", "a/x.png b/x.jpg b/x.png"),
        ("x.jpg x.png", "x.png", "b/x.png a/x.jpg a/x.png"),
        ("x_A.png", "x.png x_B.png", "a/x_A.png b/x.png b/x_B.png"),
        ("x.png x_A.png", "x_B.png", "b/x_B.png a/x.png a/x_A.png"),
        ("x.jpg x.png", "x.bmp x.gif", "a/x.jpg b/x.bmp b/x.gif"),
    ],
)
def test_two_candidates_are_named(in_A: str, in_B: str, named_images: str) -> None:
    image, first, second = named_images.split()
    wanted = f"^{image}: two images could be its partner, {first} and {second}; remove or rename one of them$"
    with pytest.raises(UserError, match=wanted):
        found(in_A, in_B)


def test_two_images_of_one_name_need_no_partner() -> None:
    assert found("x.jpg x.png", "y.png").only_A == [A / "x.jpg", A / "x.png"]
