"""Train on the caller's own loaders of tensors.

Every supported kind of loader works, training equals training on files, and unusable input is rejected.
"""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fastcyclegan import CycleGAN
from fastcyclegan.data.fit import ImageRequirements
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.data.tensor_loader import TensorLoader, naming_dead_workers
from fastcyclegan.errors import UserError
from tests.models import TINY, same, tensors


class Paired:
    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Any:
        return ({"A": tensors(2, i), "B": tensors(2, 10 + i), "A_paths": ["x"] * 2} for i in range(4))


@pytest.mark.parametrize(
    ("loaders", "per_epoch"),
    [
        # Labels are ignored, B is started again, and the surplus of B is dropped if the last batch of A is
        # smaller.
        (
            (
                DataLoader(TensorDataset(tensors(5), torch.arange(5)), batch_size=2),
                DataLoader(tensors(2, 1), batch_size=2),
            ),
            3,
        ),
        ((Paired(),), 4),
        ((DataLoader(TensorDataset(tensors(4), tensors(4, 1)), batch_size=2),), 2),
        (([tensors(2)], [((tensors(2, 1) + 1) * 127.5).to(torch.uint8)] * 3), 3),
    ],
    ids=["two", "dicts", "pairs", "lists"],
)
def test_trains_on_every_kind_of_loader(loaders: tuple[Any, ...], per_epoch: int) -> None:
    model = CycleGAN(**TINY, print_freq=1)
    records = model.fit(*loaders)
    assert [record["epoch"] for record in records] == [1] * per_epoch + [2] * per_epoch
    assert not same(model, CycleGAN(**TINY))


def test_trains_on_augmented_tensors() -> None:
    """Both spellings of the setting train alike, and otherwise than without it."""
    loaders = [tensors(2)] * 3, [tensors(2, 1)] * 3
    models = [CycleGAN(**TINY, diffaugment=names) for names in ("color,cutout", ["cutout", "color"], None)]
    for model in models:
        model.fit(*loaders)
    assert same(models[0], models[1])
    assert not same(models[0], models[2])
    with pytest.raises(UserError, match=r"diffaugment must be a comma-separated list of .*, got 'blur'"):
        CycleGAN(diffaugment=["color", "blur"])


def test_trains_on_tensors_exactly_as_on_files(dataset: Path, tmp_path: Path) -> None:
    """Without pools, the same samples in the same order give the same weights from tensors as from files."""
    from fastcyclegan.training.start import Overrides, start

    settings = {**TINY, "pool_size": 0, "n_epochs_decay": 0, "lr_policy": "constant", "max_iters": 4}
    by_files = CycleGAN(**settings)
    by_files.fit(dataset)
    config = CycleGAN(**settings, dataroot=dataset).config
    batches = [
        (batch.A, batch.B)
        for batch in start(config, lambda text: None, overrides=Overrides(files=False)).loader.batches(0, 4)
    ]
    by_tensors = CycleGAN(**settings)
    by_tensors.fit(batches)
    assert same(by_files, by_tensors)


