"""Tests of ``accelerate``: parity of three networks from other fields with float64, the report, ``undo``."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from bench.plain_nets import NETS, SMALL_NETS, UNet3d
from fastcyclegan.devtools.dry_run import count
from fastcyclegan.fusion.accelerate import accelerate
from fastcyclegan.fusion.fused_modules import FusedInstanceNorm2d
from fastcyclegan.testing import assert_parity
from tests.fusion.networks import (
    PAD,
    assert_identical,
    gradients,
    randomised,
    reasons_by_path,
    replaced_kinds,
    small,
)

# --- Three networks from other fields -----------------------------------------------------------------------

REPLACED = {
    "3-D U-Net": {"InstanceNorm3d + LeakyReLU": 6},
    # Two convolutions have a stride, and a block ends in a norm without an activation.
    "style transfer": {"ReflectionPad2d + Conv2d": 6, "InstanceNorm2d + ReLU": 6, "InstanceNorm2d": 1},
    # Two norms end a Sequential, and one is followed by a PReLU.
    "super-resolution": {
        'Conv2d(padding_mode="reflect")': 6,
        "InstanceNorm2d + LeakyReLU": 1,
        "InstanceNorm2d": 3,
    },
}


@pytest.mark.cpp
@pytest.mark.parametrize("impl", ["triton", "cpp"])
@pytest.mark.parametrize("name", SMALL_NETS)
def test_parity_of_whole_networks(name: str, impl: str, device: str) -> None:
    """Check the kernels' outputs and all gradients by the parity rule, against torch in fp32 and float64."""
    if impl == "cpp" and device != "cpu":
        pytest.skip("needs a CPU")
    torch.manual_seed(0)
    build, shape = SMALL_NETS[name]
    plain, x = randomised(build()).to(device), torch.randn(shape, device=device)
    ours, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    replaced = replaced_kinds(accelerate(ours, impl=impl))
    assert {kind: list(replaced.values()).count(kind) for kind in set(replaced.values())} == REPLACED[name]
    (y, d_ours), (y_plain, d_plain), (y_exact, d_exact) = (
        gradients(n, t) for n, t in ((ours, x), (plain, x), (exact, x.double()))
    )
    assert_parity("output", y, y_plain, y_exact, torch.float32)
    assert d_ours.keys() == d_plain.keys() == d_exact.keys()
    for key in d_exact:
        compared = [key]
        if key.endswith("bias"):
            # The gradient of a bias that a norm cancels is only rounding noise. So both gradients of a
            # convolution are compared as one vector, and no bias of a norm that the next norm cancels.
            weight = key.removesuffix("bias") + "weight"
            if d_exact[weight].dim() > 1:
                compared.append(weight)
            elif d_exact[key].norm() < 1e-9 * d_exact[weight].norm():
                continue
        assert_parity(
            key,
            *(torch.cat([d[k].flatten() for k in compared]) for d in (d_ours, d_plain, d_exact)),
            torch.float32,
        )


@pytest.mark.cpp
@pytest.mark.parametrize("impl", ["triton", "cpp"])
@pytest.mark.parametrize("name", SMALL_NETS)
def test_parity_of_whole_networks_in_bf16(name: str, impl: str, device: str) -> None:
    """Compare only the outputs of whole networks in bf16.

    Through a whole network in 16 bits, gradients are effectively random, with torch's operators as well as
    ours, because rounding can flip which ReLU units are active. ``test_layers_in_16_bits`` compares gradients
    layer by layer.
    """
    if impl == "cpp" and device != "cpu":
        pytest.skip("needs a CPU")
    torch.manual_seed(0)
    build, shape = SMALL_NETS[name]
    plain = randomised(build()).to(device, torch.bfloat16)
    x = torch.randn(shape, device=device, dtype=torch.bfloat16)
    ours, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    accelerate(ours, impl=impl)
    with torch.no_grad():
        assert_parity("output", ours(x), plain(x), exact(x.double()), torch.bfloat16)


