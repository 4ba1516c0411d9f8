"""Choose the command that resumes an interrupted run, and check the files of a complete one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from PIL import Image

from fastcyclegan.checkpoints.run_files import PREVIOUS, read_config
from fastcyclegan.tensor_files import load_tensors
from fastcyclegan.training.run_folder import is_run
from fastcyclegan.training.run_report import CURVES, PAGE, STATS
from tests.training.runs import assert_same_state


def next_command(folder: Path, command: list[str]) -> list[str]:
    """Return the command that resumes the run in ``folder``: ``command`` itself if it contains no run."""
    if not is_run(folder):
        return command
    return ["--continue_train", "--name", folder.name, "--checkpoints_dir", str(folder.parent)]


def assert_complete(folder: Path, whole: Path) -> None:
    """Assert that the run in ``folder`` has lost nothing, compared with the uninterrupted run ``whole``."""
    assert_same_state(whole, folder)
    weights = [sorted(path.name for path in run.glob("*_net_*.pth")) for run in (whole, folder)]
    assert weights[0] == weights[1], "weights files"
    for name in weights[0]:
        expected, found = load_tensors(whole / name), load_tensors(folder / name)
        assert expected.keys() == found.keys(), name
        assert all(torch.equal(expected[key], found[key]) for key in expected), name
    assert read_config(folder) is not None
    assert_report(folder, load_tensors(folder / "state.pt")["iteration"])
    hidden = [str(path.relative_to(folder)) for path in folder.rglob(".*")]
    assert not hidden, f"hidden files are left: {hidden}"
    names = [{path.name for path in run.iterdir()} for run in (whole, folder)]
    # A run that was interrupted has been saved more often, so it may have a state before the last one.
    assert names[0] in (names[1], names[1] - {PREVIOUS}), "files"


def assert_report(folder: Path, last: int) -> None:
    """Assert that every iteration is recorded once, and that the images of the page exist."""
    lines = (folder / STATS).read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [*range(1, last + 1)], STATS
    page = (folder / PAGE).read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>"), PAGE
    assert page.endswith("\n"), PAGE
    entries = [int(number) for number in re.findall(r"^<!--(\d+)-->", page, re.MULTILINE)]
    assert entries == sorted(set(entries)), f"{PAGE} shows {entries}"
    assert entries[-1:] == [last], f"{PAGE} shows {entries}"
    images = re.findall(r'src="(samples/[^"]*)"', page)
    assert len(images) == len(entries), PAGE
    for name in (*images, CURVES):
        with Image.open(folder / name) as image:
            image.load()
