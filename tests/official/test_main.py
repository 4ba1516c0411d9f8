"""An official command with our networks and step, on a package of the official structure, against what that does alone."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastcyclegan.nn.networks import computed_by
from fastcyclegan.official import __main__ as official
from fastcyclegan.official.patch_model import Options
from fastcyclegan.official.step import NotServedError, unwrapped
from fastcyclegan.testing import is_cancelled_bias, relative_error
from tests.conftest import write_pictures

ROOT = Path(__file__).parents[2]
SMALL = "--ngf 4 --ndf 4 --netG resnet_1blocks --netD n_layers --n_layers_D 2 --pool_size 3 --lr 0.002"
# 20 iterations in four epochs: the pools are full after three, and the learning rate falls in the last two epochs.
EPOCHS = 4
MODEL, NETWORKS, BASE = "models/cycle_gan_model.py", "models/networks.py", "models/base_model.py"
Edits = list[tuple[str, str, str]]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for seed, (name, count) in enumerate({"trainA": 5, "trainB": 4, "testA": 2, "testB": 2}.items()):
        write_pictures(tmp_path / "photos" / name, count, size=(32, 32), seed=seed)
    return tmp_path / "photos"


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
def importable(folder: Path, ours: Options | None, said: list[str]) -> Iterator[None]:
    """Let the modules of ``folder`` be imported inside the block, with ours in their place if options are given."""

    def forget() -> None:
        for name in [name for name in sys.modules if name.split(".")[0] in ("models", "options", "data", "util")]:
            del sys.modules[name]

    finder = official.patches(ours or Options(), folder, said.append)
    forget()
    sys.path.insert(0, str(folder))
    sys.meta_path[:0] = [finder] if ours else []
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        if ours:
            sys.meta_path.remove(finder)
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
    """Train as train.py does, in float64, calling ``after`` every iteration; return the model, all losses, and what was said."""
    said: list[str] = []
    arguments = f"{SMALL} --checkpoints_dir {folder.parent / 'runs'} --n_epochs 2 --n_epochs_decay 2 {flags}".split()
    sys.argv = ["train.py", "--dataroot", str(photos), *arguments]
    with importable(folder, ours, said):
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
                model.set_input({name: value.to(dtype) if name in "AB" else value for name, value in batch.items()})
                model.optimize_parameters()
                losses.append(model.get_current_losses())
                after(model, len(losses))
            model.update_learning_rate()
    return model, losses, said


def assert_same(ours: Any, theirs: Any, bound: float = 1e-9) -> None:
    """Hold two runs in float64 to ``bound``, relative: weights, running statistics, losses. 1e-16 grows with every iteration."""
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


def assert_ours(said: list[str]) -> None:
    """Hold what was said to our step, which was not handed over later."""
    assert [line.startswith(STEP) for line in said if line.startswith("step: ")] == [True], said


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param("", id="defaults"),
        # Batches of 2 of 5 pictures: the last is a part; the pool is full in the middle of the second.
        pytest.param("--batch_size 2 --direction BtoA", id="batches"),
        # Pictures of several sizes, in one pool.
        pytest.param("--preprocess none", id="sizes"),
        # The order of passes counts, and so do running statistics.
        pytest.param("--norm batch --batch_size 3 --gan_mode vanilla", id="batch norm"),
        pytest.param("--netG unet_32 --netD pixel --lambda_identity 0 --pool_size 0", id="U-Net, no identity, no pool"),
    ],
)
# Schedulers must see that the optimizers' steps are made.
@pytest.mark.filterwarnings("error:Detected call of")
def test_a_seeded_run_is_the_checkouts(tmp_path: Path, pictures: Path, flags: str) -> None:
    folder = checkout(tmp_path)
    if "none" in flags:
        write_pictures(pictures / "trainA", 2, size=(40, 24), seed=9)
    ours = train(folder, pictures, flags, Options())
    assert_ours(ours[2])
    assert_same(ours, train(folder, pictures, flags, None))


VARIANTS: dict[str, Edits] = {
    # 2017-19: a sigmoid to choose, and no gan_mode.
    "old": [
        (NETWORKS, "n_layers=3, norm_layer=nn.BatchNorm2d):", "n_layers=3, norm_layer=nn.BatchNorm2d, use_sigmoid=False):"),
        (NETWORKS, "norm_layer=norm_layer)\n    return init", "norm_layer=norm_layer, use_sigmoid=False)\n    return init"),
        (MODEL, "networks.GANLoss(opt.gan_mode)", "networks.GANLoss('lsgan')"),
        (MODEL, "self.loss_names = [", "del opt.gan_mode\n        opt.no_lsgan = False\n        self.loss_names = ["),
    ],
    # 2025: setup() initialises the networks; there is a device instead of gpu_ids.
    "new": [
        (NETWORKS, "    return init_net(net, init_type, init_gain, gpu_ids)", "    return net"),
        (
            BASE,
            "def setup(self, opt):",
            "def setup(self, opt):\n        for n in self.model_names: networks.init_net(getattr(self, 'net' + n))",
        ),
    ],
    # What init_net does with one GPU.
    "wrapped": [(NETWORKS, "init_weights(net, init_type, init_gain)", "net = nn.DataParallel(net)\n    init_weights(net)")],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_checkouts_of_other_years(tmp_path: Path, pictures: Path, variant: str) -> None:
    folder = checkout(tmp_path, VARIANTS[variant])
    ours = train(folder, pictures, "", Options(), epochs=2)
    assert_ours(ours[2])
    theirs = train(folder, pictures, "", None, epochs=2)
    assert_same(ours, theirs)
    saved = []
    for model, _, _ in (ours, theirs):
        model.save_networks("7")
        saved.append({path.name: torch.load(path) for path in sorted(Path(model.save_dir).glob("7_net_*.pth"))})
    assert [list(weights) for weights in saved[0].values()] == [list(weights) for weights in saved[1].values()]
    assert saved[0].keys() == saved[1].keys() == {f"7_net_{name}.pth" for name in ("G_A", "G_B", "D_A", "D_B")}


ADAM_D, STEP_G, STEP_D = "Adam(both_D, lr=opt.lr, betas=(opt.beta1, 0.999)", "self.optimizer_G.step()", "self.optimizer_D.step()"
ADVERSARIAL, CYCLE = "adversarial = self.loss_G_A + self.loss_G_B", "self.criterionCycle, self"
CLIPPED = f"torch.nn.utils.clip_grad_norm_(self.netG_A.parameters(), 1e-9); {STEP_G}"
FORKS: dict[str, tuple[str, str, str, str]] = {
    "an extra loss": (MODEL, ADVERSARIAL, f"{ADVERSARIAL} + 0.01 * self.fake_B.mean()", "its backward_G has `self.fake_B.mean()`, which"),
    "a loss that counts twice": (MODEL, ADVERSARIAL, f"{ADVERSARIAL} + self.loss_G_A", "it is not the public one: netG_A's weights"),
    "a loss with a name": (MODEL, '["D_A",', 'self.__dict__.setdefault("loss_x", 1) and ["x",', "that the public step does not have: x"),
    "clipping": (MODEL, STEP_G, CLIPPED, "its optimize_parameters has `torch.nn.utils.clip_grad_norm_(self.netG_A.parameters(), 1e-09)`"),
    "soft labels": (NETWORKS, "torch.tensor(1.0)", "torch.tensor(0.9)", "it is not the public one"),
    "two updates": (MODEL, STEP_D, f"{STEP_D}; {STEP_D}", "it is not the public one: netG_A's weights"),
    "no pool of A": (MODEL, "self.fake_A_pool.query(self.fake_A)", "self.fake_A", "it is not the public one"),
    "a pool that draws otherwise": ("util/image_pool.py", "> 0.5", "< 0.5", "it is not the public one"),
    "another optimizer": (MODEL, f"torch.optim.{ADAM_D}", "torch.optim.AdamW(both_D, lr=opt.lr", "optimizer_D is AdamW, not Adam"),
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
def test_a_fork_keeps_what_is_its_own_and_that_is_said(tmp_path: Path, pictures: Path, fork: str) -> None:
    *edit, reason = FORKS[fork]
    folder = checkout(tmp_path, [tuple(edit)])  # type: ignore[list-item]
    ours = train(folder, pictures, "--norm batch", Options(), epochs=1)
    lines = [line for line in ours[2] if line.startswith("step: ")]
    assert len(lines) == 1
    assert lines[0].startswith("step: the checkout's own: ")
    assert reason in lines[0]
    assert_same(ours, train(folder, pictures, "--norm batch", None, epochs=1))


OPTIMIZE, SET_INPUT = "    def optimize_parameters(self):\n", "    def set_input("
BACKWARD = "self.backward_G()\n        self.optimizer_G"
# What two iterations beside ours cannot show: what comes later, and what is done beside training.
LATER: dict[str, tuple[str, str, str]] = {
    "a skipped update": (STEP_D, f"self.n += 1\n        if self.n % 3: {STEP_D}", "optimize_parameters has `self.n += 1`"),
    "another skipped update": (STEP_D, f"if self.seen % 3: {STEP_D}", "optimize_parameters has `if self.seen % 3`"),
    "an early return": (OPTIMIZE, f"{OPTIMIZE}        if self.seen % 4 == 0: return\n", "optimize_parameters has `if self.seen % 4 == 0`"),
    "an extra loss": (
        ADVERSARIAL,
        f"{ADVERSARIAL} + (self.loss_G_A if self.seen > 3 else 0)",
        "backward_G has `self.loss_G_A if self.seen > 3 else 0`",
    ),
    "a weight that moves": ("self.real_A) * opt.lambda_A\n", "self.real_A) * self.seen\n", "backward_G has `self.seen`"),
    "a condition on a loss": (
        ADVERSARIAL,
        f"lambda_idt = self.loss_G_A\n        {ADVERSARIAL}",
        "backward_G has `lambda_idt = self.loss_G_A`",
    ),
    "a print": (STEP_D, f"{STEP_D}\n        print('D')", "optimize_parameters has `print('D')`"),
    "an average": (STEP_D, f"{STEP_D}\n        self.ema.update(self.n)", "optimize_parameters has `self.ema.update(self.n)`"),
    "a changed option": (STEP_D, f"{STEP_D}\n        self.opt.lambda_A = 1.0", "optimize_parameters has `self.opt.lambda_A = 1.0`"),
    "a loop": (STEP_D, f"for _ in range(self.n): {STEP_D}", "optimize_parameters has `for _ in range(self.n)`"),
    "a decorator": (OPTIMIZE, f"    @torch.enable_grad()\n{OPTIMIZE}", "optimize_parameters has `@torch.enable_grad()`"),
    "a method of its own": (BACKWARD, BACKWARD.replace("_G()", "_all()"), "optimize_parameters has `self.backward_all()`"),
}


@pytest.mark.parametrize("change", LATER)
def test_a_step_that_may_do_other_things_later_keeps_its_place(
    tmp_path: Path, pictures: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new, construct = LATER[change]
    head = (
        "class Average:\n    def update(self, n): print('D')\n\n\nclass CycleGANModel(BaseModel):\n    n, seen, ema = 1, 0, Average()\n\n"
    )
    method = f"    def backward_all(self):\n        self.backward_G()\n\n{SET_INPUT}self, input):\n        self.seen += 1\n"
    edits = [(MODEL, old, new), (MODEL, "class CycleGANModel(BaseModel):\n", head), (MODEL, f"{SET_INPUT}self, input):\n", method)]
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
        file.write("\n\nexec('def made(self, netD, real, fake): return 0')\nCycleGANModel.backward_D_A = made\n")
    _, _, said = train(folder, pictures, "", Options(), epochs=1)
    assert said[-1] == "step: the checkout's own: the source of its backward_D_A cannot be read"
    annotated = f'{OPTIMIZE.replace("):", ") -> None:")}        """Update."""  # all\n        kind: str = "x"\n'
    edits = [(MODEL, OPTIMIZE, annotated), (MODEL, f"{SET_INPUT}self, input):\n", f"{SET_INPUT}self, input):\n        print(input)\n")]
    _, _, said = train(checkout(tmp_path, edits), pictures, "", Options(), epochs=1)
    assert_ours(said)


def _halve_rate(model: Any, n: int) -> None:
    if n >= 3:
        model.optimizer_D.param_groups[0]["lr"] *= 0.5


def _at(iteration: int, change: Callable[[Any], object]) -> Callable[[Any, int], object]:
    return lambda model, n: change(model) if n == iteration else None


def _set(name: str, value: object) -> Callable[[Any], object]:
    return lambda model: setattr(model.opt if name.startswith("lambda") else model, name, value)


def _scale(module: Any, given: Any, made: Any) -> Any:
    return 0.9 * made


# The pools of 3 are full after 5, so that what they hold is shown later.
CHANGES: dict[str, tuple[Callable[[Any, int], object], str]] = {
    "lambda_A": (_at(5, _set("lambda_A", 50.0)), "opt.lambda_A is 50.0, was 10.0"),
    "no identity": (_at(5, _set("lambda_identity", 0.0)), "opt.lambda_identity is 0.0, was 0.5"),
    "a filling pool": (_at(2, _set("lambda_B", 5.0)), "opt.lambda_B is 5.0, was 10.0"),
    "criterion": (_at(5, _set("criterionCycle", nn.MSELoss())), "criterionCycle is another (a MSELoss, was a L1Loss)"),
    "labels": (_at(5, lambda model: model.criterionGAN.real_label.fill_(0.9)), "settings of criterionGAN changed"),
    "rates": (_halve_rate, "generators and discriminators have learning rates of their own"),
    "betas": (
        _at(5, lambda model: model.optimizer_G.param_groups[0].update(betas=(0.9, 0.9))),
        "settings of optimizer_G: betas is (0.9, 0.9)",
    ),
    "a frozen layer": (
        _at(5, lambda model: model.netG_A.model[1].requires_grad_(False)),
        "requires_grad of the parameters of netG_A changed",
    ),
    "evaluation": (_at(5, lambda model: model.eval()), "mode (training or evaluation) of netG_A changed"),
    "a network": (_at(5, lambda model: setattr(model, "netD_A", copy.deepcopy(model.netD_A))), "netD_A is another"),
    "moments": (_at(5, lambda model: model.optimizer_G.state.clear()), "an optimizer has lost its moments"),
    "loaded moments": (
        _at(5, lambda model: model.optimizer_G.load_state_dict(model.optimizer_G.state_dict())),
        "state of optimizer_G is another",
    ),
    "a hook": (_at(5, lambda model: model.netG_A.register_forward_hook(_scale)), "hooks of netG_A is 1, was 0"),
    "a method": (_at(5, lambda model: setattr(model, "backward_D_A", model.forward)), "method backward_D_A changed"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_later_hands_over_to_the_checkouts_own_step(tmp_path: Path, pictures: Path, change: str) -> None:
    after, reason = CHANGES[change]
    folder = checkout(tmp_path)
    ours, theirs = (train(folder, pictures, "--norm batch", options, after=after) for options in (Options(), None))
    assert any(line.startswith(STEP) for line in ours[2]), ours[2]
    assert ours[2][-1].startswith(f"step: the checkout's own from here on: {reason}")
    assert ours[2][-1].endswith("; it goes on with our weights and moments and pools")
    assert_same(ours, theirs)


def test_weights_that_fall_with_the_epochs(tmp_path: Path, pictures: Path) -> None:
    """A method outside the step may do what it likes: what it changes is seen."""
    own = "    def update_learning_rate(self):\n        BaseModel.update_learning_rate(self)\n        self.opt.lambda_A *= 0.1\n\n"
    folder = checkout(tmp_path, [(MODEL, SET_INPUT, f"{own}{SET_INPUT}")])
    ours = train(folder, pictures, "", Options())
    assert ours[2][-1].startswith("step: the checkout's own from here on: opt.lambda_A is 1.0, was 10.0; it goes on")
    assert_same(ours, train(folder, pictures, "", None))


def test_pools_that_cannot_take_our_pictures_are_named(tmp_path: Path, pictures: Path) -> None:
    folder = checkout(tmp_path, [("util/image_pool.py", "self.images", "self.held")])
    _, _, said = train(folder, pictures, "", Options(), epochs=1, after=_at(2, _set("lambda_A", 1.0)))
    assert said[-1].endswith("it goes on with our weights and moments, but fake_A_pool and fake_B_pool cannot take our pictures")


def test_a_rate_of_zero_hides_nothing(tmp_path: Path, pictures: Path) -> None:
    """Where nothing moves, all steps are the same: the proof has a rate of its own."""
    folder = checkout(tmp_path, [(MODEL, ADVERSARIAL, f"{ADVERSARIAL} + self.loss_G_A")])
    _, _, said = train(folder, pictures, "--lr 0", Options(), epochs=1)
    assert "it is not the public one: netG_A's weights" in said[-1]


def test_wgangp_keeps_its_step_and_a_network_of_another_shape_its_place(tmp_path: Path, pictures: Path) -> None:
    folder = checkout(tmp_path, [(NETWORKS, "nn.Conv2d(ngf, output_nc, 7), nn.Tanh()", "nn.Conv2d(ngf, output_nc, 7), nn.Hardtanh()")])
    _, _, said = train(folder, pictures, "--gan_mode wgangp", Options(precision="bf16"), epochs=1)
    assert said[1].startswith("ResnetGenerator: kept as it is: its pictures differ from those of ours by ")
    assert said[2:] == ["NLayerDiscriminator: ours, the same function in float64", said[3]]
    assert said[3] == "step: the checkout's own: netG_A is a ResnetGenerator of the checkout (without effect on it: --precision)"
    _, _, said = train(checkout(tmp_path / "other"), pictures, "--gan_mode wgangp", Options(), epochs=1)
    assert said[-1] == "step: the checkout's own: with gan_mode wgangp the official step has no gradient penalty, and ours has one"


def test_dropout_and_derived_networks(tmp_path: Path, pictures: Path) -> None:
    """Dropout draws in another order in our step, so the proof is made without; a class made of theirs is theirs."""
    derived = "\n\nclass Mine(ResnetGenerator):\n    def __init__(self, width):\n        ResnetGenerator.__init__(self, 3, 3, width)\n"
    edits = [
        (MODEL, "parser.set_defaults(no_dropout=True)", "pass"),
        (NETWORKS, "\n\nclass ResnetBlock", f"{derived}\n\nclass ResnetBlock"),
    ]
    folder = checkout(tmp_path, edits)
    model, _, said = train(folder, pictures, "", Options(), epochs=1)
    assert any(line.startswith(STEP) for line in said), said
    assert any(isinstance(module, nn.Dropout) and module.p == 0.5 for module in model.netG_A.modules())
    with importable(folder, Options(), []):
        from models.networks import Mine, ResnetGenerator  # type: ignore[import-not-found]

        assert type(Mine(4)) is Mine
        assert type(ResnetGenerator(3, 3, 4)).__module__ == "fastcyclegan.compat"


def test_the_proof_leaves_no_trace_and_pictures_are_made_on_demand(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastcyclegan.official import patch_model

    def states() -> list[Any]:
        weights = [value.clone() for value in [*G.state_dict().values()]] if G is not None else []
        return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), [w.tolist() for w in weights]]

    G: Any = None
    seen: list[bool] = []

    def watched(model: Any, *args: Any) -> float:
        nonlocal G
        G = model.netG_A
        before = states()
        difference = prove(model, *args)
        seen.append(states() == before)
        return difference

    prove = patch_model.prove
    monkeypatch.setattr(patch_model, "prove", watched)
    model, _, _ = train(checkout(tmp_path), pictures, "--norm batch", Options(), epochs=1)
    assert seen == [True]
    before = states()
    visuals = model.get_current_visuals()
    assert list(visuals) == ["real_A", "fake_B", "rec_A", "idt_B", "real_B", "fake_A", "rec_B", "idt_A"]
    assert states() == before
    assert torch.equal(visuals["rec_A"], model.netG_B(model.netG_A(model.real_A)).detach())
    assert float(model.loss_G) == pytest.approx(sum(loss for name, loss in model.get_current_losses().items() if name[:2] != "D_"))
    # What a fork may save.
    assert model.optimizer_G.state_dict()["state"][0]["exp_avg"].any()
    with pytest.raises(AttributeError, match="no attribute 'fake_C'"):
        _ = model.fake_C


def test_several_gpus_are_not_served() -> None:
    net = nn.DataParallel(nn.Conv2d(3, 3, 1))
    net.device_ids = [0, 1]
    with pytest.raises(NotServedError, match="on 2 GPUs"):
        unwrapped("netG_A", net)


@pytest.mark.gpu
def test_our_step_on_a_gpu(tmp_path: Path, pictures: Path) -> None:
    """The kernels, in fp32: as the checkout until Adam has turned the rounding of gradients near 0 into steps; then bf16 and a graph."""
    folder = checkout(tmp_path)
    given: dict[str, Any] = {"flags": "--lr 0.0002 --gpu_ids 0", "dtype": torch.float32}
    _, ours, said = train(folder, pictures, ours=Options("fp32"), **given)
    assert any(line.startswith("step: ours, on cuda:0 in fp32, networks by triton") for line in said), said
    _, theirs, _ = train(folder, pictures, ours=None, **given)
    for mine, other in zip(ours[:3], theirs[:3], strict=True):
        assert mine == pytest.approx(other, rel=0.01)
    model, ours, said = train(folder, pictures, ours=Options(compile=True), **given)
    assert any("in bf16, compiled, networks by triton" in line for line in said), said
    before = [p.data_ptr() for p in model.netG_A.parameters()]
    model.save_networks("1")
    assert [p.data_ptr() for p in model.netG_A.parameters()] == before
    model.optimize_parameters()
    assert all(np.isfinite(list(losses.values())).all() for losses in ours)
    assert next(model.netG_A.parameters()).is_cuda


def test_the_kernels_compute_a_checkouts_networks(tmp_path: Path, device: str) -> None:
    made = []
    for ours in (Options(impl="triton"), None):
        torch.manual_seed(0)
        with importable(checkout(tmp_path / str(ours is None)), ours, []):
            from models import networks as theirs  # type: ignore[import-not-found]

            net = theirs.define_G(3, 3, 2, "resnet_1blocks", "instance").to(device)
        made.append(net(torch.linspace(-1, 1, 3 * 12 * 12, device=device).sin().view(1, 3, 12, 12)))
        assert ours is None or computed_by(net) == "triton"
    assert relative_error(*made) < 1e-5


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


OURS = ["-m", "fastcyclegan.official"]


def command(*args: object, cwd: Path, word: str) -> tuple[str, list[Any]]:
    """Run Python with ``args``; return what it printed, and what its lines that begin with ``word`` hold."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    line = [sys.executable, *map(str, args)]
    text = subprocess.run(line, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return text, [json.loads(line.removeprefix(word).replace("'", '"')) for line in text.splitlines() if line.startswith(f"{word} ")]


def test_the_command_end_to_end(tmp_path: Path, pictures: Path) -> None:
    """Losses to fp32, the same files, each side's files used by the other, and a checkout that nothing was written into."""
    theirs, ours = checkout(tmp_path / "theirs"), checkout(tmp_path / "ours")
    before = tree(ours)
    often = "--n_epochs 2 --n_epochs_decay 2 --print_freq 1 --display_freq 7 --save_latest_freq 6"
    flags = f"--dataroot {pictures} {SMALL} --lr 0.0002 {often}".split()
    _, alone = command("train.py", *flags, cwd=theirs, word="losses")
    # From elsewhere, so that ./checkpoints is not in the checkout.
    text, together = command(*OURS, "--precision", "fp32", ours / "train.py", *flags, cwd=tmp_path, word="losses")
    assert len(alone) == len(together) == 20
    # 3e-7 for a dozen iterations; then rounding grows, as it does between any two orders of sums.
    for n, (mine, other) in enumerate(zip(together, alone, strict=True)):
        assert mine == pytest.approx(other, rel=1e-5 if n < 10 else 0.01), n
    said = [line.split(":")[1].strip() for line in text.splitlines() if line.startswith("fastcyclegan: ")]
    assert said == ["replaced where it is the same", "ResnetGenerator", "NLayerDiscriminator", said[3], "step"]
    assert said[3].startswith("comparing the step with ours in float64")
    assert text.count("visuals {'real_A': [1, 3, 32, 32], 'fake_B': [1, 3, 32, 32], 'rec_A': [1, 3, 32, 32], 'idt_B'") == 2
    folders = [where / "checkpoints" for where in (tmp_path, theirs)]
    mine_saved, other_saved = ({path.name: torch.load(path) for path in sorted(folder.rglob("*.pth"))} for folder in folders)
    assert {name: [*weights] for name, weights in mine_saved.items()} == {name: [*weights] for name, weights in other_saved.items()}
    assert all(value.is_contiguous() for weights in mine_saved.values() for value in weights.values())
    for folder in folders:
        use = f"--dataroot {pictures} --ngf 4 --netG resnet_1blocks --model test --no_dropout --checkpoints_dir {folder}".split()
        text, mine = command(*OURS, ours / "test.py", *use, cwd=tmp_path, word="sums")
        _, other = command(theirs / "test.py", *use, cwd=tmp_path, word="sums")
        assert "ResnetGenerator: ours" in text
        assert len(mine) == 2
        assert [pytest.approx(row, abs=0.02) for row in other] == mine
    assert tree(ours) == before


def test_training_goes_on_from_the_checkouts_files(tmp_path: Path, pictures: Path) -> None:
    folder = checkout(tmp_path)
    model, _, _ = train(folder, pictures, "", None, epochs=1)
    model.save_networks("latest")
    ours, theirs = (train(folder, pictures, "--continue_train", options, epochs=1) for options in (Options(), None))
    assert any(line.startswith(STEP) for line in ours[2])
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train.py"], "train.py: no such file; what is needed is the train.py or test.py of an official checkout"),
        (["{here}/conftest.py"], "is no script of an official checkout: {here}/models/networks.py does not exist"),
        (["{other}/train.py"], "is no script of an official checkout: {other}/models/networks.py has no define_G"),
        (["--batch", "{good}/train.py"], "unrecognized arguments: --batch"),
        (["--precision", "fp16", "{good}/train.py"], "argument --precision: invalid choice: 'fp16'"),
        ([], "the following arguments are required: script"),
    ],
)
def test_what_cannot_be_served_is_refused_before_the_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    good, other = checkout(tmp_path), checkout(tmp_path / "other", [(NETWORKS, "def define_G", "def make_G")])
    places = {"here": Path(__file__).parents[1], "good": good, "other": other}
    assert official.main([arg.format(**places) for arg in args]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message.format(**places) in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "script", "message"),
    [
        ("--compile", "test.py", "--compile belongs to the training step of --model cycle_gan; here the networks alone are replaced"),
        ("--impl triton", "train.py", "impl='triton' needs an NVIDIA GPU, got cpu"),
    ],
)
def test_what_the_model_cannot_do_is_refused_before_it_runs(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, flags: str, script: str, message: str
) -> None:
    line = [sys.executable, "-m", "fastcyclegan.official", *flags.split(), str(checkout(tmp_path) / script), "--dataroot", str(pictures)]
    environment = {**{name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*line, *SMALL.split()[:2], *SMALL.split()[4:6]], cwd=tmp_path, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) == 1


def test_errors_of_the_script_are_its_own(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "fastcyclegan.official", str(checkout(tmp_path) / "train.py"), "--dataroot", "x", "--pool", "3", "--what"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "train.py: error: unrecognized arguments: --what" in done.stderr
