"""Check the reference's norm, initial weights, losses and pool against torch and against values by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcyclegan import reference as ref
from fastcyclegan.testing import relative_error

# --- Instance norm ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("batch", [1, 2])
def test_instance_norm_gradient_in_any_layout(batch: int, layout: torch.memory_format) -> None:
    """torch's own gradient is wrong on the CPU for a single image and a channels_last gradient, so this test
    fails with nn.InstanceNorm2d instead.
    """
    torch.manual_seed(0)
    x, grad = torch.randn(2, batch, 6, 5, 7, dtype=torch.float64)
    truth = x.clone().requires_grad_()
    mean, variance = truth.mean((2, 3), keepdim=True), truth.var((2, 3), unbiased=False, keepdim=True)
    ((truth - mean) / (variance + 1e-5).sqrt()).backward(grad)
    ours = x.to(memory_format=layout).requires_grad_()
    ref.InstanceNorm2d(6)(ours).backward(grad.to(memory_format=layout))
    assert ours.grad is not None
    assert truth.grad is not None
    assert relative_error(ours.grad, truth.grad) < 1e-13


def test_a_single_pixel_raises_as_in_torch() -> None:
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        ref.InstanceNorm2d(3)(torch.rand(1, 3, 1, 1))


# --- Initialisation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("init_type", "expected"),
    [("normal", 0.02), ("xavier", 0.02 * math.sqrt(2 / (9 * 512))), ("kaiming", math.sqrt(2 / (9 * 256)))],
)
def test_spread_of_initial_weights(init_type: str, expected: float) -> None:
    torch.manual_seed(0)
    net = ref.init_weights(ref.Generator(n_blocks=1), init_type, 0.02)
    weight = net.get_parameter("model.10.conv_block.1.weight")
    # The standard error of a standard deviation over 589,824 weights is 0.1 %. The tolerance is 5 of them.
    assert weight.std().item() == pytest.approx(expected, rel=5e-3)
    assert abs(weight.mean().item()) < 5 * expected / math.sqrt(weight.numel())
    assert not net.get_parameter("model.10.conv_block.1.bias").any()


def test_orthogonal_initialisation_and_batch_norm() -> None:
    net = ref.init_weights(ref.Generator(n_blocks=1, norm="batch"), "orthogonal", 0.5)
    rows = net.get_parameter("model.10.conv_block.1.weight").flatten(1)
    torch.testing.assert_close(rows @ rows.T, 0.25 * torch.eye(256), atol=1e-5, rtol=0)
    scale = torch.cat([m.weight for m in net.modules() if isinstance(m, nn.BatchNorm2d)])
    assert scale.mean().item() == pytest.approx(1.0, abs=5 * 0.5 / math.sqrt(scale.numel()))
    assert scale.std().item() == pytest.approx(0.5, rel=0.1)


# --- Losses -------------------------------------------------------------------------------------------------


def test_gan_losses_by_hand() -> None:
    logits = torch.tensor([[0.5, -1.0], [2.0, 0.0]])
    assert ref.gan_loss(logits, True, "lsgan").item() == pytest.approx((0.25 + 4 + 1 + 1) / 4)
    assert ref.gan_loss(logits, False, "lsgan").item() == pytest.approx((0.25 + 1 + 4 + 0) / 4)
    softplus = [math.log1p(math.exp(-v)) for v in (0.5, -1.0, 2.0, 0.0)]
    assert ref.gan_loss(logits, True, "vanilla").item() == pytest.approx(sum(softplus) / 4)
    assert ref.gan_loss(logits, False, "vanilla").item() == pytest.approx(sum(softplus) / 4 + 1.5 / 4)
    assert ref.gan_loss(logits, True, "wgangp").item() == pytest.approx(-0.375)
    assert ref.gan_loss(logits, False, "wgangp").item() == pytest.approx(0.375)


def test_gradient_penalty_by_hand() -> None:
    """D(x) = sum of 0.5 x^2 has the gradient x, so the penalty is 10 E[(|x| - 1)^2] at the interpolated
    points.
    """

    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0.5 * x.square()

    real, fake = torch.full((2, 1, 1, 2), 3.0), torch.full((2, 1, 1, 2), -1.0)
    mix = torch.tensor([1.0, 0.25])
    expected = 10 * ((3 * math.sqrt(2) - 1) ** 2 + 1) / 2  # points (3, 3) and (0, 0)
    assert ref.gradient_penalty(Square(), real, fake, mix).item() == pytest.approx(expected, rel=1e-6)


def test_gradient_penalty_reaches_the_weights() -> None:
    torch.manual_seed(0)
    D = ref.Discriminator(ndf=2, n_layers=1).double()
    real, fake = torch.randn(2, 2, 3, 16, 16, dtype=torch.float64)
    mix = torch.tensor([0.3, 0.8], dtype=torch.float64)
    weight = D.get_parameter("model.0.weight")
    ref.gradient_penalty(D, real, fake, mix).backward()
    assert weight.grad is not None
    ours = weight.grad[0, 0, 0, 0].item()
    step, sides = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            weight[0, 0, 0, 0] += sign * step
        sides.append(ref.gradient_penalty(D, real, fake, mix).item())
        with torch.no_grad():
            weight[0, 0, 0, 0] -= sign * step
    assert ours == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-5)


class Scale(nn.Module):
    """A generator or discriminator with a single weight, so that every term can be computed by hand."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def test_generator_losses_by_hand() -> None:
    nets = {"G_AB": Scale(2.0), "G_BA": Scale(0.25), "D_A": Scale(1.0), "D_B": Scale(3.0)}
    a, b = torch.full((1, 1, 2, 2), 0.5), torch.full((1, 1, 2, 2), -0.5)
    weights = ref.LossWeights(lambda_A=10, lambda_B=20, lambda_identity=0.5)
    losses, fake_A, fake_B = ref.generator_losses(nets, a, b, weights)
    values = {name: loss.item() for name, loss in losses.items()}
    assert fake_B.unique().item() == 1.0
    assert fake_A.unique().item() == -0.125
    # D_B(fake_B) = 3, D_A(fake_A) = -0.125; rec_A = 0.25, rec_B = -0.25; G_AB(b) = -1, G_BA(a) = 0.125.
    assert values == pytest.approx(
        {"G_AB": 4.0, "G_BA": 1.265625, "cycle_A": 2.5, "cycle_B": 5.0, "idt_B": 5.0, "idt_A": 1.875}
    )
    assert set(ref.generator_losses(nets, a, b, ref.LossWeights(lambda_identity=0))[0]) == {
        "G_AB",
        "G_BA",
        "cycle_A",
        "cycle_B",
    }


