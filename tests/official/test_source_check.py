"""Steps whose source has what the public one has not: they keep their place, though two iterations show no
difference.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fastcyclegan.official.patch_model import Options
from tests.official.training import (
    ADVERSARIAL,
    MODEL,
    OPTIMIZE,
    SET_INPUT,
    STEP_D,
    assert_ours,
    assert_same,
    checkout,
    train,
)

BACKWARD = "self.backward_G()\n        self.optimizer_G"
# What two iterations beside ours cannot show: what comes later, and what is done beside training.
LATER: dict[str, tuple[str, str, str]] = {
    "a skipped update": (
        STEP_D,
        f"self.n += 1\n        if self.n % 3: {STEP_D}",
        "optimize_parameters has `self.n += 1`",
    ),
    "another skipped update": (
        STEP_D,
        f"if self.seen % 3: {STEP_D}",
        "optimize_parameters has `if self.seen % 3`",
    ),
    "an early return": (
        OPTIMIZE,
        f"{OPTIMIZE}        if self.seen % 4 == 0: return\n",
        "optimize_parameters has `if self.seen % 4 == 0`",
    ),
    "an extra loss": (
        ADVERSARIAL,
        f"{ADVERSARIAL} + (self.loss_G_A if self.seen > 3 else 0)",
        "backward_G has `self.loss_G_A if self.seen > 3 else 0`",
    ),
    "a weight that moves": (
        "self.real_A) * opt.lambda_A\n",
        "self.real_A) * self.seen\n",
        "backward_G has `self.seen`",
    ),
    "a condition on a loss": (
        ADVERSARIAL,
        f"lambda_idt = self.loss_G_A\n        {ADVERSARIAL}",
        "backward_G has `lambda_idt = self.loss_G_A`",
    ),
    "a print": (STEP_D, f"{STEP_D}\n        print('D')", "optimize_parameters has `print('D')`"),
    "an average": (
        STEP_D,
        f"{STEP_D}\n        self.ema.update(self.n)",
        "optimize_parameters has `self.ema.update(self.n)`",
    ),
    "a changed option": (
        STEP_D,
        f"{STEP_D}\n        self.opt.lambda_A = 1.0",
        "optimize_parameters has `self.opt.lambda_A = 1.0`",
    ),
    "a loop": (
        STEP_D,
        f"for _ in range(self.n): {STEP_D}",
        "optimize_parameters has `for _ in range(self.n)`",
    ),
    "a decorator": (
        OPTIMIZE,
        f"    @torch.enable_grad()\n{OPTIMIZE}",
        "optimize_parameters has `@torch.enable_grad()`",
    ),
    "a method of its own": (
        BACKWARD,
        BACKWARD.replace("_G()", "_all()"),
        "optimize_parameters has `self.backward_all()`",
    ),
}


@pytest.mark.parametrize("change", LATER)
def test_a_step_that_may_do_other_things_later_keeps_its_place(
    tmp_path: Path, pictures: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new, construct = LATER[change]
    head = (
        "class Average:\n    def update(self, n): print('D')\n\n\nclass CycleGANModel(BaseModel):\n    n,"
        " seen, ema = 1, 0, Average()\n\n"
    )
    method = (
        f"    def backward_all(self):\n        self.backward_G()\n\n{SET_INPUT}self, input):\n       "
        " self.seen += 1\n"
    )
    edits = [
        (MODEL, old, new),
        (MODEL, "class CycleGANModel(BaseModel):\n", head),
        (MODEL, f"{SET_INPUT}self, input):\n", method),
    ]
    folder = checkout(tmp_path, edits)
    ours = train(folder, pictures, "", Options(), epochs=1)
    printed = capsys.readouterr().out
    assert ours[2][-1] == f"step: the checkout's own: its {construct}, which the public one has not"
    assert_same(ours, train(folder, pictures, "", None, epochs=1))
    # As often as the checkout alone.
    assert printed.count("D\n") == capsys.readouterr().out.count("D\n")


def test_a_step_without_source_keeps_its_place_and_comments_and_methods_outside_the_step_count_for_nothing(
    tmp_path: Path, pictures: Path
) -> None:
    folder = checkout(tmp_path / "unreadable")
    with (folder / MODEL).open("a") as file:
        file.write(
            "\n\nexec('def made(self, netD, real, fake): return 0')\nCycleGANModel.backward_D_A = made\n"
        )
    _, _, said = train(folder, pictures, "", Options(), epochs=1)
    assert said[-1] == "step: the checkout's own: the source of its backward_D_A cannot be read"
    annotated = (
        f'{OPTIMIZE.replace("):", ") -> None:")}        """Update."""  # all\n        kind: str = "x"\n'
    )
    edits = [
        (MODEL, OPTIMIZE, annotated),
        (MODEL, f"{SET_INPUT}self, input):\n", f"{SET_INPUT}self, input):\n        print(input)\n"),
    ]
    _, _, said = train(checkout(tmp_path, edits), pictures, "", Options(), epochs=1)
    assert_ours(said)
