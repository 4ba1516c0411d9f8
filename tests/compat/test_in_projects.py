"""Test the drop-in networks as projects use them: torch.func transforms, wrappers, copies and files."""

from __future__ import annotations

import copy
import gc
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from fastcyclegan import compat
from fastcyclegan.engine.batching import why_not_batched, why_not_paired
from fastcyclegan.testing import assert_parity, parameters_that_count, relative_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INSTANCE = compat.get_norm_layer("instance")


def small(kind: str, impl: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if kind == "G":
        net: nn.Module = compat.ResnetGenerator(3, 3, 2, INSTANCE, n_blocks=1, impl=impl)
    else:
        net = compat.NLayerDiscriminator(3, 2, 1, INSTANCE, impl=impl)
    # The images are large enough that no norm is over 2 x 2 values, where a rounding error can become large.
    return net.to(DEVICE), torch.randn(2, 3, 16, 16, device=DEVICE)


def gradients(net: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(net.parameters())))


def test_half_precision_networks_can_be_chained() -> None:
    for impl in ("reference", "triton"):
        (G, x), (D, _) = small("G", impl), small("D", impl)
        for dtype in (torch.bfloat16, torch.float16):
            with torch.no_grad():
                y = copy.deepcopy(D).to(dtype)(copy.deepcopy(G).to(dtype)(x.repeat(1, 1, 2, 2).to(dtype)))
            assert y.dtype == dtype


@pytest.mark.parametrize("kind", ["G", "D"])
def test_torch_func_transforms(kind: str) -> None:
    """With impl="auto", PyTorch's operators compute per-image gradients, vmap and forward mode.

    All results are in float64, whose rounding error is 1e-16.
    """
    net, x = (value.double() for value in small(kind, "auto"))
    weights = dict(net.named_parameters())

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        y: Tensor = functional_call(net, parameters, (image[None],))
        return y.square().mean()

    each = vmap(grad(loss), in_dims=(None, 0))(weights, x)
    for n, image in enumerate(x):
        wanted = dict(zip(weights, gradients(net, net(image[None]).square().mean()), strict=True))
        for name in parameters_that_count(net):
            assert relative_error(each[name][n], wanted[name]) < 1e-12, name
    assert relative_error(vmap(lambda image: net(image[None])[0])(x), net(x)) < 1e-12
    tangent, step = torch.randn_like(x), 1e-7  # not smaller: rounding of 1e-16 is divided by the step
    slope = jvp(net, (x,), (tangent,))[1]
    secant = (net(x + step * tangent) - net(x - step * tangent)) / (2 * step)
    torch.testing.assert_close(slope, secant, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "transform", [lambda net, x: grad(lambda x: net(x).sum())(x), lambda net, x: jvp(net, (x,), (x,))]
)
def test_explicitly_requested_kernels_reject_transforms(
    transform: Callable[[nn.Module, Tensor], object],
) -> None:
    net, x = small("G", "triton")
    with pytest.raises(
        ValueError,
        match=r"does not support torch.func's transforms or forward-mode differentiation; use impl='auto'",
    ):
        transform(net, x)


def _run_in_parallel(net: nn.Module, x: Tensor) -> None:
    """Run two backward passes of ``net`` in DistributedDataParallel.

    On return, the wrapper is freed before the process group. If the wrapper freed the group, it would wait
    for threads of the group, which wait for the interpreter.
    """
    parallel = nn.parallel.DistributedDataParallel(net)
    for _ in range(2):
        net.zero_grad()
        parallel(x).square().mean().backward()


@pytest.mark.parametrize(("kind", "impl"), [("G", "reference"), ("D", "reference"), ("D", "triton")])
def test_distributed_data_parallel(kind: str, impl: str, tmp_path: Path) -> None:
    net, x = small(kind, impl)
    wanted = gradients(net, net(x).square().mean())
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1
    )
    try:
        _run_in_parallel(net, x)
        gc.collect()
    finally:
        torch.distributed.destroy_process_group()
    for p, gradient in zip(net.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, gradient)


@pytest.mark.parametrize(("kind", "impl"), [("G", "reference"), ("D", "triton")])
def test_grad_scaler_and_autocast(kind: str, impl: str) -> None:
    net, x = small(kind, impl)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=8.0)
    before = [p.detach().clone() for p in net.parameters()]
    with torch.autocast(DEVICE, torch.bfloat16):
        loss = net(x).square().mean()
    wanted = gradients(net, loss)
    with torch.autocast(DEVICE, torch.bfloat16):
        loss = net(x).square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    for p, old, gradient in zip(net.parameters(), before, wanted, strict=True):
        # The scale is a power of two, so it does not change the rounding.
        torch.testing.assert_close(p.detach(), old - 0.1 * gradient)


class Around(nn.Module):
    """A model as in a project, which contains two of our networks."""

    def __init__(self, impl: str) -> None:
        super().__init__()
        self.G, self.D = small("G", impl)[0], small("D", impl)[0]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.D(self.G(x)).mean() + (self.G(x) - x).abs().mean()
        return y


def test_compiling_the_outer_model() -> None:
    """Compare a compiled model with the uncompiled one by the parity rule.

    Gradients are summed in another order, so they are not bit-identical. Biases that cancel are left out.
    """
    net, x = Around("auto"), torch.randn(1, 3, 16, 16, device=DEVICE)
    exact, compiled = copy.deepcopy(net).double(), torch.compile(net, backend="aot_eager", fullgraph=True)
    losses = [run(x.to(next(run.parameters()).dtype)) for run in (compiled, net, exact)]
    assert_parity("loss", *losses, torch.float32)
    grads = [
        dict(zip(dict(net.named_parameters()), gradients(model, loss), strict=True))
        for model, loss in zip((net, net, exact), losses, strict=True)
    ]
    for name in parameters_that_count(net):
        assert_parity(name, *(by_name[name] for by_name in grads), torch.float32)


@pytest.mark.parametrize(("kind", "impl"), [("G", "reference"), ("D", "triton")])
def test_copies_files_half_precision_and_layouts(kind: str, impl: str) -> None:
    net, x = small(kind, impl)
    net = net.eval().requires_grad_(False)
    wanted, file = net(x), io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for other in (copy.deepcopy(net), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), wanted)
    plain = small(kind, "reference")[0].eval().requires_grad_(False)
    exact = copy.deepcopy(plain).double()(x.double())
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    for y in (net(x.to(memory_format=torch.channels_last)), last(x)):
        assert_parity(f"{kind} in channels_last", y, plain(x), exact, torch.float32)
    for dtype in (torch.float16, torch.bfloat16):
        y = copy.deepcopy(net).to(dtype)(x.to(dtype))
        assert y.dtype == dtype
        assert_parity(f"{kind} in {dtype}", y, copy.deepcopy(plain).to(dtype)(x.to(dtype)), exact, dtype)


def test_the_engine_accepts_drop_in_networks_like_ours() -> None:
    G, D = small("G", "auto")[0], small("D", "auto")[0]
    assert (why_not_batched("G", G), why_not_batched("D", D)) == ("", "")
    assert why_not_paired({"G_AB": G, "G_BA": small("G", "auto")[0]}) == ""

    class Own(compat.ResnetGenerator):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * x.shape[0]

    assert (
        why_not_batched("G", Own(3, 3, 2, INSTANCE, n_blocks=1))
        == "G is of type Own, which may mix the images of a batch"
    )
