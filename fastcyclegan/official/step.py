"""Run our training iteration on the networks of an official CycleGANModel.

Reads the settings of the step from the model, draws the pools' random numbers in the same way as the official
code, and returns the losses under their official names.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastcyclegan.config import FIXED_SIZE, LossConfig, OptimConfig
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.sample_plan import Sample, View
from fastcyclegan.engine import Engine
from fastcyclegan.errors import UserError
from fastcyclegan.nn.networks import is_ours
from fastcyclegan.recipes.cyclegan import CycleGANRecipe
from fastcyclegan.recipes.image_pool import ImagePool

# The official discriminators are named after the generator whose images they judge, ours after the domain.
NETS = {"netG_A": "G_AB", "netG_B": "G_BA", "netD_A": "D_B", "netD_B": "D_A"}
LOSSES = {
    **{"G_AB": "G_A", "G_BA": "G_B", "cycle_A": "cycle_A", "cycle_B": "cycle_B"},
    **{"idt_B": "idt_A", "idt_A": "idt_B", "D_B": "D_A", "D_A": "D_B"},
}
_ADAM: dict[str, Any] = {"weight_decay": 0, "amsgrad": False, "eps": 1e-8, "maximize": False}


class NotReplaceableError(Exception):
    """Raised if our step cannot replace a model's. The message is the reason, as part of a sentence."""


@dataclass(frozen=True)
class Settings:
    """Everything that a model's step is built from.

    ``nets`` are the unwrapped networks by their official names. ``fixed_sizes`` is True if all images have
    the same size.
    """

    nets: dict[str, nn.Module]
    loss: LossConfig
    optim: OptimConfig
    device: torch.device
    fixed_sizes: bool


def unwrap(name: str, net: Any) -> nn.Module:
    """Return network ``name`` without its DataParallel wrapper.

    Raises NotReplaceableError if the wrapper spans several devices, or if the network is not one of ours.
    """
    if isinstance(net, nn.parallel.DistributedDataParallel):
        raise NotReplaceableError("training runs in several processes (DistributedDataParallel)")
    if isinstance(net, nn.DataParallel):
        count = len(net.device_ids)
        if count > 1:
            gpus = f"{count} GPUs (DataParallel)"
            raise NotReplaceableError(f"training runs on {gpus}; fastcyclegan's step runs on one GPU only")
        net = net.module
    if not isinstance(net, nn.Module) or not is_ours(net):
        raise NotReplaceableError(f"{name} is the checkout's own {type(net).__name__}")
    return net


def read_settings(model: Any) -> Settings:
    """Return the settings of the step of ``model``.

    Raises NotReplaceableError for settings that our step does not support.
    """
    required = (*NETS, "opt", "optimizer_G", "optimizer_D", "fake_A_pool", "fake_B_pool")
    missing = [name for name in required if name not in vars(model)]
    if missing:
        raise NotReplaceableError(f"the model has no {', '.join(missing)}")
    nets = {name: unwrap(name, getattr(model, name)) for name in NETS}
    devices: set[torch.device] = set()
    for net in nets.values():
        devices.update(p.device for p in net.parameters())
    if len(devices) > 1:
        raise NotReplaceableError(f"its networks are on {len(devices)} devices")
    known = {*LOSSES.values(), "G"}
    unknown = [name for name in getattr(model, "loss_names", []) if name not in known]
    if unknown:
        raise NotReplaceableError(
            f"it reports losses that the public step does not have: {', '.join(unknown)}"
        )
    optim = _optim(model, nets)
    fixed = getattr(model.opt, "preprocess", getattr(model.opt, "resize_or_crop", "")) in FIXED_SIZE
    return Settings(nets, _loss(model), optim, devices.pop(), fixed)


def _loss(model: Any) -> LossConfig:
    opt = model.opt
    # Before gan_mode there was no_lsgan, whose alternative to lsgan is not one of our losses.
    mode: Any = None
    if not getattr(opt, "no_lsgan", True):
        mode = "lsgan"
    mode = getattr(opt, "gan_mode", mode)
    if mode == "wgangp":
        raise NotReplaceableError(
            "with gan_mode wgangp, the official step has no gradient penalty, but fastcyclegan's has one"
        )
    pools = {getattr(pool, "pool_size", None) for pool in (model.fake_A_pool, model.fake_B_pool)}
    if pools != {getattr(opt, "pool_size", None)} or getattr(model.fake_A_pool, "num_imgs", 0) > 0:
        raise NotReplaceableError("the model's replay pools are not those of the public code")
    try:
        return LossConfig(mode, opt.lambda_A, opt.lambda_B, opt.lambda_identity, pool_size=opt.pool_size)
    except (UserError, AttributeError) as error:
        raise NotReplaceableError(str(error)) from None


