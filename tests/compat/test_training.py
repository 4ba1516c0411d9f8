"""Tests of the drop-in losses, image pool, gradient penalty and learning rate schedules."""

from __future__ import annotations

import contextlib
import copy
import random
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from fastcyclegan import compat, reference
from fastcyclegan.kernels.dispatch import as_on_gpu
from fastcyclegan.testing import assert_parity

INSTANCE = compat.get_norm_layer("instance")


@pytest.mark.parametrize("mode", reference.GAN_MODES)
def test_gan_loss(mode: str) -> None:
    logits, loss = torch.randn(2, 1, 3, 3, requires_grad=True), compat.GANLoss(mode)
    for real in (True, False):
        assert torch.equal(loss(logits, real), reference.gan_loss(logits, real, mode))
    assert (
        torch.isfinite(compat.GANLoss("lsgan")(torch.full((1, 1, 2, 2), 300.0).half(), True))
        or mode != "lsgan"
    )
    soft = compat.GANLoss("lsgan", 0.9, 0.1)(logits, True)
    torch.testing.assert_close(soft, (logits - 0.9).square().mean())
    assert set(loss.state_dict()) == {"real_label", "fake_label"}


def test_image_pool_draws_like_the_official_one() -> None:
    """Compare with the official replacement policy, written out here with Python's random.

    Nothing is drawn while the pool is filling. After that, a coin toss is drawn first, and then a place.
    """
    pool, stored = compat.ImagePool(3), []
    random.seed(5)
    results = [
        pool.query(torch.full((2, 1, 1, 1), float(n)) + torch.tensor([0.0, 0.5]).view(2, 1, 1, 1))
        for n in range(20)
    ]
    random.seed(5)
    for n, shown in enumerate(results):
        for i in range(2):
            value = n + 0.5 * i
            if len(stored) < 3:
                stored.append(value)
            elif random.uniform(0, 1) > 0.5:
                place = random.randint(0, 2)
                stored[place], value = value, stored[place]
            assert shown[i].item() == value
    assert [image.item() for image in pool.images] == stored
    assert pool.images[0].shape == (1, 1, 1, 1)
    assert pool.num_imgs == 3
    x = torch.randn(1, 1, 2, 2)
    assert compat.ImagePool(0).query(x) is x


def test_unknown_names() -> None:
    x = torch.randn(1, 3, 16, 16)
    with pytest.raises(NotImplementedError, match="gan_mode must be one of lsgan"):
        compat.GANLoss("hinge")
    with pytest.raises(NotImplementedError, match="type must be one of mixed, real, fake, got 'both'"):
        compat.cal_gradient_penalty(nn.Identity(), x, x, "cpu", "both")  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match=r"lr_policy must be one of linear, .*, got 'poly'"):
        compat.get_scheduler(_optimizer(), SimpleNamespace(lr_policy="poly"))


# --- Learning rate schedules --------------------------------------------------------------------------------


def _optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)


def _rates(epochs: int, *metrics: float, **options: object) -> list[float]:
    """Return the learning rate of each epoch, for a rate of 1 and a step at the end of each epoch."""
    optimizer = _optimizer()
    scheduler = compat.get_scheduler(optimizer, SimpleNamespace(**options))
    rates = []
    for epoch in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(*metrics[epoch : epoch + 1])  # type: ignore[arg-type]
    return rates


def test_linear_schedule() -> None:
    """The official rates of the table for 100 + 100 epochs, with the options of both ages."""
    wanted = {99: 1.0, 100: 1.0, 101: 100 / 101, 150: 51 / 101, 199: 2 / 101, 200: 1 / 101}
    options = {"lr_policy": "linear", "epoch_count": 1}
    new = _rates(200, **options, n_epochs=100, n_epochs_decay=100)
    old = _rates(200, **options, niter=100, niter_decay=100)
    assert {epoch: new[epoch - 1] for epoch in wanted} == pytest.approx(wanted)
    assert old == new
    # A run that starts again at epoch 150 continues as the first would have.
    later = _rates(51, lr_policy="linear", epoch_count=150, n_epochs=100, n_epochs_decay=100)
    assert later == pytest.approx(new[149:])
    # The rule of 2017-18 is one epoch ahead.
    ahead = _rates(199, lr_policy="lambda", epoch_count=1, niter=100, niter_decay=100)
    assert ahead == pytest.approx(new[1:])


def test_step_cosine_and_plateau_schedules() -> None:
    assert _rates(7, lr_policy="step", lr_decay_iters=3) == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01])
    assert _rates(5, lr_policy="cosine", n_epochs=4) == pytest.approx(
        [1, 0.853553, 0.5, 0.146447, 0], abs=1e-6
    )
    # A metric that never falls: patience of 5 epochs after the first, then a fifth of the rate.
    assert _rates(9, *[1.0] * 9, lr_policy="plateau") == pytest.approx([1.0] * 7 + [0.2] * 2)
    # One that falls by less than 1 % counts as one that does not fall.
    falling = [1.0 - 0.001 * epoch for epoch in range(9)]
    assert _rates(9, *falling, lr_policy="plateau") == pytest.approx([1.0] * 7 + [0.2] * 2)


