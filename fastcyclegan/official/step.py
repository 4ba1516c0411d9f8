"""Our iteration with the official model's names: what is read off the model, what the pools' chance becomes,
what the losses are called.
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


class NotServedError(Exception):
    """A model whose step ours does not replace. The message is the reason, in the middle of a sentence."""


@dataclass(frozen=True)
class Settings:
    """What a model's step is made of: its networks, unwrapped, by the official names, its losses, its Adam,
    and the images' sizes.
    """

    nets: dict[str, nn.Module]
    loss: LossConfig
    optim: OptimConfig
    device: torch.device
    fixed_sizes: bool


def unwrapped(name: str, net: Any) -> nn.Module:
    """Return network ``name`` without a DataParallel of one device. Raises NotServedError for several, and
    for what is not ours.
    """
    if isinstance(net, nn.parallel.DistributedDataParallel):
        raise NotServedError("training runs in several processes (DistributedDataParallel)")
    if isinstance(net, nn.DataParallel):
        count = len(net.device_ids)
        if count > 1:
            gpus = f"{count} GPUs (DataParallel)"
            raise NotServedError(f"training runs on {gpus}; with one of them it would be ours")
        net = net.module
    if not isinstance(net, nn.Module) or not is_ours(net):
        raise NotServedError(f"{name} is a {type(net).__name__} of the checkout")
    return net


def settings(model: Any) -> Settings:
    """Read off ``model`` what its step is made of. Raises NotServedError for what our step does not do."""
    needed = (*NETS, "opt", "optimizer_G", "optimizer_D", "fake_A_pool", "fake_B_pool")
    lacking = [name for name in needed if name not in vars(model)]
    if lacking:
        raise NotServedError(f"the model has no {', '.join(lacking)}")
    nets = {name: unwrapped(name, getattr(model, name)) for name in NETS}
    devices: set[torch.device] = set()
    for net in nets.values():
        devices.update(p.device for p in net.parameters())
    if len(devices) > 1:
        raise NotServedError(f"its networks are on {len(devices)} devices")
    known = {*LOSSES.values(), "G"}
    unknown = [name for name in getattr(model, "loss_names", []) if name not in known]
    if unknown:
        raise NotServedError(f"it reports a loss that the public step does not have: {', '.join(unknown)}")
    optim = _optim(model, nets)
    fixed = getattr(model.opt, "preprocess", getattr(model.opt, "resize_or_crop", "")) in FIXED_SIZE
    return Settings(nets, _loss(model), optim, devices.pop(), fixed)


def _loss(model: Any) -> LossConfig:
    opt = model.opt
    # Before gan_mode there was no_lsgan, whose other loss was another.
    mode: Any = None
    if not getattr(opt, "no_lsgan", True):
        mode = "lsgan"
    mode = getattr(opt, "gan_mode", mode)
    if mode == "wgangp":
        raise NotServedError(
            "with gan_mode wgangp the official step has no gradient penalty, and ours has one"
        )
    pools = {getattr(pool, "pool_size", None) for pool in (model.fake_A_pool, model.fake_B_pool)}
    if pools != {getattr(opt, "pool_size", None)} or getattr(model.fake_A_pool, "num_imgs", 0) > 0:
        raise NotServedError("its replay pools are not those of the public code")
    try:
        return LossConfig(mode, opt.lambda_A, opt.lambda_B, opt.lambda_identity, pool_size=opt.pool_size)
    except (UserError, AttributeError) as error:
        raise NotServedError(str(error)) from None


def _optim(model: Any, nets: Mapping[str, nn.Module]) -> OptimConfig:
    betas = set()
    for name, pair in (("optimizer_G", ("netG_A", "netG_B")), ("optimizer_D", ("netD_A", "netD_B"))):
        optimizer = getattr(model, name)
        if type(optimizer) is not torch.optim.Adam:
            raise NotServedError(f"{name} is {type(optimizer).__name__}, not Adam")
        if len(optimizer.param_groups) != 1:
            raise NotServedError(f"{name} has settings of its own")
        (group,) = optimizer.param_groups
        if any(group.get(key, value) != value for key, value in _ADAM.items()):
            raise NotServedError(f"{name} has settings of its own")
        if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
            raise NotServedError(f"{name} has hooks")
        if optimizer.state:
            raise NotServedError(f"{name} has made steps already")
        weights = [id(p) for p in (*nets[pair[0]].parameters(), *nets[pair[1]].parameters())]
        if [id(p) for p in group["params"]] != weights:
            raise NotServedError(f"{name} does not train {' and '.join(pair)} alone")
        betas.add(tuple(group["betas"]))
    lr = learning_rate(model)
    beta1, beta2 = betas.pop()
    if betas or beta2 != 0.999:
        raise NotServedError("its optimizers have betas of their own")
    return OptimConfig(lr=lr, beta1=beta1)


def learning_rate(model: Any) -> float:
    """Return the rate that the checkout's schedulers have set. Raises NotServedError for one that is not the
    same for all networks.
    """
    rates = {float(optimizer.param_groups[0]["lr"]) for optimizer in (model.optimizer_G, model.optimizer_D)}
    if len(rates) > 1:
        raise NotServedError("generators and discriminators have learning rates of their own")
    return rates.pop()


def draws(pool: ImagePool, count: int) -> Iterator[tuple[float, float]]:
    """Yield what ``pool`` is to do with the next ``count`` images, drawn from Python's ``random`` as the
    official pool draws it.
    """
    for filled in range(pool.filled, pool.filled + count):
        if filled < pool.capacity or not pool.capacity or random.uniform(0, 1) <= 0.5:
            yield 1.0, 0.0
        else:
            yield 0.0, (random.randint(0, pool.capacity - 1) + 0.5) / pool.capacity


class Step:
    """Our iteration over the four networks of ``given``. Arguments are those of ``Engine``."""

    def __init__(
        self,
        given: Settings,
        precision: str = "fp32",
        compiled: bool = False,
        log: Callable[[str], None] = lambda text: None,
    ):
        nets = {NETS[name]: net for name, net in given.nets.items()}
        self.recipe = CycleGANRecipe(given.loss)
        self.engine = Engine(
            self.recipe,
            nets,
            given.optim,
            given.device,
            precision,
            compiled,
            log=log,
            fixed_sizes=given.fixed_sizes,
        )
        self.losses: dict[str, Tensor] = {}

    def __call__(self, a: Tensor, b: Tensor, lr: float) -> dict[str, Tensor]:
        """Run one iteration on images a, b [N, C, H, W] and return its losses, scalars on the device, by
        their official names.
        """
        pools, view = self.recipe.pools, View(0.0, 0.0, False)
        # The official step asks the pool of fake B for all its images first.
        drawn_B = list(draws(pools["B"], a.shape[0]))
        drawn_A = list(draws(pools["A"], b.shape[0]))
        samples = []
        for draw_A, draw_B in zip(drawn_A, drawn_B, strict=True):
            samples.append(Sample(0, 0, view, view, draw_A, draw_B, 0.0, 0.0))
        a = a.contiguous(memory_format=torch.channels_last)
        b = b.contiguous(memory_format=torch.channels_last)
        losses = self.engine.step(Batch(a, b, [""] * len(samples), [""] * len(samples), samples), lr)
        self.losses = {}
        for name, loss in zip(self.recipe.loss_names, losses.unbind(), strict=True):
            self.losses[LOSSES[name]] = loss
        return self.losses

    def generator_loss(self) -> Tensor:
        """Return the sum that the generators minimised last."""
        losses = [loss for name, loss in self.losses.items() if not name.startswith("D_")]
        return torch.stack(losses).sum()

    @torch.no_grad()
    def images(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        """Return what the generators make of a and b now, by the official names. Running statistics and
        random states stay as they are.
        """
        engine = self.engine
        G_A, G_B = engine.nets["G_AB"], engine.nets["G_BA"]
        kept = [(buffer, buffer.clone()) for buffer in (*G_A.buffers(), *G_B.buffers())]
        devices = []
        if engine.device.type == "cuda":
            devices.append(engine.device)
        autocast = torch.autocast(
            engine.device.type, torch.bfloat16, enabled=engine.choices.precision == "bf16"
        )
        with torch.random.fork_rng(devices), autocast:
            fake_B, fake_A = G_A(a), G_B(b)
            found = {"fake_B": fake_B, "rec_A": G_B(fake_B), "fake_A": fake_A, "rec_B": G_A(fake_A)}
            if self.recipe.has_identity:
                found |= {"idt_A": G_A(b), "idt_B": G_B(a)}
        for buffer, value in kept:
            buffer.copy_(value)
        return found
