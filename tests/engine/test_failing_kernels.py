"""Training with kernels that fail, or with a driver that does not accept tensor descriptors.

Training continues, warns once and computes the same results.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcyclegan.config import EngineConfig, LossConfig, ModelConfig, OptimConfig
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.devtools.recorded_graph import RecordedGraph
from fastcyclegan.engine import Engine
from fastcyclegan.kernels import _launch
from fastcyclegan.kernels import descriptor_launch as descriptors
from fastcyclegan.kernels._failures import KernelError
from fastcyclegan.kernels.dispatch import as_on_gpu
from fastcyclegan.recipes.cyclegan import CycleGANRecipe
from fastcyclegan.testing import (
    assert_parity,
    copy_of,
    is_cancelled_bias,
    random_batch,
    seeded_networks,
    tf32,
)
from tests.engine.test_cuda_graph import Discriminators
from tests.planted import ERRORS, Failing, clear_failures, failure_warnings

FP32, FP64 = torch.float32, torch.float64
SMALL = ModelConfig(netG="resnet_1blocks", ngf=4, ndf=4, netD="n_layers", n_layers_D=2)
CPU = torch.device("cpu")
OPTIONS = EngineConfig(graph="off")
LOSS = LossConfig(pool_size=0)
DRIVER = "Triton Error [CUDA]: Failed to create tensor map descriptor: invalid argument\nelemType=10 rank=2\n"


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make "auto" select the kernels, in a process without earlier failures or descriptor queries."""
    clear_failures(monkeypatch)
    monkeypatch.setattr(descriptors, "_answers", {CPU: ""})
    monkeypatch.setattr(descriptors, "_refused", set())
    with as_on_gpu(), tf32(False):
        yield


def engine_of(
    nets: Mapping[str, nn.Module], impl: str, recipe: Callable[[LossConfig], CycleGANRecipe]
) -> Engine:
    nets = copy_of(nets)
    for net in nets.values():
        for module in net.modules():
            if hasattr(module, "impl"):
                module.impl = impl  # type: ignore[assignment]
    return Engine(recipe(LOSS), nets, OptimConfig(), CPU, options=OPTIONS)