@pytest.mark.parametrize("name", SMALL_NETS)
def test_keeps_state_and_undoes_all_changes(name: str) -> None:
    """Parameters keep their keys and order, results on a CPU are bit-identical, and ``undo`` restores all."""
    torch.manual_seed(0)
    build, shape = SMALL_NETS[name]
    net, x = randomised(build()), torch.randn(shape)
    plain, before = copy.deepcopy(net), dict(net.named_parameters())
    text, modules = repr(net), dict(net.named_modules())
    report = accelerate(net)
    assert list(net.state_dict()) == list(plain.state_dict())
    assert net.state_dict()._metadata == plain.state_dict()._metadata  # type: ignore[attr-defined]
    assert all(p is before[key] for key, p in net.named_parameters())
    assert_identical(net, plain, x)
    assert_identical(net.double(), plain.double(), x.double())
    plain.load_state_dict(net.state_dict())
    report.undo()
    assert repr(net) == text
    assert dict(net.named_modules()) == modules
    assert [m.__dict__.keys() for m in net.modules()] == [m.__dict__.keys() for m in plain.modules()]
    assert_identical(net, plain, x.double())
    # Calling undo again does nothing: it does not revert the changes of a later report.
    again = accelerate(net)
    report.undo()
    assert len(again.replaced) == len(report.replaced)
    assert repr(net) != text


