"""The checks before the first iteration detect modified checkouts whose training step is different.

The checkout's own step is then kept, and the reason is logged. If all methods are known versions, the
numerical comparison detects the difference.
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

WEIGHTS = "its results differ from those of fastcyclegan's step: netG_A's weights by "
# Has the name of the module that it replaces, because the methods look it up by name.
FAKE_RANDOM = """from types import SimpleNamespace

random = SimpleNamespace(uniform=lambda low, high: high, randint=lambda low, high: low)
"""
CLIPPED = f"torch.nn.utils.clip_grad_norm_(self.netG_A.parameters(), 1e-9); {STEP_G}"
FORKS: dict[str, tuple[str, str, str, str]] = {
    "an extra loss": (
        MODEL,
        ADVERSARIAL,
        f"{ADVERSARIAL} + 0.01 * self.fake_B.mean()",
        "its backward_G is not a known version",
    ),
    "a loss counted twice": (
        MODEL,
        ADVERSARIAL,
        f"{ADVERSARIAL} + self.loss_G_A",
        "its backward_G is not a known version",
    ),
    "an unknown loss name": (
        MODEL,
        '["D_A",',
        'self.__dict__.setdefault("loss_x", 1) and ["x",',
        "that the public step does not have: x",
    ),
    "clipping": (
        MODEL,
        STEP_G,
        CLIPPED,
        "its optimize_parameters is not a known version",
    ),
    "two updates": (
        MODEL,
        STEP_D,
        f"{STEP_D}; {STEP_D}",
        "its optimize_parameters is not a known version",
    ),
    "no pool of A": (
        MODEL,
        "self.fake_A_pool.query(self.fake_A)",
        "self.fake_A",
        "its optimize_parameters is not a known version",
    ),
    "a pool that decides differently": (POOL, "> 0.5", "< 0.5", "its fake_A_pool.one is not a known version"),
    # In the following forks the methods are known versions, but the objects that they use differ.
    "soft labels": (NETWORKS, "torch.tensor(1.0)", "torch.tensor(0.9)", WEIGHTS),
    "a loss that sums": (MODEL, "torch.nn.L1Loss(), ", "torch.nn.L1Loss(reduction='sum'), ", WEIGHTS),
    "other random numbers": (
        POOL,
        "import random\n",
        FAKE_RANDOM,
        "its results differ from those of fastcyclegan's step: ",
    ),
    "another optimizer": (
        MODEL,
        f"torch.optim.{ADAM_D}",
        "torch.optim.AdamW(both_D, lr=opt.lr",
        "optimizer_D is AdamW, not Adam",
    ),
    "weight decay": (
        MODEL,
        ADAM_D,
        f"{ADAM_D}, weight_decay=0.1",
        "optimizer_D uses Adam settings other than those of the public code",
    ),
    "two learning rates": (
        MODEL,
        ADAM_D,
        ADAM_D.replace("opt.lr,", "4 * opt.lr,"),
        "different learning rates",
    ),
    "a model that cannot be copied": (
        MODEL,
        CYCLE,
        f"self.frames = (n for n in ()); {CYCLE}",
        "compared with fastcyclegan's: TypeError: cannot pickle 'generator'",
    ),
    "another generator": (
        NETWORKS,
        "x + self.conv_block(x)",
        "torch.relu(x + self.conv_block(x))",
        "netG_A is the checkout's own ResnetGenerator",
    ),
}


@pytest.mark.parametrize("fork", FORKS)
def test_a_fork_keeps_its_own_step_and_the_reason_is_logged(tmp_path: Path, images: Path, fork: str) -> None:
    *edit, reason = FORKS[fork]
    folder = checkout(tmp_path, [tuple(edit)])  # type: ignore[list-item]
    ours = train(folder, images, "--norm batch", Options(), epochs=1)
    lines = [line for line in ours[2] if line.startswith("training step: ")]
    assert len(lines) == 1
    assert lines[0].startswith("training step: not replaced: ")
    assert reason in lines[0]
    assert_same(ours, train(folder, images, "--norm batch", None, epochs=1))


def test_a_learning_rate_of_zero_hides_no_difference(tmp_path: Path, images: Path) -> None:
    """The comparison detects a different loss even if the run's learning rate is 0.

    With that rate no step would change any weight, so the comparison uses its own.
    """
    folder = checkout(tmp_path, [(NETWORKS, "torch.tensor(1.0)", "torch.tensor(0.9)")])
    _, _, logged = train(folder, images, "--lr 0", Options(), epochs=1)
    assert WEIGHTS in logged[-1]