@pytest.mark.parametrize(
    ("A", "B", "message"),
    [
        (
            iter([tensors(1)]),
            iter([tensors(1)]),
            "a loader is empty or has no length; pass iterations_per_epoch",
        ),
        ([tensors(1)], None, "a single loader must yield .* or pairs of tensors, got Tensor"),
        ([{"A": tensors(1)}], None, r"images of domain B must be tensors \[N, 3, H, W\], got NoneType"),
        (
            [tensors(1)[:, :1]],
            [tensors(1)],
            r"images of domain A must be tensors \[N, 3, H, W\], got shape \[1, 1, 16, 16\]",
        ),
        (
            [tensors(1)[:, :, :15]],
            [tensors(1)],
            "domain A are 16x15, but the networks need sides that are multiples of 4 and at least 8",
        ),
        (
            [tensors(1)],
            [tensors(1) * 128 + 127],
            r"images of domain B must be in \[-1, 1\], got values from .* to 25",
        ),
        (
            [tensors(1).long()],
            [tensors(1)],
            r"images of domain A must be floating point in \[-1, 1\] or uint8, got torch.int64",
        ),
        ("folder", [tensors(1)], "A and B must both be folders or both be loaders"),
        (None, None, "no images given: pass a dataset folder, one folder per domain, or loaders"),
    ],
)
def test_rejects_unusable_input(A: Any, B: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        CycleGAN(**TINY).fit(A, B)


def spoiled(value: float) -> torch.Tensor:
    images = tensors(2, 5)
    images[1, 2, 3, 4] = value
    return images


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (math.nan, "got NaN"),
        (math.inf, "got values from .* to inf"),
        (-math.inf, "got values from -inf to "),
        (3.25, "got values from .* to 3.25"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_every_batch_is_checked_before_it_is_trained_on(value: float, found: str, dtype: Any) -> None:
    """The third batch of B is bad. The model is that of the two iterations before it."""
    A = [tensors(2, i) for i in range(4)]
    B = [tensors(2, 10 + i) for i in range(2)]
    model, whole = CycleGAN(**TINY), CycleGAN(**TINY)
    message = rf"^batch 3 of loader B: images of domain B must be in \[-1, 1\], {found}"
    with pytest.raises(UserError, match=message):
        model.fit(A, [*B, spoiled(value).to(dtype), tensors(2)])
    whole.fit(A, B, max_iters=2, iterations_per_epoch=4)
    assert model.iteration == 2
    assert same(model, whole)


def test_the_number_is_that_of_the_batch_in_its_loader() -> None:
    """B is shorter and starts again; its images change meanwhile."""

    class Changes:
        passes = 0

        def __len__(self) -> int:
            return 2

        def __iter__(self) -> Any:
            self.passes += 1
            return iter([tensors(1), tensors(1) if self.passes < 3 else spoiled(math.nan)])

    with pytest.raises(UserError, match=r"^batch 2 of loader B: "):
        CycleGAN(**TINY).fit([tensors(1)] * 6, Changes())
    pairs = [(tensors(2), tensors(2)), (spoiled(math.nan), tensors(2))]
    with pytest.raises(UserError, match=r"^batch 2 of the loader: images of domain A .* got NaN"):
        CycleGAN(**TINY).fit(pairs)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (tensors(1)[:0], r"tensors \[N, 3, H, W\], got shape \[0, 3, 16, 16\]"),
        (tensors(1)[:, :1], r"tensors \[N, 3, H, W\], got shape \[1, 1, 16, 16\]"),
        (tensors(1) > 0, "floating point in .* or uint8, got torch.bool"),
        (tensors(1).to(torch.complex64), "floating point in .* or uint8, got torch.complex64"),
        (tensors(1).to("meta"), r"tensors \[N, 3, H, W\], got one on the meta device"),
        (tensors(1).to_sparse(), r"tensors \[N, 3, H, W\], got one of layout torch.sparse_coo"),
        (torch.nested.nested_tensor([tensors(1)[0]]), r"tensors \[N, 3, H, W\], got one that is nested"),
        (None, r"tensors \[N, 3, H, W\], got NoneType"),
    ],
)
def test_later_batches_are_checked_too(bad: Any, message: str) -> None:
    model = CycleGAN(**TINY)
    with pytest.raises(UserError, match=f"^batch 2 of loader A: images of domain A must be {message}"):
        model.fit([tensors(1), bad], [tensors(1)])
    assert model.iteration == 1


def test_wgangp_needs_images_of_equal_size_in_every_batch() -> None:
    """A batch without them is refused before anything is updated."""
    A = [tensors(1, n) for n in range(3)]
    B = [A[0], A[1], torch.nn.functional.interpolate(A[2], scale_factor=2)]
    model, same_model = (CycleGAN(**TINY, gan_mode="wgangp") for _ in range(2))
    message = r"batch 3: images of A and B must have the same size, .* got 16x16 and 32x32"
    with pytest.raises(UserError, match=message):
        model.fit(A, B)
    same_model.fit(A[:2], B[:2], n_epochs_decay=0)
    assert same(model, same_model)


def test_images_that_belong_to_the_callers_graph_or_inference_can_be_trained_on() -> None:
    """Neither a gradient nor the caller's tensors are touched."""
    leaf = tensors(2).requires_grad_()
    with torch.inference_mode():
        inferred = tensors(2) * 1
    models = [CycleGAN(**TINY, max_iters=2) for _ in range(3)]
    models[0].fit([tensors(2)], [tensors(2)])
    models[1].fit([leaf], [leaf * 1])
    models[2].fit([inferred], [inferred])
    assert leaf.grad is None
    assert same(models[0], models[1])
    assert same(models[0], models[2])


def test_images_of_eight_bits_are_never_out_of_range() -> None:
    extreme = torch.tensor([0, 255], dtype=torch.uint8).repeat(1, 3, 16, 8)
    model = CycleGAN(**TINY, max_iters=2)
    model.fit([extreme], [extreme])
    assert model.iteration == 2


def test_a_loader_without_a_length_needs_iterations_per_epoch() -> None:
    model = CycleGAN(**TINY)
    model.fit(iter([(tensors(1), tensors(1))] * 4), iterations_per_epoch=2)
    assert model.iteration == 4
    with pytest.raises(
        UserError,
        match="a loader ended after 3 batches and yields no more; pass one that can be iterated more than",
    ):
        CycleGAN(**TINY).fit(iter([(tensors(1), tensors(1))] * 3), iterations_per_epoch=2)