def test_less_is_kept_for_the_backward() -> None:
    """Compare the exact numbers of bytes that are kept for the backward.

    The U-Net's LeakyReLU works in place and keeps the same tensor as the next convolution, so ``accelerate``
    saves no memory there.
    """
    ratios = {}
    for name, (build, shape) in NETS.items():
        net, x = build(), torch.zeros(*shape[:2], *(side // 4 for side in shape[2:]))
        plain = count(net, x).saved_bytes
        accelerate(net, impl="triton")
        ratios[name] = count(net, x).saved_bytes / plain
    assert ratios["style transfer"] < 0.7
    assert ratios["super-resolution"] < 0.63
    assert ratios["3-D U-Net"] < 1.001


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_auto_uses_the_kernels_on_a_gpu(layout: torch.memory_format) -> None:
    """The kernels run in both layouts, and their result has the same layout as torch's."""
    net = SMALL_NETS["super-resolution"][0]().cuda().to(memory_format=layout)
    x = torch.randn(2, 3, 16, 16, device="cuda").to(memory_format=layout)
    stride = net(x).stride()
    accelerate(net)
    with torch.profiler.profile() as profile:
        assert net(x).stride() == stride
    assert any("fastcyclegan::" in event.key for event in profile.key_averages())


# --- Every kind of layer, in every situation ----------------------------------------------------------------

KINDS: dict[str, tuple[Callable[[], list[nn.Module]], tuple[int, ...]]] = {
    "1d": (lambda: [nn.InstanceNorm1d(3, affine=True), nn.ReLU()], (2, 3, 5)),
    "2d": (lambda: [nn.InstanceNorm2d(3), nn.LeakyReLU(0.1)], (2, 3, 5, 6)),
    "3d": (lambda: [nn.InstanceNorm3d(3, affine=True), nn.ReLU()], (2, 3, 2, 5, 6)),
    "in place": (lambda: [nn.InstanceNorm2d(3, affine=True), nn.ReLU(inplace=True)], (2, 3, 5, 6)),
    "pad": (lambda: [PAD(1), nn.Conv2d(3, 3, 3)], (2, 3, 5, 6)),
    "reflect": (lambda: [nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")], (2, 3, 5, 6)),
    "alone": (lambda: [nn.InstanceNorm2d(3), nn.Tanh()], (2, 3, 5, 6)),
}


def _hooked(net: nn.Sequential) -> nn.Module:
    net[0].register_forward_hook(lambda module, args, result: 2 * result)
    net[-1].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    return net


def _hooked_container(net: nn.Sequential) -> nn.Module:
    outer = nn.Sequential(net, nn.Identity())
    net.register_forward_hook(lambda module, args, result: 2 * result)
    return outer


class Shares(nn.Module):
    """Runs the same layers twice, and the last layer one more time by itself."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers
        self.again = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x) + 1
        y: Tensor = self.again[-1](self.again(x) + 1)
        return y


SITUATIONS: dict[str, Callable[[nn.Sequential], nn.Module]] = {
    "plain": lambda net: net,
    "hooked": _hooked,
    "hooked container": _hooked_container,
    "shared": Shares,
    "data parallel": nn.DataParallel,
    "compiled": lambda net: torch.compile(net, backend="eager"),  # type: ignore[dict-item, return-value]
    "frozen": lambda net: net.requires_grad_(False),
}


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_layers_give_the_same_results_in_every_situation(kind: str, situation: str) -> None:
    """Outputs and all gradients are the same bit for bit, in training and in eval mode."""
    build, shape = KINDS[kind]
    torch.manual_seed(0)
    if situation == "shared" and kind in ("pad", "reflect"):
        shape = (2, 3, 9, 9)
    layers = randomised(nn.Sequential(*build()))
    net, plain = (SITUATIONS[situation](copy.deepcopy(layers)) for _ in range(2))  # type: ignore[arg-type]
    report = accelerate(net)
    # If shared, the convolution is also called without its pad.
    assert bool(report.replaced) == (situation != "hooked" and (kind, situation) != ("pad", "shared"))
    assert_identical(net, plain, torch.randn(shape))
    # Torch compiles only a few versions of code that many networks share.
    torch.compiler.reset()


def test_scripted_modules_are_skipped_and_reported() -> None:
    class ContainsScripted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.jit.script(nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU()))
            self.outer = nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.outer(self.inner(x))
            return y

    net, plain = ContainsScripted(), ContainsScripted()
    report = accelerate(net)
    assert reasons_by_path(report) == {"inner": "it is a scripted module", "outer.0": ""}
    assert_identical(net, plain, torch.randn(2, 3, 4, 4))
    report = accelerate(torch.jit.script(plain))
    assert reasons_by_path(report) == {"": "it is a scripted module"}


# --- The report ---------------------------------------------------------------------------------------------


def test_undo_keeps_current_parameters_and_mode() -> None:
    torch.manual_seed(0)
    net = UNet3d((4, 6))
    report, optimizer = accelerate(net), torch.optim.SGD(net.parameters(), 0.1)
    net(torch.randn(1, 1, 4, 4, 4)).sum().backward()  # type: ignore[union-attr]
    optimizer.step()
    net.double().eval()
    x = torch.randn(1, 1, 4, 4, 4, dtype=torch.float64)
    y, state = net(x), net.state_dict()
    report.undo()
    report.undo()
    assert torch.equal(net(x), y)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert not any(module.training for module in net.modules())


def test_undo_reverts_everything_or_nothing() -> None:
    """If a parametrization has changed the class of the convolution, the pad is not restored either."""
    torch.manual_seed(0)
    net = nn.Sequential(PAD(1), nn.Conv2d(3, 3, 3))
    report, x = accelerate(net), torch.randn(1, 3, 4, 4)
    parametrizations.weight_norm(net[1])
    y = net(x)
    with pytest.raises(
        RuntimeError, match="undo: the class of 1 must be ReflectConv2d, got ParametrizedReflectConv2d"
    ):
        report.undo()
    assert torch.equal(net(x), y)
    nn.utils.parametrize.remove_parametrizations(net[1], "weight")
    report.undo()
    assert [type(layer) for layer in net] == [PAD, nn.Conv2d]


def test_second_call_replaces_nothing() -> None:
    net, _ = small()
    report = accelerate(net)
    assert not report.replaced
    assert reasons_by_path(report) == {"0": "it is already accelerated", "3": "it is already accelerated"}
    assert str(report).splitlines()[0] == "accelerate: nothing replaced, 2 skipped"


def test_report_is_a_short_table() -> None:
    net = SMALL_NETS["style transfer"][0]()
    lines = str(accelerate(net)).splitlines()
    assert lines[0] == "accelerate: 13 replaced, 2 skipped"
    assert "  replaced   6  InstanceNorm2d + ReLU: in1, in2, in3 and 3 more" in lines
    assert (
        "  skipped    2  ReflectionPad2d: conv2.reflection_pad, conv3.reflection_pad (the Conv2d after it"
        " cannot be fused: it has stride=(2, 2))" in lines
    )
    assert lines[5] == "  no kernel supports float32 on cpu: torch's own operators are used, as before"
    assert len(lines) == 6


def test_accelerates_a_single_layer() -> None:
    norm = nn.InstanceNorm2d(3)
    report = accelerate(norm)
    assert isinstance(norm, FusedInstanceNorm2d)
    assert "the module itself (not fused with an activation: no call to it was found)" in str(report)
    report.undo()
    assert type(norm) is nn.InstanceNorm2d


def test_rejects_wrong_arguments() -> None:
    with pytest.raises(TypeError, match=r"accelerate: module must be a torch\.nn\.Module, got Tensor"):
        accelerate(torch.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="impl must be auto, cpp, triton or reference, got 'cuda'"):
        accelerate(nn.ReLU(), impl="cuda")
