"""If any kernel of an operator fails, PyTorch computes the operator, or an error is raised.

A failure is injected into each kernel of each operator. The fallback is reported once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.launches import forbid_fallback
from fastcyclegan import accelerate
from fastcyclegan.devtools.dry_run import dry_run
from fastcyclegan.engine.batching import run_paired
from fastcyclegan.kernels import (
    _fallback,
    _launch,
    _operator,
    _tiles,
    instance_norm,
    instance_norm_ref,
    reflect_conv2d,
)
from fastcyclegan.kernels import residual_block as residual
from fastcyclegan.kernels._failures import KernelError
from fastcyclegan.kernels.norm_conv import norm_conv
from fastcyclegan.kernels.reflect_conv import reflect_conv
from fastcyclegan.kernels.zero_conv import zero_conv
from fastcyclegan.nn.networks import Discriminator, Generator, UnetGenerator
from fastcyclegan.testing import assert_parity
from tests.kernels import norms, reflect_convs, zero_convs
from tests.kernels import test_norm_conv as norm_convs
from tests.kernels import test_residual_block as blocks
from tests.kernels.arguments import impl
from tests.planted import ERRORS, LaunchRecorder, clear_failures, failure_warnings, plant

FP32 = torch.float32


pytestmark = pytest.mark.usefixtures("auto_is_triton")


# --- Layers: their results with the kernels, required or not, and the results to compare with --------------


@dataclass(frozen=True)
class Layer:
    ours: Callable[[bool], dict[str, Tensor]]
    reference: Callable[[], dict[str, Tensor]]
    truth: Callable[[], dict[str, Tensor]]

    def check(self, results: dict[str, Tensor]) -> None:
        reference, truth = self.reference(), self.truth()
        for name, result in results.items():
            assert_parity(name, result, reference[name], truth[name], FP32)


def norm_layer(shape: tuple[int, ...]) -> Layer:
    x, residual, dy = (norms.in_layout(torch.randn(shape), False) for _ in range(3))
    tensors = [x, torch.randn(shape[1]), torch.randn(shape[1]), residual, dy]
    options = {"eps": 1e-5, "act": "leaky_relu", "slope": 0.1}
    return Layer(
        lambda required: dict(
            norms.gradients(lambda *a, **k: instance_norm(*a, impl=impl(required), **k), *tensors, **options)
        ),
        lambda: dict(norms.gradients(norms.torch_instance_norm, *tensors, **options)),
        lambda: dict(norms.gradients(instance_norm_ref, *(t.double() for t in tensors), **options)),
    )


def layer_from(module: Any, tensors: Any, ours: Callable[[bool], Any], reference: Any) -> Layer:
    """Return a layer whose results are computed by the function ``results`` of ``module``, a test module.

    ``tensors`` are x, lists of weights, and an upstream gradient.
    """
    exact = [[t.double() for t in ts] if isinstance(ts, list) else ts.double() for ts in tensors]
    return Layer(
        lambda required: module.results(ours(required), *tensors),
        lambda: module.results(reference, *tensors),
        lambda: module.results(reference, *exact),
    )


def reflect_conv_layer(case: Any) -> Layer:
    tensors = reflect_convs.operands(case, "cpu")
    return layer_from(
        reflect_convs,
        tensors,
        lambda r: lambda x, w, b: reflect_conv2d(x, w, b, padding=case.padding, impl=impl(r)),
        reflect_convs.by_pytorch(case),
    )


def last_layer() -> Layer:
    """Return the generator's last layer with the norm before it and the tanh after it."""
    x, weights, biases, dy = reflect_convs.operands(
        reflect_convs.Case("", (1, 12, 3, 4), 3, bias=True), "cpu"
    )
    weights = [0.1 * w for w in weights]
    options: dict[str, Any] = {"padding": 1, "norm": True, "act": "relu", "tanh": True}

    def reference(x: Tensor, weights: Any, biases: Any) -> Tensor:
        y = torch.relu(nn.functional.instance_norm(x.contiguous()))
        return torch.tanh(reflect_convs.reflect_conv2d_ref(y, weights, biases, padding=1))

    return layer_from(
        reflect_convs,
        (x, weights, biases, dy),
        lambda r: lambda x, w, b: reflect_conv(x, w, b or [], required=r, **options),
        reference,
    )


def residual_block_layer() -> Layer:
    return layer_from(
        blocks,
        blocks.operands(blocks.Case("", (2, 9, 2, 3), 2), "cpu"),
        lambda r: lambda x, a, b: residual(x, a, b, impl=impl(r)),
        blocks.torchs_own,
    )


def zero_conv_layer(case: Any) -> Layer:
    return layer_from(
        zero_convs,
        zero_convs.operands(case, "cpu"),
        lambda r: lambda x, w, b: zero_conv(x, w, b, **case.options, required=r),
        zero_convs.by_pytorch(case),
    )


def norm_conv_layer(case: Any) -> Layer:
    tensors, dy = norm_convs.operands(case, "cpu")
    options: dict[str, Any] = {"norm": case.norm, "act": case.act, "slope": 0.2, "border": case.border}

    def ours(required: bool) -> Any:
        return lambda x, w, b, nw, nb: norm_conv(
            x, w, b, case.conv, norm_weight=nw, norm_bias=nb, required=required, **options
        )

    def results(run: Any, wide: bool = False) -> dict[str, Tensor]:
        inputs = [t.double() if wide and t is not None else t for t in tensors]
        return {str(i): t for i, t in enumerate(norm_convs.results(run, inputs, dy.double() if wide else dy))}

    plain = lambda *t: norm_convs.plain(*t, case)  # noqa: E731
    return Layer(
        lambda required: results(ours(required)), lambda: results(plain), lambda: results(plain, True)
    )