def _optim(model: Any, nets: Mapping[str, nn.Module]) -> OptimConfig:
    betas = set()
    for name, pair in (("optimizer_G", ("netG_A", "netG_B")), ("optimizer_D", ("netD_A", "netD_B"))):
        optimizer = getattr(model, name)
        if type(optimizer) is not torch.optim.Adam:
            raise NotReplaceableError(f"{name} is {type(optimizer).__name__}, not Adam")
        if len(optimizer.param_groups) != 1:
            raise NotReplaceableError(f"{name} does not have exactly one parameter group")
        (group,) = optimizer.param_groups
        if any(group.get(key, value) != value for key, value in _ADAM.items()):
            raise NotReplaceableError(f"{name} uses Adam settings other than those of the public code")
        if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
            raise NotReplaceableError(f"{name} has hooks")
        if optimizer.state:
            raise NotReplaceableError(f"{name} has already taken steps")
        weights = [id(p) for p in (*nets[pair[0]].parameters(), *nets[pair[1]].parameters())]
        if [id(p) for p in group["params"]] != weights:
            raise NotReplaceableError(f"{name} does not train exactly the parameters of {' and '.join(pair)}")
        betas.add(tuple(group["betas"]))
    lr = learning_rate(model)
    beta1, beta2 = betas.pop()
    if betas or beta2 != 0.999:
        raise NotReplaceableError("the betas of its optimizers are not those of the public code")
    return OptimConfig(lr=lr, beta1=beta1)


def learning_rate(model: Any) -> float:
    """Return the learning rate that the checkout's schedulers have set.

    Raises NotReplaceableError if generators and discriminators have different ones.
    """
    rates = {float(optimizer.param_groups[0]["lr"]) for optimizer in (model.optimizer_G, model.optimizer_D)}
    if len(rates) > 1:
        raise NotReplaceableError("generators and discriminators have different learning rates")
    return rates.pop()


def pool_draws(pool: ImagePool, count: int) -> Iterator[tuple[float, float]]:
    """Yield the two numbers that tell ``pool`` what to do with each of the next ``count`` images.

    They are derived from Python's ``random``, with exactly the same draws as in the official pool.
    """
    for filled in range(pool.filled, pool.filled + count):
        if filled < pool.capacity or not pool.capacity or random.uniform(0, 1) <= 0.5:
            yield 1.0, 0.0
        else:
            yield 0.0, (random.randint(0, pool.capacity - 1) + 0.5) / pool.capacity


class Step:
    """Our training iteration on the four networks of ``settings``.

    The other arguments are passed to ``Engine``.
    """

    def __init__(
        self,
        settings: Settings,
        precision: str = "fp32",
        compiled: bool = False,
        log: Callable[[str], None] = lambda text: None,
    ):
        nets = {NETS[name]: net for name, net in settings.nets.items()}
        self.recipe = CycleGANRecipe(settings.loss)
        self.engine = Engine(
            self.recipe,
            nets,
            settings.optim,
            settings.device,
            precision,
            compiled,
            log=log,
            fixed_sizes=settings.fixed_sizes,
        )
        self.losses: dict[str, Tensor] = {}

    def __call__(self, a: Tensor, b: Tensor, lr: float) -> dict[str, Tensor]:
        """Run one iteration on images a, b [N, C, H, W].

        Returns the losses under their official names, as scalars on the device.
        """
        pools, view = self.recipe.pools, View(0.0, 0.0, False)
        # The official step queries the pool of fake B first, for all its images.
        drawn_B = list(pool_draws(pools["B"], a.shape[0]))
        drawn_A = list(pool_draws(pools["A"], b.shape[0]))
        samples = []
        for draw_A, draw_B in zip(drawn_A, drawn_B, strict=True):
            samples.append(Sample(0, 0, view, view, draw_A, draw_B, 0.0, 0.0))
        a = a.contiguous(memory_format=torch.channels_last)
        b = b.contiguous(memory_format=torch.channels_last)
        losses = self.engine.step(Batch.of(a, b, [""] * len(samples), [""] * len(samples), samples), lr)
        self.losses = {}
        for name, loss in zip(self.recipe.loss_names, losses.unbind(), strict=True):
            self.losses[LOSSES[name]] = loss
        return self.losses

    def generator_loss(self) -> Tensor:
        """Return the total generator loss of the last iteration."""
        losses = [loss for name, loss in self.losses.items() if not name.startswith("D_")]
        return torch.stack(losses).sum()

    @torch.no_grad()
    def images(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        """Run the generators on a and b, and return the generated images under their official names.

        Uses the current weights. Running statistics and random states are left unchanged.
        """
        engine = self.engine
        G_A, G_B = engine.nets["G_AB"], engine.nets["G_BA"]
        saved = [(buffer, buffer.clone()) for buffer in (*G_A.buffers(), *G_B.buffers())]
        devices = []
        if engine.device.type == "cuda":
            devices.append(engine.device)
        autocast = torch.autocast(
            engine.device.type, torch.bfloat16, enabled=engine.choices.precision == "bf16"
        )
        with torch.random.fork_rng(devices), autocast:
            fake_B, fake_A = G_A(a), G_B(b)
            images = {"fake_B": fake_B, "rec_A": G_B(fake_B), "fake_A": fake_A, "rec_B": G_A(fake_A)}
            if self.recipe.has_identity:
                images |= {"idt_A": G_A(b), "idt_B": G_B(a)}
        for buffer, value in saved:
            buffer.copy_(value)
        return images