def test_discriminator_loss_by_hand() -> None:
    D, real, fake = Scale(2.0), torch.full((1, 1, 1, 1), 1.0), torch.full((1, 1, 1, 1), 0.5)
    assert ref.discriminator_loss(D, real, fake, ref.LossWeights()).item() == pytest.approx(0.5 * (1.0 + 1.0))
    # wgangp: |grad| is 2, so the penalty is 10 (2 - 1)^2, inside the half.
    loss = ref.discriminator_loss(D, real, fake, ref.LossWeights("wgangp"), torch.tensor([0.5]))
    assert loss.item() == pytest.approx(0.5 * (-2.0 + 1.0 + 10.0))


# --- Augmentation -------------------------------------------------------------------------------------------


def test_augmentations_by_hand() -> None:
    """The image has two channels with 4 and 8 everywhere, except for 0 and 4 in the first pixel."""
    image = torch.stack([torch.full((2, 8), 4.0), torch.full((2, 8), 8.0)]).double()
    image[:, 0, 0] -= 4
    u = torch.tensor([0.75, 0.25, 0.0, 0.0, 0.6, 0.9, 0.5])
    # Brightness adds 1/4. Saturation halves the distances from the mean of the channels, 6.25, or 2.25 in the
    # first pixel. Contrast halves those from the mean, 6.
    recolored = image.clone()
    recolored[0], recolored[1] = 5.625, 6.625
    recolored[0, 0, 0], recolored[1, 0, 0] = 3.625, 4.625
    assert torch.equal(ref.augment_image(image, ["color"], u), recolored)
    # 2 rows cannot be moved, and of the shifts -1, 0 and 1 of 8 columns the second one is chosen.
    assert torch.equal(ref.augment_image(image, ["translation"], u), image)
    moved = F.pad(image[:, :, :-1], (1, 0))
    assert torch.equal(ref.augment_image(image, ["translation"], torch.zeros(7)), moved)
    moved = F.pad(image[:, :, 1:], (0, 1))
    assert torch.equal(ref.augment_image(image, ["translation"], torch.ones(7)), moved)
    # One row of 2 and four columns of 8: row 1 is chosen of 0 to 1, and centre 4 of 0 to 8.
    cut = image.clone()
    cut[:, 1, 2:6] = 0
    assert torch.equal(ref.augment_image(image, ["cutout"], u), cut)
    cut = image.clone()
    cut[:, 1, 6:] = 0  # centre 8, beyond the last column
    assert torch.equal(ref.augment_image(image, ["cutout"], torch.ones(7)), cut)


