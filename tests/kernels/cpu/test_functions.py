"""Compare the C++ kernels with float64 by the parity rule, for every kind, layout and number of threads."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastcyclegan.kernels import instance_norm_ref
from fastcyclegan.kernels._layout import channels_last
from fastcyclegan.kernels._norm import Norm
from fastcyclegan.kernels.cpu import functions, native
from fastcyclegan.testing import assert_parity, assert_same_bits
from tests.kernels.cpu.cases import CONVOLUTIONS, NORMS, REGIONS, ConvCase, NormCase, RegionCase
from tests.kernels.cpu.processor import (
    BF16,
    FP32,
    check_convolution,
    images,
    on_every_number_of_threads,
    padded,
    region_of_a_map,
    threads,
)
from tests.kernels.norms import torch_instance_norm


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


# --- Norms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("case", NORMS, ids=lambda case: case.why)
def test_norms_equal_float64(case: NormCase, dtype: torch.dtype) -> None:
    x = images(*case.shape, dtype=dtype, layout=case.layout) * 2 + 3
    C = case.shape[1]
    weight, bias = (torch.randn(C), torch.randn(C)) if case.affine else (None, None)
    residual = images(*case.shape, dtype=dtype) if case.residual else None
    norm = Norm(weight, bias, 1e-5, case.act, 0.1)
    ours, mean, rstd = on_every_number_of_threads(lambda: functions.norm(x, norm, residual, case.border))
    options = {"eps": 1e-5, "act": case.act, "slope": 0.1}
    pytorch = torch_instance_norm(x, _to(weight, dtype), _to(bias, dtype), residual=residual, **options)
    wide = [None if t is None else t.double() for t in (x, weight, bias, residual)]
    exact = instance_norm_ref(wide[0], wide[1], wide[2], residual=wide[3], **options)  # type: ignore[arg-type]
    pytorch, exact = (padded(y, case.border, True) for y in (pytorch, exact))
    assert_parity("norm", ours, pytorch, exact, dtype)
    assert ours.dtype == dtype
    if case.layout != "gaps" and not case.border:
        assert ours.stride() == x.stride()
    for statistic, of_pixels in ((mean, _mean), (rstd, _rstd)):
        assert_parity("statistics", statistic, of_pixels(x.float()), of_pixels(x.double()), FP32)


@pytest.mark.parametrize("layout", ["last", "first"])
def test_equal_pixels_become_zero_whatever_their_size(layout: str) -> None:
    """Rounding errors of large numbers could make the variance negative, and their squares are infinite."""
    values = torch.logspace(-35, 35, 4000)
    x = values[None, :, None, None].expand(1, -1, 7, 8)
    x = x.contiguous(memory_format=torch.channels_last) if layout == "last" else x.contiguous()
    y, mean, _ = functions.norm(x, Norm())
    assert torch.equal(y, torch.zeros_like(x))
    assert torch.equal(mean[0], values)


@pytest.mark.parametrize("layout", ["last", "first"])
def test_the_squares_of_large_numbers_may_be_infinite(layout: str) -> None:
    """Their mean, the variance, is not."""
    x = 1e17 * images(1, 3, 200, 200, layout=layout)
    ours, expected = functions.norm(x, Norm())[0], _normalised(x)
    assert_parity("y", ours, expected, _normalised(x.double()), FP32)


def _normalised(x: Tensor) -> Tensor:
    return F.instance_norm(x)


def _mean(x: Tensor) -> Tensor:
    return x.flatten(2).mean(2)


def _rstd(x: Tensor) -> Tensor:
    return (_variance(x) + 1e-5).rsqrt()


def _variance(x: Tensor) -> Tensor:
    return x.flatten(2).var(2, correction=0)


def _to(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if t is None else t.to(dtype)


@pytest.mark.parametrize("layout", ["last", "first"])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_flat_images_become_exactly_zero(layout: str, dtype: torch.dtype) -> None:
    """Their variance is 0, so a rounding error in the mean would be multiplied by 1 / sqrt(eps) = 316."""
    for size in (3, 7, 23):
        x = torch.full_like(images(2, 5, size, size, dtype=dtype, layout=layout), 1000.3)
        assert not functions.norm(x, Norm())[0].any()


@pytest.mark.parametrize("layout", ["last", "first"])
def test_the_mean_can_be_a_thousand_deviations(layout: str) -> None:
    """Computed as E[x^2] - E[x]^2, the variance would be off by a quarter."""
    x = images(1, 5, 23, 21, layout=layout) + 1000
    x[:, :, 0, 0] += 50  # An outlier in the first pixel must not spoil the differences between the others.
    exact = instance_norm_ref(x.double())
    assert_parity("norm", functions.norm(x, Norm())[0], F.instance_norm(x), exact, FP32)


@pytest.mark.parametrize("layout", ["last", "first"])
@pytest.mark.parametrize("act", ["none", "relu", "leaky_relu"])
def test_nan_and_infinity_reach_their_channel_and_no_other(layout: str, act: str) -> None:
    for value in (float("nan"), float("inf")):
        x = images(2, 18, 5, 5, layout=layout)
        x[0, 3, 2, 2] = value
        y, _, _ = functions.norm(x, Norm(act=act))
        # PyTorch's own activations keep NaN as well.
        expected = torch_instance_norm(x, None, None, eps=1e-5, act=act, slope=0.2, residual=None)
        assert torch.equal(y.isnan(), expected.isnan())


def test_16_bit_results_are_rounded_as_pytorch_rounds() -> None:
    """All bit patterns of bf16, and NaN, go through the conversions unchanged."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(BF16).view(1, 4, 128, 128)
    every = every.contiguous(memory_format=torch.channels_last)
    same = functions.pad(every, 0)
    assert torch.equal(same.view(torch.int16), every.view(torch.int16))
    wide = functions.pad(every, 0, wide=True)
    assert torch.equal(wide.nan_to_num(), every.float().nan_to_num())
    assert torch.equal(wide.isnan(), every.isnan())