# --- Gradient penalty ---------------------------------------------------------------------------------------


def _plain_discriminator() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(4, 3, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(3, 6, 4, 1, 1)]
    return nn.Sequential(*layers, nn.InstanceNorm2d(6), nn.LeakyReLU(0.2), nn.Conv2d(6, 1, 4, 1, 1))


def _plain_penalty(D: nn.Module, x: Tensor, constant: float, weight: float) -> tuple[Tensor, Tensor]:
    """The formula of the penalty at x, written with a loop over the images."""
    x = x.detach().requires_grad_()
    (grad,) = torch.autograd.grad(D(x).sum(), x, create_graph=True)
    terms = [(image.pow(2).sum().sqrt() - constant).pow(2) for image in grad]
    return weight * sum(terms, torch.zeros(())) / len(terms), grad.reshape(len(x), -1)


@pytest.mark.parametrize("kind", ["mixed", "real", "fake"])
def test_gradient_penalty_equals_the_formula(kind: str) -> None:
    """The discriminator is a conditional one, as in pix2pix, where the images of a pair are concatenated."""
    torch.manual_seed(0)
    plain = _plain_discriminator().double()
    D = compat.NLayerDiscriminator(4, 3, 1, INSTANCE, impl="reference").double()
    D.model.load_state_dict(plain.state_dict())
    A, B, fake = (torch.randn(2, c, 16, 16, dtype=torch.float64) for c in (1, 3, 3))
    real, made = torch.cat([A, B], 1), torch.cat([A, fake], 1)
    torch.manual_seed(1)
    penalty, gradients = compat.cal_gradient_penalty(D, real, made, torch.device("cpu"), kind, 0.7, 3.0)  # type: ignore[arg-type]
    torch.manual_seed(1)
    share = torch.rand(2, 1)[:, :, None, None]
    x = {"mixed": share * real + (1 - share) * made, "real": real, "fake": made}[kind]
    wanted, wanted_gradients = _plain_penalty(plain, x, 0.7, 3.0)
    assert isinstance(penalty, Tensor)
    torch.testing.assert_close(penalty, wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients, wanted_gradients, rtol=1e-12, atol=1e-14)
    penalty.backward()
    wanted.backward()
    for ours, p in zip(D.parameters(), plain.parameters(), strict=True):
        # The bias of the last layer changes no gradient with respect to an image.
        expected = torch.zeros_like(p) if p.grad is None else p.grad
        found = torch.zeros_like(p) if ours.grad is None else ours.grad
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    assert not real.requires_grad
    assert not made.requires_grad


@pytest.mark.parametrize("as_gpu", [False, True])
def test_gradient_penalty_with_the_kernels(as_gpu: bool) -> None:
    """The Triton kernels cannot be differentiated twice, so "auto" leaves this call to PyTorch."""
    torch.manual_seed(0)
    plain = _plain_discriminator().double()
    real, fake = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16)
    D = compat.NLayerDiscriminator(4, 3, 1, INSTANCE)
    D.model.load_state_dict(plain.state_dict())
    with as_on_gpu() if as_gpu else contextlib.nullcontext():
        penalty, _ = compat.cal_gradient_penalty(D, real, fake, "cpu", "real")
        assert isinstance(penalty, Tensor)
        penalty.backward()
        assert D.model.impl == "auto"
    pytorch = copy.deepcopy(plain).float()
    for net, images in ((plain, real.double()), (pytorch, real)):
        wanted, _ = _plain_penalty(net, images, 1.0, 10.0)
        wanted.backward()
    for index in (0, 2, 5):
        ours, theirs, truth = (net[index].weight.grad for net in (D.model, pytorch, plain))  # type: ignore[index]
        assert_parity(f"model.{index}", ours, theirs, truth, torch.float32)


def test_gradient_penalty_of_a_generated_image_reaches_the_generator() -> None:
    """As in the official code, the images need not be detached."""
    G, D = nn.Conv2d(4, 4, 1), _plain_discriminator()
    penalty, _ = compat.cal_gradient_penalty(
        D, torch.randn(1, 4, 16, 16), G(torch.randn(1, 4, 16, 16)), "cpu"
    )
    assert isinstance(penalty, Tensor)
    penalty.backward()
    assert G.weight.grad is not None
    assert G.weight.grad.any()


def test_no_gradient_penalty_without_a_weight() -> None:
    x = torch.randn(1, 3, 16, 16)
    assert compat.cal_gradient_penalty(nn.Identity(), x, x, "cpu", lambda_gp=0.0) == (0.0, None)
