"""Helpers to run commands in this process: flags for a tiny training run, and a check of error messages."""

from __future__ import annotations

import pytest

from fastcyclegan import cli

TINY = (
    "--load_size 16 --crop_size 16 --netG resnet_0blocks --netD pixel --ngf 2 --ndf 2 --device cpu"
    " --num_threads 0".split()
)


def fails(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run the train command in this process, and return the error line that it prints.

    Asserts that it prints exactly one line and exits with code 2.
    """
    assert cli.train([*TINY, *args]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1, error
    return error
