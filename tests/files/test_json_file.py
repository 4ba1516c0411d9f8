"""JSON files that are damaged give a value, OSError or ValueError, and nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fastcyclegan.files.json_file import parse_json, read_json

INVALID = [
    b"",
    b"{",
    b'{"a": 1}x',
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"a": 1, "a": 2}',
    b"1" * 5000,
    b"\0" * 100,
]


@pytest.mark.parametrize("content", INVALID, ids=[repr(content[:12]) for content in INVALID])
def test_invalid_content(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(ValueError):
        read_json(tmp_path / "f")


def test_what_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("", "pipe"):
        with pytest.raises(ValueError, match="not a regular file"):
            read_json(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "missing")


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file:
        file.truncate(2**40)  # which takes no room on the disk
    with pytest.raises(ValueError, match="it has more than 1073741824 bytes"):
        read_json(tmp_path / "f")


def test_valid_content(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True, "\u00e9"], "b": {"a": {}}}
    (tmp_path / "f").write_text(json.dumps(value))
    assert read_json(tmp_path / "f") == parse_json(json.dumps(value)) == value