@pytest.mark.parametrize("reflect", [True, False])
@pytest.mark.parametrize("border", [0, 1, 3])
def test_borders(border: int, reflect: bool) -> None:
    x = images(2, 5, 4, 6)
    ours = on_every_number_of_threads(lambda: functions.pad(x, border, reflect=reflect))
    assert torch.equal(ours, padded(x, border, reflect))
    assert ours.is_contiguous(memory_format=torch.channels_last)


# --- Norms of regions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("case", REGIONS, ids=lambda case: case.why)
def test_moments_of_regions_equal_float64(case: RegionCase, dtype: torch.dtype) -> None:
    dense = images(1, case.C, *case.size, dtype=dtype) * 2 + 3
    x = dense if case.dense else region_of_a_map(dense)
    mean, variance = on_every_number_of_threads(lambda: functions.region_moments(x))
    assert mean.shape == variance.shape == (case.C,)
    assert_parity("mean", mean[None], _mean(dense.float()), _mean(dense.double()), FP32)
    assert_parity("variance", variance[None], _variance(dense.float()), _variance(dense.double()), FP32)
    _, same_mean, same_rstd = functions.norm(dense, Norm())
    assert_same_bits("the mean of a dense copy", mean[None], same_mean)
    assert_parity("1 / sigma", (variance[None] + 1e-5).rsqrt(), same_rstd, _rstd(dense.double()), FP32)


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("case", REGIONS, ids=lambda case: case.why)
def test_normalised_regions_equal_norms_of_copies(case: RegionCase, dtype: torch.dtype) -> None:
    """Their bits do; and those of a norm with a residual, if mean and 1 / sigma are those of the region."""
    dense = images(1, case.C, *case.size, dtype=dtype) * 2 + 3
    weight, bias = (torch.randn(case.C), torch.randn(case.C)) if case.affine else (None, None)
    norm = Norm(weight, bias, 1e-5, case.act, 0.1)
    added = images(1, case.C, *case.size, dtype=dtype) if case.residual else None
    # The rows of the residual are not as far apart as those of x.
    x, residual = dense, added
    if not case.dense:
        x, residual = region_of_a_map(dense), None if added is None else region_of_a_map(added, 1, 0)
    expected, mean, rstd = functions.norm(dense, norm, added)
    before = x.clone()
    ours = on_every_number_of_threads(lambda: functions.normalised_region(x, norm, mean, rstd, residual))
    assert_same_bits("a norm", ours, expected)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert_same_bits("x afterwards", x, before)
    other_mean, other_rstd = torch.randn(1, case.C), torch.rand(1, case.C) + 0.5
    ours = functions.normalised_region(x, norm, other_mean[0], other_rstd[0])
    assert_same_bits("norm_again", ours, functions.norm_again(dense, norm, other_mean, other_rstd))


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_flat_regions_have_no_variance_at_all(dtype: torch.dtype) -> None:
    """The first mean of a chunk is off by roundings, which cancel only if they are divided exactly.

    n * (1 / n) is not 1 in fp32 for 41, 47, 55 and 61 pixels.
    """
    values = torch.logspace(-20, 20, 3000).to(dtype)
    for size in ((1, 41), (47, 1), (5, 11), (1, 61), (3, 35), (8, 8), (23, 21)):
        x = region_of_a_map(values[None, :, None, None].expand(1, -1, *size))
        mean, variance = functions.region_moments(x)
        assert torch.equal(mean, values.float())
        assert not variance.any()