def test_a_dead_process_of_the_callers_loader_is_named() -> None:
    class Dies(Dataset[torch.Tensor]):
        def __getitem__(self, index: int) -> torch.Tensor:
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

        def __len__(self) -> int:
            return 4

    with (
        pytest.raises(UserError, match=r"a process of a loader died \(.*\); fewer workers need less memory"),
        naming_dead_workers(),
    ):
        next(iter(DataLoader(Dies(), num_workers=1)))
    with pytest.raises(RuntimeError, match="another error"), naming_dead_workers():
        raise RuntimeError("another error")


@pytest.mark.parametrize("count", [0, -1, 2.5, True, "3"])
def test_iterations_per_epoch_must_be_a_positive_integer(count: Any) -> None:
    with pytest.raises(UserError, match="iterations_per_epoch must be a positive integer, got"):
        CycleGAN(**TINY).fit([tensors(1)], [tensors(1)], iterations_per_epoch=count)


# --- The loader itself --------------------------------------------------------------------------------------

CPU = torch.device("cpu")
SINGLE: dict[str, Any] = {"sides": ("A",), "numbers": 2}


@pytest.mark.parametrize(
    "loader",
    [
        [tensors(2, 1), tensors(2, 2), tensors(1, 3)],
        [(tensors(2, 1), 5), [tensors(2, 2), "label"], (tensors(1, 3),)],
        [{"A": tensors(2, 1), "A_paths": ["x"]}, {"A": tensors(2, 2), "B": 3}, {"A": tensors(1, 3)}],
    ],
    ids=["tensors", "tuples", "dicts"],
)
def test_batches_of_single_images(loader: list[Any]) -> None:
    made = TensorLoader(loader, None, ImageRequirements(channels=(3,)), CPU, 0, **SINGLE)
    assert made.first.keys() == {"A"}
    assert torch.equal(made.first["A"], tensors(2, 1))
    assert (made.plan.iterations_per_epoch, made.plan.paired) == (3, True)
    seen = [tensors(2, 1), tensors(2, 2), tensors(1, 3), tensors(2, 1)]
    for batch, images in zip(made.batches(0, 4), seen, strict=True):
        assert torch.equal(batch.A, images)
        assert batch.images.keys() == batch.paths.keys() == {"A"}
        assert {len(sample.numbers) for sample in batch.samples} == {2}
        assert len(batch.samples) == len(images)


@pytest.mark.parametrize(
    ("A", "B", "message"),
    [
        (
            [tensors(1)],
            [tensors(1)],
            "two loaders were given, but this run trains on single images",
        ),
        ([{"B": tensors(1)}], None, r"batch 1 of the loader: images of domain A must be tensors .* NoneType"),
        (
            [tensors(1)[:, :1]],
            None,
            r"batch 1 of the loader: images .* got shape \[1, 1, 16, 16\]",
        ),
        (["x"], None, "images of domain A must be tensors .*, got str"),
    ],
)
def test_rejects_what_are_no_single_images(A: Any, B: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TensorLoader(A, B, ImageRequirements(channels=(3,)), CPU, 0, **SINGLE)


def test_the_first_images_and_the_numbers_of_pairs() -> None:
    """Each domain has its channels. The random numbers are those of a plan of files."""
    A, B = [tensors(3, 1)[:, :1]], [tensors(2, 2)]
    made = TensorLoader(A, B, ImageRequirements(channels=(1, 3)), CPU, 7, numbers=3)
    assert [made.first[side].shape for side in "AB"] == [(2, 1, 16, 16), (2, 3, 16, 16)]
    (batch,) = made.batches(0, 1)
    assert torch.equal(batch.B, tensors(2, 2))
    assert batch.samples == [Plan(7, 2, 2, 2, True, False, numbers=3).sample(1, i) for i in range(2)]


def endless(*counts: int) -> Any:
    """Return a loader without a length, of one batch for each of ``counts``, which are numbers of images."""

    class Loader:
        def __iter__(self) -> Any:
            return (tensors(count, n) for n, count in enumerate(counts))

    return Loader()


@pytest.mark.parametrize(
    ("A", "B", "per_epoch", "message"),
    [
        (
            [tensors(1)] * 2,
            [tensors(1)] * 3,
            None,
            "loader A has 2 batches and loader B has 3, but each image",
        ),
        (endless(1, 1), endless(1, 1, 1), 3, "batch 1 of loader A meets batch 3 of loader B"),
        ([tensors(2)], [tensors(3)], None, "batch 1: there are 2 images of A and 3 of B"),
    ],
    ids=["lengths", "no lengths", "batches"],
)
def test_loaders_of_pairs_must_match(A: Any, B: Any, per_epoch: int | None, message: str) -> None:
    """Without pairs, the surplus is dropped."""
    required, cpu = ImageRequirements(), torch.device("cpu")
    with pytest.raises(UserError, match=f"^{message}"):
        list(TensorLoader(A, B, required, cpu, 0, per_epoch, paired=True).batches(0, 3))
    assert len(list(TensorLoader(A, B, required, cpu, 0, per_epoch).batches(0, 3))) == 3
