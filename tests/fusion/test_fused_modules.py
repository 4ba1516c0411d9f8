"""Fused modules give the same results, gradients, errors and warnings as torch's, even copied or compiled."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from fastcyclegan.fusion.accelerate import accelerate
from fastcyclegan.fusion.fused_modules import FusedInstanceNorm2d, ReflectConv2d
from tests.fusion.networks import PAD, check_parity, gradients, randomised, replaced_kinds, small


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (nn.InstanceNorm1d, (2, 3, 8)),
        (nn.InstanceNorm1d, (3, 8)),
        (nn.InstanceNorm2d, (3, 4, 4)),
        (nn.InstanceNorm3d, (2, 3, 2, 3, 2)),
    ],
    ids=str,
)
def test_norms_of_all_dimensions(
    kind: type[nn.Module], shape: tuple[int, ...], impl: str, device: str
) -> None:
    """Compare norms for all numbers of dimensions with torch's, with and without the batch dimension N.

    A LeakyReLU with a negative slope is not invertible, so the kernels must not rely on inverting it.
    """
    torch.manual_seed(0)
    plain = nn.Sequential(randomised(kind(3, affine=True, eps=1e-3)), nn.LeakyReLU(-0.5)).to(device)
    net = copy.deepcopy(plain)
    assert replaced_kinds(accelerate(net, impl)) == {"0": f"{kind.__name__} + LeakyReLU"}
    check_parity((net, plain), torch.randn(shape, device=device))


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_wrong_inputs_raise_torch_errors(impl: str, device: str) -> None:
    net, plain = (n.to(device) for n in small(impl))
    wrong = [
        torch.zeros(3, 4),
        torch.zeros(1, 3, 4, 4, 4),
        torch.zeros(1, 2, 4, 4),
        torch.zeros(1, 3, 1, 1),
        torch.zeros(1, 3, 1, 4),
    ]
    wrong += [torch.zeros(1, 4, 1, 1), torch.zeros(1, 3, 4, 4, dtype=torch.float16)]
    for part in (slice(0, 2), slice(2, 4)):
        for x in wrong:
            outcomes = []
            for n in (plain, net):
                try:
                    outcomes.append(n[part](x.to(device)).shape)
                # Torch may raise any kind of error.
                except Exception as error:
                    outcomes.append((type(error), str(error)))
            assert outcomes[0] == outcomes[1]


def test_norm_without_weights_warns_about_channels_like_torch() -> None:
    net = nn.Sequential(nn.InstanceNorm2d(3))
    accelerate(net)
    with pytest.warns(UserWarning, match="does not match num_features"):
        net(torch.randn(1, 2, 4, 4))


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_empty_batch(impl: str, device: str) -> None:
    net = small(impl)[0].to(device)
    x = torch.zeros(0, 3, 4, 4, device=device, requires_grad=True)
    net(x).sum().backward()
    assert net(x).shape == (0, 4, 4, 4)
    assert x.grad is not None
    assert all(not p.grad.any() for p in net.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (3, 4, 4), (1, 3, 1, 4), (2, 3, 4, 4)], ids=str)
def test_gradient_is_the_same_in_any_layout(shape: tuple[int, ...]) -> None:
    """A channels_last upstream gradient gives the same result, even if outputs are changed in place.

    Torch 2.13's own CPU backward misreads such a gradient of a single image.
    """
    torch.manual_seed(0)
    net = nn.Sequential(nn.InstanceNorm2d(3))
    accelerate(net)
    x, dy = torch.randn(shape), torch.randn(shape)
    last = dy.movedim(-3, -1).contiguous().movedim(-1, -3)
    expected = gradients(net, x, dy)[1]["input"]
    for _ in range(2):
        t = x.clone().requires_grad_()
        net(t).mul_(2).backward(last / 2)
        torch.testing.assert_close(t.grad, expected)
        t.grad = None
        net(t).backward(last)
        assert torch.equal(t.grad, expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_layers_in_16_bits(dtype: torch.dtype, device: str) -> None:
    net, plain = (n.to(device, dtype) for n in small("triton"))
    check_parity((net, plain), torch.randn(2, 3, 6, 6, device=device, dtype=dtype), dtype)


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_autocast(impl: str, device: str) -> None:
    """With weights in fp32, autocast gives outputs in bf16, as with torch's modules."""
    net, plain = (n.to(device) for n in small(impl))
    x = torch.randn(2, 3, 6, 6, device=device)
    with torch.autocast(device, torch.bfloat16):
        assert net(x).dtype == plain(x).dtype == torch.bfloat16
        check_parity((net, plain), x, torch.bfloat16)