def test_the_mean_of_a_region_can_be_a_thousand_deviations() -> None:
    """Computed as E[x^2] - E[x]^2, the variance would be off by a quarter."""
    dense = images(1, 5, 23, 21) + 1000
    dense[:, :, 0, 0] += (
        50  # An outlier in the first pixel must not spoil the differences between the others.
    )
    x = region_of_a_map(dense)
    mean, variance = functions.region_moments(x)
    exact = _variance(dense.double())[0]
    # The difference of two means has four roundings of numbers below 1050. By the inequality of Cauchy and
    # Schwarz, the sum of its products with the true differences is at most sigma times as large.
    assert ((variance - exact).abs() <= 2 * (4 * 2**-24 * 1050) * exact.sqrt()).all()
    y = functions.normalised_region(x, Norm(), mean, (variance + 1e-5).rsqrt())
    assert_parity("norm", y, F.instance_norm(dense), instance_norm_ref(dense.double()), FP32)


def test_the_squares_of_a_region_may_be_infinite() -> None:
    """Their mean, the variance, is not."""
    dense = 1e17 * images(1, 3, 200, 200)
    _, variance = functions.region_moments(region_of_a_map(dense))
    assert_parity("variance", variance[None], _variance(dense), _variance(dense.double()), FP32)


def test_only_regions_of_channels_last_maps_are_read() -> None:
    x, statistic = images(1, 4, 6, 8), torch.rand(4)
    wrong = {
        "planes": x.contiguous(),
        "every other pixel": x[:, :, :, ::2],
        "some of the channels": x[:, 1:3],
        "every other channel": x[:, ::2],
        "the same row again and again": x[:, :, :1].expand(-1, -1, 3, -1),
        "rows and columns exchanged": x.transpose(2, 3),
        "two images": images(2, 4, 6, 8),
        "a signal": images(1, 4, 8),
        "another dtype": x.double(),
    }
    for why, t in wrong.items():
        number = statistic[: t.shape[1]]
        for call in (
            lambda t=t: functions.region_moments(t),
            lambda t=t, n=number: functions.normalised_region(t, Norm(), n, n),
            lambda t=t: functions.normalised_region(x, Norm(), statistic, statistic, t),
        ):
            with pytest.raises(ValueError, match="must be ") as raised:
                call()
            assert "\n" not in str(raised.value), why


def test_sizes_of_regions() -> None:
    x, statistic = images(1, 4, 6, 8), torch.rand(4)
    with pytest.raises(ValueError, match=r"must have at least one pixel, got shape \(1, 4, 6, 0\)"):
        functions.region_moments(x[..., :0])
    assert functions.normalised_region(x[..., :0], Norm(), statistic, statistic).shape == (1, 4, 6, 0)
    with pytest.raises(ValueError, match=r"rstd must have 4 numbers, got shape \(3,\)"):
        functions.normalised_region(x, Norm(), statistic, statistic[:3])
    for residual in (x[..., :7], x.bfloat16()):
        with pytest.raises(ValueError, match=r"residual must be torch\.float32 "):
            functions.normalised_region(x, Norm(), statistic, statistic, residual)
    # Every other row: a larger distance between rows.
    mean, _ = functions.region_moments(x[:, :, ::2])
    assert_same_bits("mean", mean, functions.region_moments(channels_last(x[:, :, ::2]))[0])


# --- Convolutions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda case: f"{case.kind}: {case.why}")
def test_convolutions_equal_float64(case: ConvCase, dtype: torch.dtype) -> None:
    x = images(*case.shape, dtype=dtype)
    # Weights in fp32 are rounded to the dtype of x, as PyTorch's autocast does.
    weight = torch.randn(case.outputs, case.shape[1], case.kernel, case.kernel) / case.kernel
    bias = torch.randn(case.outputs) if case.bias else None
    options = {"stride": case.stride, "padding": case.border, "reflect": case.reflect}
    ours = on_every_number_of_threads(
        lambda: functions.convolution(case.kind, x, weight, bias, **options)  # type: ignore[arg-type]
    )
    check_convolution(ours, x, weight, bias, case.stride, case.border, case.reflect)
    assert ours.dtype == dtype


def test_the_last_block_of_tiles_can_lack_whole_parts() -> None:
    """One thread shares out 384 tiles at a time in parts of 128. Here, the last of 129 blocks has 256."""
    x, weight = images(1, 1, 4 * 193, 4 * 256), torch.randn(1, 1, 3, 3)
    with threads(1):
        ours = functions.convolution("winograd", x, weight, None, padding=1)
    pytorch, exact = (F.conv2d(t, w, padding=1) for t, w in ((x, weight), (x.double(), weight.double())))
    assert_parity("convolution", ours, pytorch, exact, FP32)


