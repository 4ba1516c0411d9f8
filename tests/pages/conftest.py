"""Fixtures for the tests of the pages: a fast Python, and a reader's folder for each test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import share_cpp_kernels
from tests.pages.forked_python import ForkedPython
from tests.pages.user import User, clean_environment, make_folder


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedPython]:
    python = ForkedPython(tmp_path_factory.mktemp("python"), clean_environment())
    yield python
    python.close()


@pytest.fixture(scope="session")
def reader_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader") / "fastcyclegan"
    make_folder(folder)
    return folder


@pytest.fixture
def user(
    tmp_path: Path, python: ForkedPython, reader_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> User:
    shutil.copytree(reader_folder, tmp_path / "fastcyclegan", symlinks=True)
    user = User(tmp_path / "fastcyclegan", python.bin)
    share_cpp_kernels(user.cache, tmp_path_factory)
    return user