def test_layers_can_be_frozen_copied_and_pickled(device: str) -> None:
    net = small("triton")[0].to(device)
    x = torch.randn(1, 3, 4, 4, device=device)
    y = net(x)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x), y)
        assert (type(other[0]), type(other[3])) == (FusedInstanceNorm2d, ReflectConv2d)
    net.requires_grad_(False)
    x.requires_grad_()
    net(x).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in net.parameters())
    assert not net.half()(x.detach().half()).isnan().any()


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_compiles_in_one_graph(impl: str, device: str) -> None:
    torch.compiler.reset()  # it recompiles few times, and other tests compile the same code
    net = small(impl)[0].to(device)
    x = torch.randn(1, 3, 6, 6, device=device)
    # This only tests whether one graph is traced; a backend that generates code would take ten times as long.
    (y, d) = gradients(net, x)
    (compiled, d_compiled) = gradients(torch.compile(net, fullgraph=True, backend="aot_eager"), x)
    torch.testing.assert_close(compiled, y)
    for name in d:
        torch.testing.assert_close(d_compiled[name if name == "input" else f"_orig_mod.{name}"], d[name])


@pytest.mark.parametrize(("border", "k"), [(1, 1), (2, 3), (1, 5), (2, 5)])
def test_padding_other_than_half_the_kernel(border: int, k: int, device: str) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(PAD(border), nn.Conv2d(3, 4, k, bias=False)).to(device)
    net = copy.deepcopy(plain)
    assert replaced_kinds(accelerate(net, "triton")) == {"1": "ReflectionPad2d + Conv2d"}
    check_parity((net, plain), torch.randn(2, 3, 5, 6, device=device))


@pytest.mark.parametrize("padding", [1, "same"])
def test_layouts_match_torch(padding: int | str, device: str) -> None:
    """Outputs have the same memory layout as without ``accelerate``, so that views of them still work."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=padding, padding_mode="reflect")).to(device)
    x = torch.randn(2, 3, 5, 6, device=device)
    last = x.contiguous(memory_format=torch.channels_last)
    strides = [net(t).stride() for t in (x, last)]
    assert len(accelerate(net, "triton").replaced) == 1
    assert [net(t).stride() for t in (x, last)] == strides
    assert net(x[0]).is_contiguous()
    assert net.to(memory_format=torch.channels_last)(x).is_contiguous(memory_format=torch.channels_last)


def test_kernels_write_the_border_if_cudnn_is_faster(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr("fastcyclegan.fusion.fused_modules.backend_of", lambda *a: "cudnn")
    net, plain = (n.to(device) for n in small("triton"))
    check_parity((net, plain), torch.randn(1, 3, 6, 6, device=device))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("images", [1, 2])
def test_activations_in_place_when_compiled_or_exported(images: int, backend: str) -> None:
    """At one image, torch's norm on a CPU needs a contiguous gradient, which once made its result a view."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.LeakyReLU(0.01, True), nn.Conv2d(8, 3, 3)
    )
    net = copy.deepcopy(plain)
    accelerate(net)
    x = torch.randn(images, 3, 16, 16)
    compiled = torch.compile(net, backend=backend)
    for module in (plain, compiled):
        module(x).square().sum().backward()
    assert torch.equal(net[0].weight.grad, plain[0].weight.grad)
    exported = torch.export.export(net, (x,)).module()
    assert torch.equal(exported(x), plain(x))


def test_accelerated_networks_can_be_traced_but_not_scripted(tmp_path: Path) -> None:
    net = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.ReLU(True))
    report, x = accelerate(net), torch.randn(1, 3, 8, 8)
    torch.jit.save(torch.jit.trace(net, x), tmp_path / "net.pt")
    assert torch.equal(torch.jit.load(tmp_path / "net.pt")(x), net(x))
    with pytest.raises(ValueError, match=r"does not support an accelerated network: call undo\(\)"):
        torch.jit.script(net)
    y = net(x)
    report.undo()
    assert torch.equal(torch.jit.script(net)(x), y)