@pytest.mark.parametrize("kind", ["winograd", "wide", "few"])
def test_float_results_are_not_rounded(kind: str) -> None:
    """With ``float_out``, the sums of a bf16 image stay in fp32."""
    x, weight = images(1, 4, 6, 6, dtype=BF16), torch.randn(4, 4, 3, 3)
    y = functions.convolution(kind, x, weight, None, padding=1, float_out=True)
    exact = F.conv2d(x.double(), weight.to(BF16).double(), padding=1)
    assert_parity("convolution", y, exact.float(), exact, FP32)
    assert torch.equal(y.to(BF16), functions.convolution(kind, x, weight, None, padding=1))


@pytest.mark.parametrize("kind", ["winograd", "wide", "few"])
def test_each_image_is_computed_by_itself(kind: str) -> None:
    x, weight = images(5, 4, 9, 7), torch.randn(4, 4, 3, 3)
    together = functions.convolution(kind, x, weight, None, padding=1, reflect=True)
    for n in range(5):
        alone = functions.convolution(kind, x[n : n + 1], weight, None, padding=1, reflect=True)
        assert torch.equal(together[n : n + 1], alone)


@pytest.mark.parametrize("kind", ["winograd", "wide", "few"])
@pytest.mark.parametrize("shape", [(0, 4, 5, 5), (2, 4, 5, 5)])
def test_empty_batches_and_weights_in_any_layout(kind: str, shape: tuple[int, int, int, int]) -> None:
    x, weight = images(*shape), torch.randn(4, 4, 3, 6)[..., ::2]
    for w in (weight, weight.contiguous(), weight.contiguous(memory_format=torch.channels_last)):
        y = functions.convolution(kind, x, w, None, padding=1)
        assert y.shape == shape
        if shape[0]:
            check_convolution(y, x, w, None, border=1, reflect=False)


def test_nothing_outside_the_tensors_is_written() -> None:
    """The bytes before and after a result stay as they were, and so do the operands."""
    x, weight = images(1, 19, 7, 9), torch.randn(37, 19, 3, 3)
    before = (x.clone(), weight.clone())
    for kind, w in (("winograd", weight), ("wide", weight), ("few", weight[:3])):
        y = functions.convolution(kind, x, w, None, padding=1, reflect=True)
        store = torch.full((y.numel() + 64,), 7.0)
        inner = store[32:-32].view(1, 7, 9, w.shape[0]).permute(0, 3, 1, 2)
        inner.copy_(y)
        assert (store[:32] == 7).all()
        assert (store[-32:] == 7).all()
    assert torch.equal(x, before[0])
    assert torch.equal(weight, before[1])


def test_two_threads_at_once() -> None:
    """Two threads of a program can call the kernels at the same time: they share no memory."""
    cases = [(images(1, 40, 21, 19), torch.randn(48, 40, 3, 3)) for _ in range(2)]
    expected = [functions.convolution("winograd", x, w, None, padding=1) for x, w in cases]
    wrong: list[str] = []

    def work(i: int) -> None:
        for _ in range(20):
            y = functions.convolution("winograd", *cases[i], None, padding=1)
            z, _, _ = functions.norm(y, Norm(act="relu"), border=1)
            if not torch.equal(y, expected[i]) or not torch.isfinite(z).all():
                wrong.append(f"thread {i}")

    workers = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_equal_bytes() -> None:
    a = torch.randn(1000, 700)
    b = a.clone()
    assert native.have_equal_bytes(a, b)
    for place in (0, 123_456, a.numel() - 1):
        b.view(-1)[place] += 1
        assert not native.have_equal_bytes(a, b)
        b.copy_(a)
    nan = torch.full((3,), float("nan"))
    assert native.have_equal_bytes(nan, nan.clone())
    assert not native.have_equal_bytes(torch.zeros(3), -torch.zeros(3))


def test_a_lack_of_memory_is_an_error() -> None:
    """Work that needs more memory than any machine has raises MemoryError, and later calls work."""
    x = torch.zeros(1).expand(1, 2**30 - 64, 4, 4)
    with pytest.raises((MemoryError, RuntimeError), match="memory"):
        functions.convolution("winograd", x, torch.zeros(1).expand(1, 2**30 - 64, 3, 3), None)
    y = images(1, 8, 4, 4)
    assert functions.convolution("winograd", y, torch.randn(8, 8, 3, 3), None).isfinite().all()
