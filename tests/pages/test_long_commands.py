"""Run the commands that take minutes, as a new user does: python -m pytest -m slow tests/pages"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.pages.page import Code, read_page
from tests.pages.user import User, make_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
# All cores and an empty compiler cache, as for a new user.
NEW_USER = "unset OMP_NUM_THREADS TORCHINDUCTOR_CACHE_DIR; "
# How long a command may take.
SECONDS = 1500.0


@pytest.fixture
def new_user(tmp_path: Path) -> User:
    make_folder(tmp_path / "fastcyclegan")
    return User(tmp_path / "fastcyclegan", Path(sys.executable).parent)


def first_commands() -> list[Code]:
    """Return the commands of the README that train, resume and translate, in order."""
    return [code for code in read_page("README.md").commands() if "scripts/tr" in code.text][:4]


def test_the_first_commands(new_user: User) -> None:
    """The first command as written learns the built-in images; the others run their first iterations."""
    built_in, train, resume, translate = first_commands()
    assert built_in.text == "python scripts/train.py --compile"
    output = run(new_user, built_in.text)
    assert "done: iteration 1200 of 1200" in output
    closed = [float(value) for value in re.findall(r"close (-?[0-9.]+) of the difference", output)]
    assert len(closed) == 2
    assert min(closed) > 0.5
    assert "images: runs/" in output
    assert "done: iteration 2 of 2" in run(new_user, f"{train.text} --max_iters 2")
    assert "done: iteration 3 of 3" in run(new_user, f"{resume.text} --max_iters 3")
    run(new_user, translate.text)
    assert len(list((new_user.folder / "painted").glob("*.png"))) == 4


def test_loss_curves(new_user: User) -> None:
    output = run(new_user, "python -m bench.loss_curves --iterations 21 --seeds 2 --provider ours")
    assert "G_AB     fastcyclegan and official, same seed" in output


def run(user: User, command: str) -> str:
    outcome = user.run(NEW_USER + command, SECONDS)
    assert outcome.code == 0, outcome.output
    return outcome.output
