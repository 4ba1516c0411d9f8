"""Run one iteration of CycleGAN or pix2pix exactly as the official code does: the baseline of every speed-up.

The benches call this the official training step, or the official order. This file is frozen on purpose. Each
image passes through each network separately, in NCHW, with torch's defaults (TF32 convolutions on GPUs that
have them, and cudnn.benchmark on, as the official training script sets it). There are two unfused Adam
optimizers, and for CycleGAN a pool that is a Python list and draws its own random numbers. The names are the
official ones: netG_A translates domain A to domain B, and netD_A is the discriminator for images of domain B.
Only the networks are not official: the caller passes them in, and they are the plain reference modules. Nor
are two options that are off unless the caller asks for them: ``diffaugment``, with which CycleGAN's
discriminators are shown images that the plain reference has augmented one by one, and ``lambda_gp``, which
adds the plain reference's gradient penalty to the losses of pix2pix's discriminator. Do not make this file
faster.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from fastcyclegan.reference import augment, gradient_penalty


class RandomSource(Protocol):
    """The part of Python's ``random`` that the pool uses.

    Tests pass in an object that returns predetermined numbers instead.
    """

    def uniform(self, a: float, b: float) -> float: ...

    def randint(self, a: int, b: int) -> int: ...


class ImagePool:
    def __init__(self, pool_size: int, random_source: RandomSource) -> None:
        self.pool_size = pool_size
        self.random_source = random_source
        self.num_imgs = 0
        self.images: list[Tensor] = []

    def query(self, images: Tensor) -> Tensor:
        if self.pool_size == 0:
            return images
        return_images = []
        for image in images:
            image = torch.unsqueeze(image.data, 0)
            if self.num_imgs < self.pool_size:
                self.num_imgs = self.num_imgs + 1
                self.images.append(image)
                return_images.append(image)
            else:
                p = self.random_source.uniform(0, 1)
                if p > 0.5:
                    random_id = self.random_source.randint(0, self.pool_size - 1)
                    tmp = self.images[random_id].clone()
                    self.images[random_id] = image
                    return_images.append(tmp)
                else:
                    return_images.append(image)
        return torch.cat(return_images, 0)


class GANLoss(nn.Module):
    real_label: Tensor
    fake_label: Tensor

    def __init__(self, gan_mode: str) -> None:
        super().__init__()
        self.register_buffer("real_label", torch.tensor(1.0))
        self.register_buffer("fake_label", torch.tensor(0.0))
        self.gan_mode = gan_mode
        self.loss: nn.Module | None = {
            "lsgan": nn.MSELoss(),
            "vanilla": nn.BCEWithLogitsLoss(),
            "wgangp": None,
        }[gan_mode]

    def forward(self, prediction: Tensor, target_is_real: bool) -> Tensor:
        if self.loss is None:
            return -prediction.mean() if target_is_real else prediction.mean()
        label = self.real_label if target_is_real else self.fake_label
        return self.loss(prediction, label.to(prediction.dtype).expand_as(prediction))


class OfficialCycleGAN:
    """The official model's ``set_input`` and ``optimize_parameters``, for four given networks."""

    def __init__(
        self,
        netG_A: nn.Module,
        netG_B: nn.Module,
        netD_A: nn.Module,
        netD_B: nn.Module,
        *,
        gan_mode: str = "lsgan",
        lambda_A: float = 10.0,
        lambda_B: float = 10.0,
        lambda_identity: float = 0.5,
        pool_size: int = 50,
        lr: float = 2e-4,
        beta1: float = 0.5,
        random_A: RandomSource | None = None,
        random_B: RandomSource | None = None,
        diffaugment: Sequence[str] = (),
    ) -> None:
        torch.backends.cudnn.benchmark = True
        self.netG_A, self.netG_B, self.netD_A, self.netD_B = netG_A, netG_B, netD_A, netD_B
        self.lambda_A, self.lambda_B, self.lambda_idt = lambda_A, lambda_B, lambda_identity
        self.diffaugment = diffaugment
        default = random.Random(0)
        self.fake_A_pool = ImagePool(pool_size, default if random_A is None else random_A)
        self.fake_B_pool = ImagePool(pool_size, default if random_B is None else random_B)
        self.criterionGAN = GANLoss(gan_mode).to(next(netG_A.parameters()).device)
        self.criterionCycle = nn.L1Loss()
        self.criterionIdt = nn.L1Loss()
        self.optimizer_G = torch.optim.Adam(
            itertools.chain(netG_A.parameters(), netG_B.parameters()), lr=lr, betas=(beta1, 0.999)
        )
        self.optimizer_D = torch.optim.Adam(
            itertools.chain(netD_A.parameters(), netD_B.parameters()), lr=lr, betas=(beta1, 0.999)
        )

    def set_input(self, A: Tensor, B: Tensor, numbers: Mapping[str, Tensor] | None = None) -> None:
        self.real_A, self.real_B = A, B
        self.numbers = numbers

    def shown(self, name: str, images: Tensor) -> Tensor:
        if not self.diffaugment:
            return images
        assert self.numbers is not None
        return augment(images, self.diffaugment, self.numbers[name])

    def set_requires_grad(self, nets: list[nn.Module], requires_grad: bool) -> None:
        for net in nets:
            for param in net.parameters():
                param.requires_grad = requires_grad

    def forward(self) -> None:
        self.fake_B = self.netG_A(self.real_A)
        self.rec_A = self.netG_B(self.fake_B)
        self.fake_A = self.netG_B(self.real_B)
        self.rec_B = self.netG_A(self.fake_A)

    def backward_D_basic(self, netD: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        loss_D_real = self.criterionGAN(netD(real), True)
        loss_D_fake = self.criterionGAN(netD(fake.detach()), False)
        loss_D = (loss_D_real + loss_D_fake) * 0.5
        loss_D.backward()
        return loss_D

    def backward_G(self) -> None:
        self.loss_idt_A: Tensor | float = 0.0
        self.loss_idt_B: Tensor | float = 0.0
        if self.lambda_idt > 0:
            self.idt_A = self.netG_A(self.real_B)
            self.loss_idt_A = self.criterionIdt(self.idt_A, self.real_B) * self.lambda_B * self.lambda_idt
            self.idt_B = self.netG_B(self.real_A)
            self.loss_idt_B = self.criterionIdt(self.idt_B, self.real_A) * self.lambda_A * self.lambda_idt
        self.loss_G_A = self.criterionGAN(self.netD_A(self.shown("fake_B", self.fake_B)), True)
        self.loss_G_B = self.criterionGAN(self.netD_B(self.shown("fake_A", self.fake_A)), True)
        self.loss_cycle_A = self.criterionCycle(self.rec_A, self.real_A) * self.lambda_A
        self.loss_cycle_B = self.criterionCycle(self.rec_B, self.real_B) * self.lambda_B
        self.loss_G = (
            self.loss_G_A
            + self.loss_G_B
            + self.loss_cycle_A
            + self.loss_cycle_B
            + self.loss_idt_A
            + self.loss_idt_B
        )
        self.loss_G.backward()

    def optimize_parameters(self) -> None:
        self.forward()
        self.set_requires_grad([self.netD_A, self.netD_B], False)
        self.optimizer_G.zero_grad()
        self.backward_G()
        self.optimizer_G.step()
        self.set_requires_grad([self.netD_A, self.netD_B], True)
        self.optimizer_D.zero_grad()
        pooled_B = self.shown("pooled_B", self.fake_B_pool.query(self.fake_B))
        self.loss_D_A = self.backward_D_basic(self.netD_A, self.shown("real_B", self.real_B), pooled_B)
        pooled_A = self.shown("pooled_A", self.fake_A_pool.query(self.fake_A))
        self.loss_D_B = self.backward_D_basic(self.netD_B, self.shown("real_A", self.real_A), pooled_A)
        self.optimizer_D.step()

    def losses(self) -> dict[str, Tensor | float]:
        """Return the losses of the last iteration under fastcyclegan's names."""
        return {
            "G_AB": self.loss_G_A,
            "G_BA": self.loss_G_B,
            "cycle_A": self.loss_cycle_A,
            "cycle_B": self.loss_cycle_B,
            "idt_B": self.loss_idt_A,
            "idt_A": self.loss_idt_B,
            "D_B": self.loss_D_A,
            "D_A": self.loss_D_B,
        }


class OfficialPix2Pix:
    """The official model's ``set_input`` and ``optimize_parameters``, for two given networks.

    netG translates ``A`` to ``B``, and netD judges an image of A and one of B, side by side in the channels.
    """

    def __init__(
        self,
        netG: nn.Module,
        netD: nn.Module,
        *,
        gan_mode: str = "vanilla",
        lambda_L1: float = 100.0,
        lr: float = 2e-4,
        beta1: float = 0.5,
        lambda_gp: float = 0.0,
    ) -> None:
        torch.backends.cudnn.benchmark = True
        self.netG, self.netD = netG, netD
        self.lambda_L1, self.lambda_gp = lambda_L1, lambda_gp
        self.criterionGAN = GANLoss(gan_mode).to(next(netG.parameters()).device)
        self.criterionL1 = nn.L1Loss()
        self.optimizer_G = torch.optim.Adam(netG.parameters(), lr=lr, betas=(beta1, 0.999))
        self.optimizer_D = torch.optim.Adam(netD.parameters(), lr=lr, betas=(beta1, 0.999))

    def set_input(self, A: Tensor, B: Tensor, mix: Tensor | None = None) -> None:
        self.real_A, self.real_B = A, B
        self.mix = mix

    def set_requires_grad(self, net: nn.Module, requires_grad: bool) -> None:
        for param in net.parameters():
            param.requires_grad = requires_grad

    def forward(self) -> None:
        self.fake_B = self.netG(self.real_A)

    def penalty(self, real_AB: Tensor, fake_AB: Tensor) -> Tensor | float:
        if not self.lambda_gp:
            return 0.0
        assert self.mix is not None
        return gradient_penalty(self.netD, real_AB, fake_AB, self.mix, self.lambda_gp)

    def backward_D(self) -> None:
        fake_AB = torch.cat((self.real_A, self.fake_B), 1)
        pred_fake = self.netD(fake_AB.detach())
        self.loss_D_fake = self.criterionGAN(pred_fake, False)
        real_AB = torch.cat((self.real_A, self.real_B), 1)
        pred_real = self.netD(real_AB)
        self.loss_D_real = self.criterionGAN(pred_real, True)
        self.loss_D_gp = self.penalty(real_AB, fake_AB.detach())
        self.loss_D = (self.loss_D_fake + self.loss_D_real + self.loss_D_gp) * 0.5
        self.loss_D.backward()

    def backward_G(self) -> None:
        fake_AB = torch.cat((self.real_A, self.fake_B), 1)
        pred_fake = self.netD(fake_AB)
        self.loss_G_GAN = self.criterionGAN(pred_fake, True)
        self.loss_G_L1 = self.criterionL1(self.fake_B, self.real_B) * self.lambda_L1
        self.loss_G = self.loss_G_GAN + self.loss_G_L1
        self.loss_G.backward()

    def optimize_parameters(self) -> None:
        self.forward()
        self.set_requires_grad(self.netD, True)
        self.optimizer_D.zero_grad()
        self.backward_D()
        self.optimizer_D.step()
        self.set_requires_grad(self.netD, False)
        self.optimizer_G.zero_grad()
        self.backward_G()
        self.optimizer_G.step()

    def losses(self) -> dict[str, Tensor | float]:
        """Return the losses of the last iteration under fastcyclegan's names."""
        return {
            "D_fake": self.loss_D_fake,
            "D_real": self.loss_D_real,
            "D_gp": self.loss_D_gp,
            "G_GAN": self.loss_G_GAN,
            "G_L1": self.loss_G_L1,
        }