def trained(
    engine: Engine, dtype: torch.dtype, iterations: int = 2
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Train, and return the losses of each iteration and the gradients of the first.

    The gradients of the same layer in both networks of a phase are concatenated.
    """
    names = {id(p): (net, key) for net, module in engine.nets.items() for key, p in module.named_parameters()}
    gradients: dict[str, list[Tensor]] = {}

    def keep(optimizer: torch.optim.Optimizer, *_: object) -> None:
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            net, key = names[id(p)]
            if not is_cancelled_bias(engine.nets[net], key):
                gradients.setdefault(f"{net[0]}.{key.rpartition('.')[0]}", []).append(
                    p.grad.flatten().clone()
                )

    hooks = [optimizer.register_step_pre_hook(keep) for optimizer in engine.optimizers.values()]
    losses = []
    for n in range(iterations):
        losses.append(engine.step(random_batch(16, Plan(0, 9, 9), n, dtype=dtype), 2e-4).clone())
        for hook in hooks:
            hook.remove()
    return losses, {name: torch.cat(parts) for name, parts in gradients.items()}


def assert_trains_alike(
    model: ModelConfig, recipe: Callable[[LossConfig], CycleGANRecipe], iterations: int = 2
) -> None:
    """Train with the current kernels, with the reference and in float64, and apply the parity rule.

    The rule limits the errors of the kernels' losses and gradients by those of the reference.
    """
    nets = seeded_networks(model)
    kernels = engine_of(nets, "auto", recipe)
    assert kernels.choices.kernel_networks
    assert any(one.gradients for one in kernels.phase_optimizers.values())
    ours, reference = (
        trained(engine, FP32, iterations) for engine in (kernels, engine_of(nets, "reference", recipe))
    )
    exact = {name: net.double() for name, net in copy_of(nets).items()}
    truth = trained(engine_of(exact, "reference", recipe), FP64, iterations)
    assert len(ours[1]) >= 4
    for name, gradient in ours[1].items():
        assert_parity(name, gradient, reference[1][name], truth[1][name], FP32)
    for losses in zip(ours[0], reference[0], truth[0], strict=True):
        assert_parity("losses", *losses, FP32)


def failing_kernels(
    monkeypatch: pytest.MonkeyPatch, error: Callable[[], BaseException]
) -> dict[str, Failing]:
    kernels = {name: Failing(kernel, error) for name, kernel in _launch.REGISTRY.items()}
    monkeypatch.setattr(_launch, "REGISTRY", kernels)
    return kernels


@pytest.mark.parametrize(
    "error", [ERRORS[0][0], ERRORS[6][0]], ids=["no kernel compiles", "no kernel launches"]
)
def test_training_when_every_kernel_fails(
    error: Callable[[], BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch computes everything: generators, pairs, gradients in place, working copies.

    Each failing kernel is reported once and not tried again.
    """
    kernels = failing_kernels(monkeypatch, error)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_trains_alike(SMALL, CycleGANRecipe)
        reported = failure_warnings(caught)
        tried = {name: kernel.launches for name, kernel in kernels.items()}
        assert sum(tried.values()) > 0
        # Another engine in the same process does not try them again.
        trained(engine_of(seeded_networks(SMALL), "auto", CycleGANRecipe), FP32)
    assert (
        len(reported)
        == len(set(reported))
        == sum(count > 0 for count in tried.values())
        == len(failure_warnings(caught))
    )
    assert {name: kernel.launches for name, kernel in kernels.items()} == tried


def test_a_fallback_is_captured_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels fail during warm-up, before the capture.

    The graph therefore contains PyTorch's operators, and computes the same bits as they do without a graph.
    """
    failing_kernels(monkeypatch, ERRORS[6][0])
    capture, nets = RecordedGraph(), seeded_networks(SMALL)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*show_failure", RuntimeWarning)
        captured = Engine(
            CycleGANRecipe(LOSS),
            copy_of(nets),
            OptimConfig(),
            CPU,
            options=EngineConfig(graph="on"),
            capture=capture,
        )
        plain = Engine(CycleGANRecipe(LOSS), copy_of(nets), OptimConfig(), CPU, options=OPTIONS)
        assert captured.choices.kernel_networks
        for one, other in zip(*(trained(engine, FP32, 6)[0] for engine in (captured, plain)), strict=True):
            assert torch.equal(one, other)
    assert capture.replays > 1


def test_training_that_requires_the_kernels_ends_when_they_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_kernels(monkeypatch, ERRORS[0][0])
    with pytest.raises(
        KernelError, match=r"kernel \w+ does not compile on cpu, interpreted .*show_failure /"
    ):
        trained(engine_of(seeded_networks(SMALL), "triton", CycleGANRecipe), FP32)


def test_training_when_one_kernel_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch replaces the failing kernel, and the other kernels use its results.

    The failing kernel sums weight gradients, which accumulate in place.
    """
    broken = Failing(_launch.REGISTRY["_reflect_conv_wgrad_sum_kernel"], ERRORS[5][0], first=2)
    monkeypatch.setitem(_launch.REGISTRY, "_reflect_conv_wgrad_sum_kernel", broken)
    with pytest.warns(
        RuntimeWarning, match="^zero_conv: kernel _reflect_conv_wgrad_sum_kernel does not launch"
    ) as caught:
        assert_trains_alike(SMALL, Discriminators, 1)
    assert len(failure_warnings(list(caught))) == 1
    assert broken.launches >= 2


class Refusing:
    """A kernel that fails if it is launched with tensor descriptors, as if the driver did not accept them."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.refused, self.launched = kernel, 0, 0

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        def launch(*args: Any, **constants: Any) -> Any:
            self.refused += bool(constants.get("DESC"))
            self.launched += 1
            if constants.get("DESC"):
                raise RuntimeError(DRIVER)
            return self.kernel[grid](*args, **constants)

        return launch


def test_training_when_tensor_descriptors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every launch with descriptors fails. The kernels use pointers instead, and do not count as failed."""
    kernels = {name: Refusing(kernel) for name, kernel in _launch.REGISTRY.items()}
    monkeypatch.setattr(_launch, "REGISTRY", kernels)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_trains_alike(dataclasses.replace(SMALL, ndf=16), Discriminators, 1)
    reported = [str(w.message) for w in caught if "through pointers" in str(w.message)]
    refused = {name: kernel.refused for name, kernel in kernels.items() if kernel.refused}
    assert refused
    # Each kernel is reported once for each form of descriptors, however many iterations use it.
    assert len(reported) == len(set(reported)) == sum(refused.values())
    assert not failure_warnings(caught)
