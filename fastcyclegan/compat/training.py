"""The official parts of a training loop: losses, the image pool and learning rate schedules."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from fastcyclegan import reference
from fastcyclegan.nn.networks import twice_differentiable


class GANLoss(nn.Module):
    """The official ``GANLoss``: a scalar loss of logits that should be classified as real or as fake.

    ``gan_mode`` is lsgan, vanilla or wgangp (without the gradient penalty).
    """

    real_label: Tensor
    fake_label: Tensor

    def __init__(self, gan_mode: str, target_real_label: float = 1.0, target_fake_label: float = 0.0) -> None:
        super().__init__()
        if gan_mode not in reference.GAN_MODES:
            raise NotImplementedError(
                f"gan_mode must be one of {', '.join(reference.GAN_MODES)}, got {gan_mode!r}"
            )
        self.register_buffer("real_label", torch.tensor(target_real_label))
        self.register_buffer("fake_label", torch.tensor(target_fake_label))
        self.gan_mode = gan_mode

    def get_target_tensor(self, prediction: Tensor, target_is_real: bool) -> Tensor:
        """Return the target label, expanded to the shape of ``prediction``."""
        label = self.real_label if target_is_real else self.fake_label
        return label.expand_as(prediction)

    def forward(self, prediction: Tensor, target_is_real: bool) -> Tensor:
        if self.gan_mode == "wgangp":
            mean = prediction.mean()
            return -mean if target_is_real else mean
        target = self.get_target_tensor(prediction, target_is_real)
        if self.gan_mode == "lsgan":
            return F.mse_loss(prediction, target)
        return F.binary_cross_entropy_with_logits(prediction, target)


class ImagePool:
    """The official ``ImagePool``: a history of up to ``pool_size`` generated images.

    As in the official code, random numbers come from Python's ``random``.
    """

    def __init__(self, pool_size: int) -> None:
        self.pool_size = pool_size
        self._pool = reference.ReplayPool(pool_size)

    @property
    def images(self) -> list[Tensor]:
        """The stored images, [1, C, H, W] each."""
        return [image[None] for image in self._pool.images]

    @property
    def num_imgs(self) -> int:
        return len(self._pool.images)

    def query(self, images: Tensor) -> Tensor:
        """Return the images to show to the discriminator instead of ``images`` [N, C, H, W], detached.

        For each new image, either that image is returned, or a stored one that it replaces in the pool.
        """
        if self.pool_size == 0:
            return images
        shown = []
        for image in images:
            shown.append(self._pool.query(image[None], [self._draw()]))
        return torch.cat(shown)

    def _draw(self) -> tuple[float, float]:
        """Draw random numbers as the official code does and return them as (swap, place).

        Nothing is drawn while the pool is filling.
        """
        if self.num_imgs < self.pool_size or random.uniform(0, 1) <= 0.5:
            return 1.0, 0.0
        return 0.0, (random.randint(0, self.pool_size - 1) + 0.5) / self.pool_size


def get_scheduler(optimizer: Optimizer, opt: Any) -> lr_scheduler.LRScheduler:
    """Return the official learning rate schedule ``opt.lr_policy`` for ``optimizer``, as one of torch's.

    ``opt`` has the official options as attributes. linear reads epoch_count, n_epochs and n_epochs_decay
    (formerly niter and niter_decay), and so does lambda, the rule of 2017-18, which is one epoch ahead; step
    reads lr_decay_iters, cosine n_epochs, and plateau nothing. Raises NotImplementedError for any other
    policy, where the official function returns the error.
    """
    if opt.lr_policy in ("linear", "lambda"):
        ahead = 1 if opt.lr_policy == "lambda" else 0

        def factor(epoch: int) -> float:
            late = max(0, epoch + ahead + opt.epoch_count - _epochs(opt))
            return 1.0 - late / float(_epochs(opt, "_decay") + 1)

        return lr_scheduler.LambdaLR(optimizer, factor)
    if opt.lr_policy == "step":
        return lr_scheduler.StepLR(optimizer, opt.lr_decay_iters, gamma=0.1)
    if opt.lr_policy == "plateau":
        return lr_scheduler.ReduceLROnPlateau(optimizer, "min", factor=0.2, threshold=0.01, patience=5)
    if opt.lr_policy == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=_epochs(opt), eta_min=0)
    raise NotImplementedError(
        f"lr_policy must be one of linear, step, plateau, cosine, got {opt.lr_policy!r}"
    )


def _epochs(opt: Any, suffix: str = "") -> int:
    """Return a number of epochs in ``opt`` by its official name, or by the one that it had before 2020."""
    old = f"niter{suffix}"
    return getattr(
        opt, old if hasattr(opt, old) and not hasattr(opt, f"n_epochs{suffix}") else f"n_epochs{suffix}"
    )


def cal_gradient_penalty(
    netD: Callable[[Tensor], Tensor],
    real_data: Tensor,
    fake_data: Tensor,
    device: torch.device | str,
    type: Literal["mixed", "real", "fake"] = "mixed",
    constant: float = 1.0,
    lambda_gp: float = 10.0,
) -> tuple[Tensor | float, Tensor | None]:
    """Return the official gradient penalty of WGAN-GP (Gulrajani et al. 2017, eq. 3), and its gradients.

    This is lambda_gp * E[(|grad D(x)| - constant)^2], where x [N, C, H, W] are the real or the fake images
    or, for "mixed", a random point between the two of each pair, drawn on ``device``. The gradients of D are
    [N, C * H * W]. With lambda_gp 0, the result is (0.0, None). Raises NotImplementedError for another type.
    """
    if lambda_gp <= 0:
        return 0.0, None
    if type not in ("mixed", "real", "fake"):
        raise NotImplementedError(f"type must be one of mixed, real, fake, got {type!r}")
    if type == "mixed":
        share = torch.rand(len(real_data), 1, device=device).view(-1, *[1] * (real_data.dim() - 1))
        x = share * real_data + (1 - share) * fake_data
    else:
        x = {"real": real_data, "fake": fake_data}[type]
    if not x.requires_grad:
        x = x.detach().requires_grad_()  # a tensor of its own, so that the caller's is not changed
    with twice_differentiable(netD):
        logits = netD(x)
    (grad,) = torch.autograd.grad(logits, x, torch.ones_like(logits), create_graph=True)
    grad = grad.flatten(1)
    # A norm has no gradient at 0.
    length = (grad + 1e-16).norm(2, dim=1)
    return lambda_gp * (length - constant).square().mean(), grad
