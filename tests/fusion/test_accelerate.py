"""``accelerate``: three networks of other fields held to float64, and the report that takes it back."""

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
    gradients,
    randomised,
    same,
    small,
    whats,
    whys,
)

# --- Three networks of other fields -------------------------------------------------------------------------

REPLACED = {
    "3-D U-Net": {"InstanceNorm3d + LeakyReLU": 6},
    # Two convolutions have a stride, and a block ends in a norm alone.
    "style transfer": {"ReflectionPad2d + Conv2d": 6, "InstanceNorm2d + ReLU": 6, "InstanceNorm2d": 1},
    # Two norms end a Sequential, one has a PReLU after it.
    "super-resolution": {
        'Conv2d(padding_mode="reflect")': 6,
        "InstanceNorm2d + LeakyReLU": 1,
        "InstanceNorm2d": 3,
    },
}


@pytest.mark.parametrize("name", SMALL_NETS)
def test_parity_of_networks(name: str, device: str) -> None:
    """Outputs and every gradient by the rule: the kernels, torch's own in the same dtype, and float64."""
    torch.manual_seed(0)
    build, shape = SMALL_NETS[name]
    plain, x = randomised(build()).to(device), torch.randn(shape, device=device)
    ours, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    whole = whats(accelerate(ours, impl="triton"))
    assert {what: list(whole.values()).count(what) for what in set(whole.values())} == REPLACED[name]
    (y, d_ours), (y_plain, d_plain), (y_exact, d_exact) = (
        gradients(n, t) for n, t in ((ours, x), (plain, x), (exact, x.double()))
    )
    assert_parity("output", y, y_plain, y_exact, torch.float32)
    assert d_ours.keys() == d_plain.keys() == d_exact.keys()
    for key in d_exact:
        # The bias before a norm has no gradient but rounding noise: so both gradients of a convolution are
        # held as one vector.
        weight = key.removesuffix("bias") + "weight"
        both = [key, weight] if key.endswith("bias") and d_exact[weight].dim() > 1 else [key]
        assert_parity(
            key,
            *(torch.cat([d[k].flatten() for k in both]) for d in (d_ours, d_plain, d_exact)),
            torch.float32,
        )


@pytest.mark.parametrize("name", SMALL_NETS)
def test_parity_of_networks_in_bf16(name: str, device: str) -> None:
    """Outputs. Through a whole network in 16 bits gradients are chance, theirs as ours: which side of a
    ReLU's zero a unit is on. They are held layer by layer, below."""
    torch.manual_seed(0)
    build, shape = SMALL_NETS[name]
    plain = randomised(build()).to(device, torch.bfloat16)
    x = torch.randn(shape, device=device, dtype=torch.bfloat16)
    ours, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    accelerate(ours, impl="triton")
    with torch.no_grad():
        assert_parity("output", ours(x), plain(x), exact(x.double()), torch.bfloat16)


@pytest.mark.parametrize("name", SMALL_NETS)
def test_state_and_undo_of_networks(name: str) -> None:
    """The same parameters under the same keys in the same order, to the bit the same function on a CPU; and
    all of it back.
    """
    torch.manual_seed(0)
    build, shape = SMALL_NETS[name]
    net, x = randomised(build()), torch.randn(shape)
    plain, before = copy.deepcopy(net), dict(net.named_parameters())
    text, modules = repr(net), dict(net.named_modules())
    report = accelerate(net)
    assert list(net.state_dict()) == list(plain.state_dict())
    assert net.state_dict()._metadata == plain.state_dict()._metadata  # type: ignore[attr-defined]
    assert all(p is before[key] for key, p in net.named_parameters())
    same(net, plain, x)
    same(net.double(), plain.double(), x.double())
    plain.load_state_dict(net.state_dict())
    report.undo()
    assert repr(net) == text
    assert dict(net.named_modules()) == modules
    assert [m.__dict__.keys() for m in net.modules()] == [m.__dict__.keys() for m in plain.modules()]
    same(net, plain, x.double())
    # Once undone, a report has nothing to undo: not what another one did.
    again = accelerate(net)
    report.undo()
    assert len(again.replaced) == len(report.replaced)
    assert repr(net) != text


