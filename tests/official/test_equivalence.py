"""Checkouts that somebody changed: what is done before the first iteration finds another step, which then
stays, and why is said. Where the methods are known ones, it is the comparison that finds it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fastcyclegan.official.patch_model import Options
from tests.official.training import (
    ADAM_D,
    ADVERSARIAL,
    CYCLE,
    MODEL,
    NETWORKS,
    POOL,
    STEP_D,
    STEP_G,
    assert_same,
    checkout,
    train,
)

WEIGHTS = "it is not the public one: netG_A's weights differ by "
# By the names of the module, which the methods go by.
CHANCE = """from types import SimpleNamespace

random = SimpleNamespace(uniform=lambda low, high: high, randint=lambda low, high: low)
"""
CLIPPED = f"torch.nn.utils.clip_grad_norm_(self.netG_A.parameters(), 1e-9); {STEP_G}"
FORKS: dict[str, tuple[str, str, str, str]] = {
    "an extra loss": (
        MODEL,
        ADVERSARIAL,
        f"{ADVERSARIAL} + 0.01 * self.fake_B.mean()",
        "its backward_G is of no version that is known here",
    ),
    "a loss that counts twice": (
        MODEL,
        ADVERSARIAL,
        f"{ADVERSARIAL} + self.loss_G_A",
        "its backward_G is of no version that is known here",
    ),
    "a loss with a name": (
        MODEL,
        '["D_A",',
        'self.__dict__.setdefault("loss_x", 1) and ["x",',
        "that the public step does not have: x",
    ),
    "clipping": (
        MODEL,
        STEP_G,
        CLIPPED,
        "its optimize_parameters is of no version that is known here",
    ),
    "two updates": (
        MODEL,
        STEP_D,
        f"{STEP_D}; {STEP_D}",
        "its optimize_parameters is of no version that is known here",
    ),
    "no pool of A": (
        MODEL,
        "self.fake_A_pool.query(self.fake_A)",
        "self.fake_A",
        "its optimize_parameters is of no version that is known here",
    ),
    "a pool that draws otherwise": (POOL, "> 0.5", "< 0.5", "its fake_A_pool.one is of no version that"),
    # The methods are known ones here: what they meet is not.
    "soft labels": (NETWORKS, "torch.tensor(1.0)", "torch.tensor(0.9)", WEIGHTS),
    "a loss of sums": (MODEL, "torch.nn.L1Loss(), ", "torch.nn.L1Loss(reduction='sum'), ", WEIGHTS),
    "other chance": (POOL, "import random\n", CHANCE, "it is not the public one: "),
    "another optimizer": (
        MODEL,
        f"torch.optim.{ADAM_D}",
        "torch.optim.AdamW(both_D, lr=opt.lr",
        "optimizer_D is AdamW, not Adam",
    ),
    "weight decay": (MODEL, ADAM_D, f"{ADAM_D}, weight_decay=0.1", "optimizer_D has settings of its own"),
    "two rates": (MODEL, ADAM_D, ADAM_D.replace("opt.lr,", "4 * opt.lr,"), "learning rates of their own"),
    "no copies": (
        MODEL,
        CYCLE,
        f"self.frames = (n for n in ()); {CYCLE}",
        "compared with ours: TypeError: cannot pickle 'generator'",
    ),
    "another generator": (
        NETWORKS,
        "x + self.conv_block(x)",
        "torch.relu(x + self.conv_block(x))",
        "netG_A is a ResnetGenerator of the checkout",
    ),
}


@pytest.mark.parametrize("fork", FORKS)
def test_a_fork_keeps_what_is_its_own_and_that_is_said(tmp_path: Path, images: Path, fork: str) -> None:
    *edit, reason = FORKS[fork]
    folder = checkout(tmp_path, [tuple(edit)])  # type: ignore[list-item]
    ours = train(folder, images, "--norm batch", Options(), epochs=1)
    lines = [line for line in ours[2] if line.startswith("step: ")]
    assert len(lines) == 1
    assert lines[0].startswith("step: the checkout's own: ")
    assert reason in lines[0]
    assert_same(ours, train(folder, images, "--norm batch", None, epochs=1))


def test_a_rate_of_zero_hides_nothing(tmp_path: Path, images: Path) -> None:
    """Where nothing moves, all steps are the same: the proof has a rate of its own."""
    folder = checkout(tmp_path, [(NETWORKS, "torch.tensor(1.0)", "torch.tensor(0.9)")])
    _, _, logged = train(folder, images, "--lr 0", Options(), epochs=1)
    assert WEIGHTS in logged[-1]