LAYERS: dict[str, Callable[[], Layer]] = {
    "a norm in one launch": lambda: norm_layer((2, 5, 4, 4)),
    "a norm of several tiles": lambda: norm_layer((1, 20, 13, 11)),
    "a reflected convolution": lambda: reflect_conv_layer(reflect_convs.SMALL),
    "from images": lambda: reflect_conv_layer(reflect_convs.SMALL_IMAGES[0]),
    "to images": lambda: reflect_conv_layer(reflect_convs.SMALL_IMAGES[1]),
    "the generator's last layer": last_layer,
    "a residual block": residual_block_layer,
    "down": lambda: zero_conv_layer(zero_convs.DOWN),
    "up, with the norm": lambda: zero_conv_layer(zero_convs.UP),
    "to images, zero-padded": lambda: zero_conv_layer(zero_convs.LAST),
    "norm_conv with a border": lambda: norm_conv_layer(norm_convs.CASES[0]),
    "norm_conv without a norm": lambda: norm_conv_layer(norm_convs.CASES[1]),
}


@pytest.mark.parametrize("name", LAYERS)
def test_results_stay_right_whichever_kernel_fails(name: str) -> None:
    """If one of a layer's kernels fails, all its results still obey the parity rule.

    Each kernel fails in turn, with one of the errors. There is one warning, and the failing kernel is not
    launched a second time. If the kernels are required, an error is raised instead.
    """
    layer, recorder = LAYERS[name](), LaunchRecorder()
    with _launch.observe(recorder):
        layer.ours(True)
    kernels = list(dict.fromkeys(recorder.kernels))
    for n, kernel in enumerate(kernels):
        error, _, cause = ERRORS[n % len(ERRORS)]
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            clear_failures(patch)
            failing = plant(patch, kernel, error)
            layer.check(layer.ours(False))
            attempts = failing.launches
            assert 1 <= attempts <= 2  # once in the forward, once in the backward
            # This is tested only for the first kernel of the forward and the last of the backward, because
            # all kernels take the same path.
            if n in (0, len(kernels) - 1):
                layer.check(layer.ours(False))
                assert failing.launches == attempts
            (warning,) = failure_warnings(caught)
            assert f": kernel {kernel} does not " in warning
            if n in (0, len(kernels) - 1):
                with pytest.raises(
                    KernelError,
                    match=(
                        rf"^kernel {kernel} does not .* \(.*{cause}.*To reproduce it: python -m"
                        r" .*show_failure"
                    ),
                ):
                    layer.ours(True)


def test_every_kernel_is_launched_by_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = LaunchRecorder(dry=True)
    monkeypatch.setattr(_tiles, "scale", lambda: _tiles.INTERPRETER)
    with dry_run(), _launch.observe(recorder):
        for layer in LAYERS.values():
            layer().ours(True)
    # The probe for descriptors is launched separately, and a driver that rejects them is not a failure.
    assert set(recorder.kernels) | {"_descriptor_copy_kernel"} >= set(_launch.REGISTRY)


def test_a_fallback_is_an_error_in_tests_and_benches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The warning is an error in this repository's pytest, and in bench/ after ``forbid_fallback``."""
    plant(monkeypatch, "_instance_norm_small_fwd_kernel")
    with pytest.raises(RuntimeWarning, match="PyTorch computes the layers"):
        instance_norm(torch.randn(1, 3, 4, 4))
    # The warning is raised again, even though it has already been reported.
    warnings.resetwarnings()
    forbid_fallback()
    with pytest.raises(RuntimeWarning, match="PyTorch computes the layers"):
        instance_norm(torch.randn(1, 3, 4, 4))


# --- Callers ------------------------------------------------------------------------------------------------


def test_a_compiled_caller_falls_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 5, 4, 4, requires_grad=True)
    plant(monkeypatch, "_instance_norm_small_bwd_kernel")
    run = torch.compile(lambda x: 2 * instance_norm(x + 1, act="relu"), fullgraph=True, backend="aot_eager")
    with pytest.warns(RuntimeWarning, match="^instance_norm: kernel _instance_norm_small_bwd_kernel"):
        (gradient,) = torch.autograd.grad(run(x), x, torch.ones_like(x))
    (expected,) = torch.autograd.grad(2 * instance_norm_ref(x + 1, act="relu"), x, torch.ones_like(x))
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("name", ["auto", "triton"])
def test_networks_and_modules_pass_on_whether_triton_is_required(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks and modules require the kernels only if impl="triton" is given explicitly.

    A kernel's failure is then an error, in the forward and in the backward.
    """
    calls: set[tuple[str, bool]] = set()

    def record(op: str, run: Any, plain: Any, args: Any, required: bool) -> Any:
        calls.add((op, required))
        return run(*args)

    monkeypatch.setattr(_operator, "run_or_fall_back", record)
    monkeypatch.setattr(_fallback, "run_or_fall_back", record)
    module = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU())
    nets = [
        Generator(ngf=8, n_blocks=1, impl=name),
        UnetGenerator(ngf=4, num_downs=5, impl=name),
        Discriminator(ndf=8, impl=name),
    ]
    pair = [Discriminator(ndf=8, impl=name) for _ in range(2)]
    accelerate(module, name)
    runs: list[Any] = [module, *nets, lambda x: run_paired(pair, x, "triton")]
    with dry_run():
        for run in runs:
            y = run(torch.zeros(2, 3, 32, 32, requires_grad=True))
            y.backward(torch.zeros_like(y))
    operators = ("instance_norm", "reflect_conv", "residual_block", "norm_conv", "zero_conv")
    assert calls == {
        (f"{op}_{direction}", name == "triton") for op in operators for direction in ("fwd", "bwd")
    }