def test_less_is_kept_for_the_backward() -> None:
    """Exact bytes. The U-Net's LeakyReLU works in place: what it would keep is what the next convolution
    keeps, so there is no less.
    """
    kept = {}
    for name, (build, shape) in NETS.items():
        net, x = build(), torch.zeros(*shape[:2], *(side // 4 for side in shape[2:]))
        plain = count(net, x).saved_bytes
        accelerate(net, impl="triton")
        kept[name] = count(net, x).saved_bytes / plain
    assert kept["style transfer"] < 0.7
    assert kept["super-resolution"] < 0.63
    assert kept["3-D U-Net"] < 1.001


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_auto_takes_the_kernels_on_a_gpu(layout: torch.memory_format) -> None:
    """In either layout, and the result has the one that torch gives."""
    net = SMALL_NETS["super-resolution"][0]().cuda().to(memory_format=layout)
    x = torch.randn(2, 3, 16, 16, device="cuda").to(memory_format=layout)
    stride = net(x).stride()
    accelerate(net)
    with torch.profiler.profile() as profile:
        assert net(x).stride() == stride
    assert any("fastcyclegan::" in event.key for event in profile.key_averages())


# --- Every kind of layer, as others use it ------------------------------------------------------------------

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


def _heard(net: nn.Sequential) -> nn.Module:
    outer = nn.Sequential(net, nn.Identity())
    net.register_forward_hook(lambda module, args, result: 2 * result)
    return outer


class Shares(nn.Module):
    """The same layers twice, and the last one by itself."""

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
    "heard": _heard,
    "shared": Shares,
    "data parallel": nn.DataParallel,
    "compiled": lambda net: torch.compile(net, backend="eager"),  # type: ignore[dict-item, return-value]
    "frozen": lambda net: net.requires_grad_(False),
}


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_use_of_a_layer_changes_its_result(kind: str, situation: str) -> None:
    """To the bit, outputs and every gradient, in training and in evaluation."""
    build, shape = KINDS[kind]
    torch.manual_seed(0)
    if situation == "shared" and kind in ("pad", "reflect"):
        shape = (2, 3, 9, 9)
    layers = randomised(nn.Sequential(*build()))
    net, plain = (SITUATIONS[situation](copy.deepcopy(layers)) for _ in range(2))  # type: ignore[arg-type]
    report = accelerate(net)
    # The convolution is called without its pad too.
    assert bool(report.replaced) == (situation != "hooked" and (kind, situation) != ("pad", "shared"))
    same(net, plain, torch.randn(shape))
    # Of code that many networks share, torch compiles a few versions only.
    torch.compiler.reset()


def test_a_scripted_module_is_left_and_said_to_be() -> None:
    class HasOne(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.jit.script(nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU()))
            self.outer = nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.outer(self.inner(x))
            return y

    net, plain = HasOne(), HasOne()
    report = accelerate(net)
    assert whys(report) == {"inner": "it is scripted", "outer.0": ""}
    same(net, plain, torch.randn(2, 3, 4, 4))
    report = accelerate(torch.jit.script(plain))
    assert whys(report) == {"": "it is scripted"}


# --- The report ---------------------------------------------------------------------------------------------


def test_undo_has_the_parameters_and_the_mode_of_now() -> None:
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


def test_undo_is_whole_or_not_at_all() -> None:
    """A parametrization has made the convolution another class: its pad alone would come back."""
    torch.manual_seed(0)
    net = nn.Sequential(PAD(1), nn.Conv2d(3, 3, 3))
    report, x = accelerate(net), torch.randn(1, 3, 4, 4)
    parametrizations.weight_norm(net[1])
    y = net(x)
    with pytest.raises(
        RuntimeError, match="undo: 1 was made ReflectConv2d and is ParametrizedReflectConv2d now"
    ):
        report.undo()
    assert torch.equal(net(x), y)
    nn.utils.parametrize.remove_parametrizations(net[1], "weight")
    report.undo()
    assert [type(layer) for layer in net] == [PAD, nn.Conv2d]


def test_a_second_time_there_is_nothing_to_replace() -> None:
    net, _ = small()
    report = accelerate(net)
    assert not report.replaced
    assert whys(report) == {"0": "accelerated already", "3": "accelerated already"}
    assert str(report).splitlines()[0] == "accelerate: nothing replaced, 2 left as it is"


def test_the_report_is_a_table_of_few_lines() -> None:
    net = SMALL_NETS["style transfer"][0]()
    lines = str(accelerate(net)).splitlines()
    assert lines[0] == "accelerate: 13 replaced, 2 left as it is"
    assert "  replaced   6  InstanceNorm2d + ReLU: in1, in2, in3 and 3 more" in lines
    assert (
        "  left       2  ReflectionPad2d: conv2.reflection_pad, conv3.reflection_pad (the Conv2d after it"
        " stays: its stride is (2, 2))" in lines
    )
    assert lines[5] == "  no kernel serves cpu in float32: torch's own operators compute there, as before"
    assert len(lines) == 6


def test_a_module_by_itself() -> None:
    norm = nn.InstanceNorm2d(3)
    report = accelerate(norm)
    assert isinstance(norm, FusedInstanceNorm2d)
    assert "the module itself (alone: it is never called)" in str(report)
    report.undo()
    assert type(norm) is nn.InstanceNorm2d


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"accelerate: module must be a torch\.nn\.Module, got Tensor"):
        accelerate(torch.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="impl must be auto, triton or reference, got 'cuda'"):
        accelerate(nn.ReLU(), impl="cuda")