def official_augmentation(x: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Return one image [C, H, W] as the official DiffAugment augments it, pixel by pixel."""
    x = x + (u[0] - 0.5)
    gray = x.mean(0, keepdims=True)
    x = (x - gray) * (u[1] * 2) + gray
    x = (x - x.mean()) * (u[2] + 0.5) + x.mean()
    sides = np.array(x.shape[1:])
    shift = (sides * 0.125 + 0.5).astype(int)
    moved_by = np.minimum(u[3:5] * (2 * shift + 1), 2 * shift).astype(int) - shift
    size = (sides * 0.5 + 0.5).astype(int)
    offset = np.minimum(u[5:] * (sides + (1 - size % 2)), sides - size % 2).astype(int)
    out = np.zeros_like(x)
    for pixel in np.ndindex(*sides):
        source = np.array(pixel) + moved_by
        if (source >= 0).all() and (source < sides).all():
            out[:, pixel[0], pixel[1]] = x[:, source[0], source[1]]
    for part in np.ndindex(*size):
        row, column = np.clip(np.array(part) + offset - size // 2, 0, sides - 1)
        out[:, row, column] = 0
    return out


@pytest.mark.parametrize("size", [(3, 16, 16), (1, 12, 20), (3, 13, 9), (2, 5, 6)], ids=str)
def test_augmentations_are_the_official_ones(size: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(20, *size, generator=generator, dtype=torch.float64)
    u = torch.rand(7, 20, generator=generator, dtype=torch.float64)
    u[:, 0], u[:, 1] = 0, 1
    for ours, image, numbers in zip(
        ref.augment(images, ref.AUGMENTATIONS, u), images.numpy(), u.T.numpy(), strict=True
    ):
        np.testing.assert_allclose(ours.numpy(), official_augmentation(image, numbers), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ref.gan_loss(torch.ones(1), True, "hinge"),
        lambda: ref.norm_layer("group", 3),
        lambda: ref.init_weights(nn.Conv2d(1, 1, 1), "zeros"),
        lambda: ref.Generator(upsample="bilinear"),
    ],
)
def test_unknown_options_are_rejected(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"must be one of .*, got '(hinge|group|zeros|bilinear)'"):
        call()


# --- The pool -----------------------------------------------------------------------------------------------


def numbered(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


def test_pool_rule_by_hand() -> None:
    pool = ref.ReplayPool(2)
    assert pool.query(numbered(1, 2), [(0.0, 0.0)] * 2).flatten().tolist() == [
        1,
        2,
    ]  # filling: stored and returned
    assert pool.query(numbered(3), [(0.7, 0.0)]).flatten().tolist() == [3]  # not stored
    assert pool.query(numbered(4), [(0.2, 0.9)]).flatten().tolist() == [
        2
    ]  # slot 1 is returned, 4 is stored there
    # In a single query, 5 is stored in slot 0, and 6 then draws slot 0 and gets the 5 just stored.
    assert pool.query(numbered(5, 6), [(0.1, 0.0), (0.1, 0.4)]).flatten().tolist() == [1, 5]
    assert [image.item() for image in pool.images] == [6, 4]


def test_an_empty_pool_returns_its_input() -> None:
    images = numbered(1, 2)
    assert ref.ReplayPool(0).query(images, []) is images


def test_pool_statistics() -> None:
    """Once the pool is full, half of the queries return the newest image. The average age of the older images
    that are returned is the mean lifetime of a slot.
    """
    rng = np.random.default_rng(0)
    pool, ages, n = ref.ReplayPool(50), [], 20_000
    for time in range(n):
        shown = int(pool.query(numbered(time), [tuple(rng.random(2))]).item())
        if time >= 5_000:
            ages.append(time - shown)
    old = [age for age in ages if age > 0]
    # Binomial: the tolerance is 5 standard errors around one half.
    assert len(old) / len(ages) == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(len(ages)))
    # A slot is overwritten with probability 1/100 per query, so ages are geometric with mean 100.
    assert np.mean(old) == pytest.approx(100, abs=5 * 100 / math.sqrt(len(old)))
