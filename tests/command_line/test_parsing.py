"""Command lines become dataclasses of settings; mistakes are one line."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fastcyclegan.command_line.parsing import arguments, asks_for_help, description, flags_in, parse
from fastcyclegan.errors import UserError
from fastcyclegan.settings.crop_size import CropSize


@dataclass(frozen=True)
class Group:
    #: Help of the rate.
    rate: float = 0.5


@dataclass(frozen=True)
class Config:
    """First line,
    and a second one.
    """

    #: Help of the folder.
    folder: Path | None = None
    names: tuple[str, ...] | None = None
    quiet: bool = False
    crop_size: CropSize = 16
    group: Group = field(default_factory=Group)


def test_a_docstring_as_one_paragraph() -> None:
    assert description(Config) == "First line, and a second one."


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", Config()),
        ("--folder a --quiet --rate 2", Config(Path("a"), quiet=True, group=Group(2.0))),
        ("--names b c --folder=a", Config(Path("a"), ("b", "c"))),
        ("--names b", Config(names=("b",))),
        ("--crop_size 8", Config(crop_size=8)),
        ("--crop-size 8 12", Config(crop_size=(8, 12))),
    ],
)
def test_flags_in_both_spellings(line: str, expected: Config) -> None:
    assert parse(Config, line.split(), "") == expected


def test_flags_that_are_not_given_have_the_values_of_the_default() -> None:
    default = Config(Path("a"), group=Group(3))
    assert parse(Config, ["--quiet"], "", default) == Config(Path("a"), quiet=True, group=Group(3))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--rate fast", "--rate must be a number, got 'fast'"),
        ("--folder", "--folder: no value given"),
        ("--names", "--names: no value given"),
        ("--fodler a", "unknown flag --fodler; did you mean --folder?"),
        ("more", "unknown argument 'more'"),
        ("--folder=", "--folder: the value is empty"),
    ],
)
def test_a_mistake_is_one_line(line: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse(Config, line.split(), "")
    assert str(error.value) == message


def test_flags_of_others_are_said_to_be_theirs() -> None:
    with pytest.raises(UserError, match="--lambda is a flag of --model cut; --help lists all flags"):
        parse(Config, ["--lambda", "3"], "", owners=lambda flag: ["cut"] if flag == "lambda" else [])


def test_the_help_begins_with_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(Config, ["--rate", "fast", "--help"], "What it does.")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "What it does." in text
    for name in ("--folder", "--crop_size", "Help of the rate.", "Help of the folder."):
        assert name in text


def test_the_arguments_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--quiet"])
    assert arguments(None) == ["--quiet"]
    assert parse(Config, None, "") == Config(quiet=True)
    assert arguments(["a"]) == ["a"]
    for args, flag in ((["--folder", ""], "--folder"), (["--folder="], "--folder"), ([""], "")):
        with pytest.raises(UserError, match=f"^{flag}: the value is empty$"):
            arguments(args)


def test_asking_for_help() -> None:
    assert [asks_for_help(args) for args in (["-h"], ["a", "--help"], ["--helper"], [])] == [
        True,
        True,
        False,
        False,
    ]


def test_flags_and_what_follows_them() -> None:
    args = ["--load-size", "8", "--quiet", "--rate=2", "--names", "a", "b"]
    assert flags_in(args) == {"load_size": "8", "quiet": "--rate=2", "rate": "2", "names": "a"}
    assert flags_in(["--quiet"]) == {"quiet": ""}
