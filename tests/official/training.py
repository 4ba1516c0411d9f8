"""Helpers that train with the fake checkout, using its own step or ours, and compare the results."""

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

from fastcyclegan.official import __main__ as command
from fastcyclegan.official.patch_model import Options
from fastcyclegan.testing import is_cancelled_bias, relative_error

SMALL = "--ngf 4 --ndf 4 --netG resnet_1blocks --netD n_layers --n_layers_D 2 --pool_size 3 --lr 0.002"
# 20 iterations in four epochs. The pools are full after three iterations, and the learning rate decays in the
# last two epochs.
EPOCHS = 4
MODEL, NETWORKS, BASE = "models/cycle_gan_model.py", "models/networks.py", "models/base_model.py"
POOL = "util/image_pool.py"
Edits = list[tuple[str, str, str]]


def checkout(tmp_path: Path, edits: Edits = []) -> Path:  # noqa: B006
    """Copy the fake checkout, apply ``edits`` to the copy, and return its folder.

    Each edit consists of a file name, the old text and the new text.
    """
    folder = tmp_path / "checkout"
    shutil.copytree(Path(__file__).parent / "checkout", folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, old, new in edits:
        text = (folder / name).read_text()
        assert old in text, (name, old)
        (folder / name).write_text(text.replace(old, new))
    return folder


@contextlib.contextmanager
def importable(folder: Path, options: Options | None, logged: list[str]) -> Iterator[None]:
    """Make the modules of ``folder`` importable inside the block.

    If ``options`` are given, the modules are patched, and lines that this logs are appended to ``logged``.
    """

    def unload() -> None:
        for name in [
            name for name in sys.modules if name.split(".")[0] in ("models", "options", "data", "util")
        ]:
            del sys.modules[name]

    finder = command.patches(options or Options(), folder, logged.append)
    unload()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        if options:
            patch.setattr(sys, "meta_path", [finder, *sys.meta_path])
        try:
            yield
        finally:
            unload()


def train(
    folder: Path,
    photos: Path,
    flags: str,
    options: Options | None,
    *,
    epochs: int = EPOCHS,
    dtype: torch.dtype = torch.float64,
    after: Callable[[Any, int], object] = lambda model, iteration: None,
) -> Any:
    """Train in the same way as the checkout's train.py, but in float64 by default.

    If ``options`` is None, the checkout's own step is used, otherwise ours if it can replace that step.
    ``after`` is called after every iteration, with the model and the number of iterations so far. Returns the
    model, the losses of all iterations and the lines that were logged.
    """
    logged: list[str] = []
    arguments = (
        f"{SMALL} --checkpoints_dir {folder.parent / 'runs'} --n_epochs 2 --n_epochs_decay 2 {flags}".split()
    )
    sys.argv = ["train.py", "--dataroot", str(photos), *arguments]
    with importable(folder, options, logged):
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


def translated(folder: Path, photos: Path, flags: str, options: Options | None) -> list[dict[str, Any]]:
    """Translate in the same way as the checkout's test.py, but in float64, and return its images.

    If ``options`` is None, the checkout's own networks are used, otherwise ours if they can replace them.
    """
    arguments = f"--checkpoints_dir {folder.parent / 'runs'} --ngf 4 --serial_batches {flags}".split()
    sys.argv = ["test.py", "--dataroot", str(photos), *arguments]
    with importable(folder, options, []):
        import data as official_data
        import models
        from options.test_options import TestOptions  # type: ignore[import-not-found]

        torch.manual_seed(0)
        opt = TestOptions().parse()
        model = models.create_model(opt)  # type: ignore[attr-defined]
        model.setup(opt)
        model.netG.double()
        if opt.eval:
            model.eval()
        images = []
        for batch in official_data.create_dataset(opt):
            model.set_input(
                {name: value.double() if name in "AB" else value for name, value in batch.items()}
            )
            model.test()
            images.append(model.get_current_visuals())
    return images


def assert_same(ours: Any, official: Any, bound: float = 1e-9) -> None:
    """Assert that two runs in float64 have the same weights, running statistics and losses.

    ``bound`` is the largest relative difference allowed. It is much larger than a rounding error of 1e-16
    because such errors grow with every iteration.
    """
    (our_model, our_losses, _), (official_model, official_losses, _) = ours, official
    assert len(our_losses) == len(official_losses) > 0
    for row, official_row in zip(our_losses, official_losses, strict=True):
        assert row == pytest.approx(official_row, rel=bound)
    for name in official_model.model_names:
        our_net, net = getattr(our_model, f"net{name}"), getattr(official_model, f"net{name}")
        state = our_net.state_dict()
        assert list(state) == list(net.state_dict())
        for key, value in net.state_dict().items():
            plain = net.module if isinstance(net, nn.DataParallel) else net
            if not is_cancelled_bias(plain, key.removeprefix("module.")):
                assert relative_error(state[key], value) < bound, f"{name} {key}"


STEP = (
    "training step: replaced by fastcyclegan's, on cpu in fp32, networks computed by reference; over 2"
    " iterations in float64 it differed from the checkout's own by"
)


def assert_ours(logged: list[str]) -> None:
    """Assert that our step replaced the checkout's, and that the checkout's own never took over again."""
    assert [line.startswith(STEP) for line in logged if line.startswith("training step: ")] == [True], logged


ADAM_D = "Adam(both_D, lr=opt.lr, betas=(opt.beta1, 0.999)"
STEP_G = "self.optimizer_G.step()"
STEP_D = "self.optimizer_D.step()"
ADVERSARIAL, CYCLE = "adversarial = self.loss_G_A + self.loss_G_B", "self.criterionCycle, self"
OPTIMIZE, SET_INPUT = "    def optimize_parameters(self):\n", "    def set_input("
