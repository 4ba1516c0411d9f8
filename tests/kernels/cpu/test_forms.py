"""Tests of the kept forms of weights: they are made once, and again after every change of the weight."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from fastcyclegan.kernels.cpu.forms import WeightForms, form_of


class Maker:
    """Make a form, the doubled weight, and count how often that happens."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, weight: Tensor) -> Tensor:
        self.calls += 1
        return weight * 2


@pytest.fixture
def make() -> Maker:
    return Maker()


def weights(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(4, 3, 3, 3).to(dtype)


def test_a_form_is_made_once_for_all_blocks(make: Maker) -> None:
    forms, weight = WeightForms(), weights()
    for _ in range(2):
        with forms:
            first, second = form_of(weight, "double", make), form_of(weight, "double", make)
        assert first is second
        assert torch.equal(first, weight * 2)
    assert make.calls == 1


def test_without_a_block_a_form_is_made_on_every_call(make: Maker) -> None:
    weight = weights()
    with WeightForms():
        pass
    for _ in range(2):
        assert torch.equal(form_of(weight, "double", make), weight * 2)
    assert make.calls == 2


def test_each_name_has_its_own_form(make: Maker) -> None:
    weight = weights()
    with WeightForms():
        assert torch.equal(form_of(weight, ("times", 3), lambda w: w * 3), weight * 3)
        assert torch.equal(form_of(weight, ("times", 2), make), weight * 2)


def fused_step(weight: Tensor) -> None:
    weight.grad = torch.ones_like(weight)
    torch.optim.Adam([weight], fused=True).step()
    weight.grad = None


CHANGES: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda weight: weight.detach().mul_(3),
    "one element": lambda weight: weight.detach()[-1, -1, -1, -1].add_(1),
    "data": lambda weight: weight.data.add_(1),
    "numpy": lambda weight: weight.detach().numpy().__setitem__(0, 5),
    "fused Adam": fused_step,
    "sign of zero": lambda weight: weight.detach()[0, 0, 0, 0].neg_(),
    "storage": lambda weight: weight.detach().set_(torch.randn_like(weight)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_form_is_made_again_after_a_change(change: Callable[[Tensor], object], make: Maker) -> None:
    """Torch's version counter misses some of them: fused Adam's, and those through .data and numpy."""
    weight = torch.nn.Parameter(weights())
    weight.detach()[0, 0, 0, 0] = 0.0
    with WeightForms():
        form_of(weight, "double", make)
        change(weight)
        assert torch.equal(form_of(weight, "double", make), weight.detach() * 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slice", "expanded"])
def test_every_dtype_and_layout(dtype: torch.dtype, layout: str, make: Maker) -> None:
    """The copy of a slice or an expanded weight has other strides, and is compared by value."""
    weight = weights(dtype)
    if layout == "channels_last":
        weight = weight.contiguous(memory_format=torch.channels_last)
    if layout == "slice":
        weight = torch.randn(8, 3, 3, 5).to(dtype)[::2, :, :, 1:4]
    if layout == "expanded":
        weight = weight[:, :1].expand(4, 3, 3, 3)
    with WeightForms():
        for _ in range(2):
            assert torch.equal(form_of(weight, "double", make), weight * 2)
        assert make.calls == 1
        weight[2, 0, 1, 1] += 1
        assert torch.equal(form_of(weight, "double", make), weight * 2)
    assert make.calls == 2


def test_nan_does_not_make_a_form_again(make: Maker) -> None:
    weight = weights()
    weight[0, 0, 0, 0] = float("nan")
    with WeightForms():
        for _ in range(2):
            assert form_of(weight, "double", make)[0, 0, 0, 0].isnan()
    assert make.calls == 1


def test_a_form_is_dropped_at_the_end_of_a_block_that_did_not_use_it(make: Maker) -> None:
    forms, weight = WeightForms(), weights()
    with forms:
        form_of(weight, "double", make)
    with forms:
        pass
    with forms:
        form_of(weight, "double", make)
    assert make.calls == 2


def test_an_inner_block_keeps_what_the_outer_one_has_used(make: Maker) -> None:
    forms, weight, other = WeightForms(), weights(), weights()
    with forms:
        form_of(weight, "double", make)
        with forms:
            form_of(other, "double", make)
        form_of(weight, "double", make)
        assert make.calls == 2
        with WeightForms():
            form_of(weight, "double", make)
        assert make.calls == 3
        form_of(weight, "double", make)
    with forms:
        form_of(other, "double", make)
    assert make.calls == 3


def test_an_error_in_a_block_ends_it(make: Maker) -> None:
    weight = weights()
    forms = WeightForms()

    def fail(weight: Tensor) -> Tensor:
        raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"), forms:
        form_of(weight, "failing", fail)
    for _ in range(2):
        form_of(weight, "double", make)
    assert make.calls == 2  # in no block


def test_a_block_ends_in_its_own_thread_only(make: Maker) -> None:
    """While a thread is inside a block, the end of another thread's block drops nothing that it uses."""
    forms, weight = WeightForms(), weights()

    def other_thread() -> None:
        form_of(weight, "double", make)
        with forms:
            form_of(weight, "other", make)

    with forms:
        form_of(weight, "double", make)
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
        assert make.calls == 3  # the thread's first call is in no block
        form_of(weight, "double", make)
    assert make.calls == 3


def test_threads_get_the_right_forms() -> None:
    """Two threads share an object, and each changes its own weight before every use."""
    forms, problems = WeightForms(), []

    def work(seed: int) -> None:
        weight = torch.full((4, 3, 3, 3), float(seed))
        for _ in range(200):
            weight += 2
            with forms:
                if not torch.equal(form_of(weight, "double", lambda w: w * 2), weight * 2):
                    problems.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def test_another_weight_at_the_same_address(make: Maker) -> None:
    """A weight that was freed leaves its address to another one. Here one memory serves both."""
    memory = bytearray(4 * 36)
    with WeightForms():
        for value in (1.0, 2.0):
            weight = torch.frombuffer(memory, dtype=torch.float32).view(4, 1, 3, 3)
            weight.fill_(value)
            assert torch.equal(form_of(weight, "double", make), weight * 2)
            del weight
    assert make.calls == 2


def test_forms_of_inference_mode_can_be_used_outside_it(make: Maker) -> None:
    forms, weight = WeightForms(), torch.nn.Parameter(weights())
    with torch.inference_mode(), forms:
        form_of(weight, "double", make)
    with torch.no_grad(), forms:
        x = torch.ones(4, 3, 3, 3)
        assert torch.equal(x * form_of(weight, "double", make), weight * 2)
    with forms:
        assert not form_of(weight, "double", make).requires_grad
    assert make.calls == 1


def test_nothing_is_called_for_fake_tensors(make: Maker) -> None:
    """Operators ask for forms only where they compute, and not while torch.compile traces them."""

    @torch.library.custom_op("test_forms::double", mutates_args=())
    def double(weight: Tensor) -> Tensor:
        return form_of(weight, "double", make).clone()

    double.register_fake(torch.empty_like)
    with WeightForms():
        with FakeTensorMode() as mode:
            assert torch.ops.test_forms.double(mode.from_tensor(weights())).shape == (4, 3, 3, 3)
        assert make.calls == 0
        assert torch.ops.test_forms.double(weights()).shape == (4, 3, 3, 3)
    assert make.calls == 1
