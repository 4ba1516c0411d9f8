"""Training with the fake checkout, its texts edited or not, by its own step or by ours: what the tests of
this room share.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastcyclegan.official import __main__ as official
from fastcyclegan.official.patch_model import Options
from fastcyclegan.testing import is_cancelled_bias, relative_error

SMALL = "--ngf 4 --ndf 4 --netG resnet_1blocks --netD n_layers --n_layers_D 2 --pool_size 3 --lr 0.002"
# 20 iterations in four epochs: the pools are full after three, and the learning rate falls in the last two
# epochs.
EPOCHS = 4
MODEL, NETWORKS, BASE = "models/cycle_gan_model.py", "models/networks.py", "models/base_model.py"
POOL = "util/image_pool.py"
Edits = list[tuple[str, str, str]]


def checkout(tmp_path: Path, edits: Edits = []) -> Path:  # noqa: B006
    """Copy the package, and replace texts in its files."""
    folder = tmp_path / "checkout"
    shutil.copytree(Path(__file__).parent / "checkout", folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, old, new in edits:
        text = (folder / name).read_text()
        assert old in text, (name, old)
        (folder / name).write_text(text.replace(old, new))
    return folder


@contextlib.contextmanager
def importable(folder: Path, ours: Options | None, logged: list[str]) -> Iterator[None]:
    """Let the modules of ``folder`` be imported inside the block, with ours in their place if options are
    given.
    """

    def forget() -> None:
        for name in [
            name for name in sys.modules if name.split(".")[0] in ("models", "options", "data", "util")
        ]:
            del sys.modules[name]

    finder = official.patches(ours or Options(), folder, logged.append)
    forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        if ours:
            patch.setattr(sys, "meta_path", [finder, *sys.meta_path])
        try:
            yield
        finally:
            forget()


def train(
    folder: Path,
    photos: Path,
    flags: str,
    ours: Options | None,
    *,
    epochs: int = EPOCHS,
    dtype: torch.dtype = torch.float64,
    after: Callable[[Any, int], object] = lambda model, iteration: None,
) -> Any:
    """Train as train.py does, in float64, calling ``after`` every iteration; return the model, all losses,
    and what was said.
    """
    logged: list[str] = []
    arguments = (
        f"{SMALL} --checkpoints_dir {folder.parent / 'runs'} --n_epochs 2 --n_epochs_decay 2 {flags}".split()
    )
    sys.argv = ["train.py", "--dataroot", str(photos), *arguments]
    with importable(folder, ours, logged):
        import data as official_data
        import models
        from options.train_options import TrainOptions  # type: ignore[import-not-found]

        random.seed(0)
        torch.manual_seed(0)
        opt = TrainOptions().parse()
        dataset = official_data.create_dataset(opt)
        model = models.create_model(opt)  # type: ignore[attr-defined]
        model.setup(opt)
        for module in (value for value in vars(model).values() if isinstance(value, nn.Module)):
            module.to(dtype)
        losses = []
        for _ in range(epochs):
            for batch in dataset:
                model.set_input(
                    {name: value.to(dtype) if name in "AB" else value for name, value in batch.items()}
                )
                model.optimize_parameters()
                losses.append(model.get_current_losses())
                after(model, len(losses))
            model.update_learning_rate()
    return model, losses, logged


def assert_same(ours: Any, theirs: Any, bound: float = 1e-9) -> None:
    """Hold two runs in float64 to ``bound``, relative: weights, running statistics, losses. 1e-16 grows with
    every iteration.
    """
    (mine, my_losses, _), (other, their_losses, _) = ours, theirs
    assert len(my_losses) == len(their_losses) > 0
    for row, other_row in zip(my_losses, their_losses, strict=True):
        assert row == pytest.approx(other_row, rel=bound)
    for name in other.model_names:
        mine_net, net = getattr(mine, f"net{name}"), getattr(other, f"net{name}")
        state = mine_net.state_dict()
        assert list(state) == list(net.state_dict())
        for key, value in net.state_dict().items():
            plain = net.module if isinstance(net, nn.DataParallel) else net
            if not is_cancelled_bias(plain, key.removeprefix("module.")):
                assert relative_error(state[key], value) < bound, f"{name} {key}"


STEP = "step: ours, on cpu in fp32, networks by reference; 2 iterations in float64 differed by"


def assert_ours(logged: list[str]) -> None:
    """Hold what was said to our step, which was not handed over later."""
    assert [line.startswith(STEP) for line in logged if line.startswith("step: ")] == [True], logged


ADAM_D = "Adam(both_D, lr=opt.lr, betas=(opt.beta1, 0.999)"
STEP_G = "self.optimizer_G.step()"
STEP_D = "self.optimizer_D.step()"
ADVERSARIAL, CYCLE = "adversarial = self.loss_G_A + self.loss_G_B", "self.criterionCycle, self"
OPTIMIZE, SET_INPUT = "    def optimize_parameters(self):\n", "    def set_input("
