"""Helpers to run commands in this process: flags for a tiny training run, and a check of error messages."""

from __future__ import annotations

import pytest

from fastcyclegan import cli

TINY = (
    "--load_size 16 --crop_size 16 --netG resnet_0blocks --netD pixel --ngf 2 --ndf 2 --device cpu"
    " --num_threads 0".split()
)


def fails(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run train.py in this process, check that it fails with code 2 and one line, and return that line."""
    assert cli.train([*TINY, *args]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1, error
    return error
