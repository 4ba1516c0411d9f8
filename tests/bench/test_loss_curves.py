"""The comparison of loss curves: what the page states is what was recorded.

tests/pages/test_long_commands.py runs the command itself.
"""

from __future__ import annotations

import json
from pathlib import Path

from bench import loss_curves

ROOT = Path(__file__).parents[2]
RECORD = json.loads((ROOT / "bench" / "results" / "loss_curves.json").read_text())


def test_the_page_states_the_committed_distances() -> None:
    page = (ROOT / "fastcyclegan" / "engine" / "README.md").read_text()
    assert loss_curves.summary(RECORD) in " ".join(page.split())


def test_the_summary_covers_every_loss_once() -> None:
    names = [name for name, *_ in RECORD["apart"]]
    kinds = [[name for name in names if name.startswith(starts)] for starts in loss_curves.KINDS.values()]
    covered = [name for kind in kinds for name in kind]
    assert sorted(covered) == sorted(names) == sorted(loss_curves.NAMES)


def test_two_paths_are_closer_than_two_seeds() -> None:
    assert all(paths < seeds for _, paths, seeds in RECORD["apart"])
