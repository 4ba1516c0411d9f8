"""InstanceNormAct as torch's modules, and chains: what falls apart when somebody listens, replaces or freezes a member."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcyclegan import InstanceNormAct
from fastcyclegan import reference as ref
from fastcyclegan.devtools.dry_run import dry_run
from fastcyclegan.nn import networks
from fastcyclegan.nn.chains import Chain
from fastcyclegan.nn.networks import Discriminator, Generator
from fastcyclegan.testing import assert_parity, parameters_that_count, tf32

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _no_tf32() -> Iterator[None]:
    """Functions are compared here, not TF32's roundings, which PyTorch's convolutions and ours have of their own."""
    with tf32(False):
        yield


def three(kind: str, **arguments: Any) -> list[nn.Module]:
    """One network on the kernels, the same in the reference, and that in float64."""
    torch.manual_seed(0)
    nets = [getattr(networks, kind)(**arguments, impl="triton").to(DEVICE), getattr(ref, kind)(**arguments).to(DEVICE)]
    for p in nets[0].parameters():
        nn.init.normal_(p, 0, 0.2)
    nets[1].load_state_dict(nets[0].state_dict())
    return [*nets, copy.deepcopy(nets[1]).double()]


def outputs(nets: Iterable[nn.Module], x: Tensor) -> list[Tensor]:
    return [net(x.to(next(net.parameters()).dtype)) for net in nets]


def hold(name: str, results: Sequence[Tensor]) -> None:
    """Hold ours, the first of ``results``, by the parity rule: to the reference, and to it in float64.

    Of images of 16 pixels or more: a norm of 2 x 2 makes a rounding error large by chance, in ours or in theirs.
    """
    assert_parity(name, *results, torch.float32)


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize(
    ("module", "shape"), [(nn.InstanceNorm1d, (2, 5, 9)), (nn.InstanceNorm2d, (2, 5, 4, 3)), (nn.InstanceNorm3d, (1, 5, 2, 3, 2))]
)
def test_replaces_torchs_modules(module: type[nn.Module], shape: tuple[int, ...], impl: str) -> None:
    torch.manual_seed(0)
    theirs, x = module(5, eps=1e-3, affine=True).to(DEVICE), torch.randn(shape, device=DEVICE)
    nn.init.normal_(theirs.weight)
    ours = InstanceNormAct(5, eps=1e-3, affine=True, act="leaky_relu", slope=0.01, impl=impl).to(DEVICE)
    ours.load_state_dict(theirs.state_dict())
    exact, x64 = copy.deepcopy(theirs).double(), x.double()
    results = (ours(x, residual=x), F.leaky_relu(theirs(x), 0.01) + x, F.leaky_relu(exact(x64), 0.01) + x64)
    assert_parity("output", *results, torch.float32)
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_repr_and_defaults() -> None:
    assert repr(InstanceNormAct(5)) == f"InstanceNormAct({nn.InstanceNorm2d(5).extra_repr()}, act=none, impl=auto)"
    assert "act=leaky_relu, slope=0.01" in repr(InstanceNormAct(5, act="leaky_relu", slope=0.01))


@pytest.mark.parametrize("training", [True, False])
def test_running_statistics_are_torchs(training: bool) -> None:
    torch.manual_seed(0)
    theirs, ours = nn.InstanceNorm2d(3, track_running_stats=True), InstanceNormAct(3, track_running_stats=True, act="relu")
    x = torch.randn(2, 3, 4, 4)
    for module in (theirs, ours):
        module(x)
        module.train(training)
    torch.testing.assert_close(ours(x), F.relu(theirs(x)))
    assert torch.equal(ours.running_var, theirs.running_var)
    with pytest.raises(ValueError, match="impl='triton' keeps no running statistics"):
        InstanceNormAct(3, track_running_stats=True, impl="triton")


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"input must be \[N, C, L\], .* got shape \(3, 4\)"):
        InstanceNormAct(3)(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"input must have 3 channels, got shape \(1, 4, 8, 8\)"):
        InstanceNormAct(3)(torch.zeros(1, 4, 8, 8))
    with pytest.raises(ValueError, match="act must be one of none, relu, leaky_relu, got 'gelu'"):
        InstanceNormAct(3, act="gelu")


def test_copies_pickles_and_functional_calls() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 8, 8, device=DEVICE)
    for net in (
        InstanceNormAct(3, affine=True, act="relu", impl="triton").to(DEVICE),
        Generator(ngf=4, n_blocks=1, impl="triton").to(DEVICE),
    ):
        y = net(x)
        assert torch.equal(copy.deepcopy(net)(x), y)
        assert torch.equal(pickle.loads(pickle.dumps(net))(x), y)
        doubled = {name: (2 * p).detach().requires_grad_() for name, p in net.named_parameters()}
        called = torch.func.functional_call(net, doubled, (x,))
        called.sum().backward()
        assert not torch.equal(called, y)
        assert all(p.grad is not None for p in doubled.values())
        assert all(p.grad is None for p in net.parameters())


def test_a_whole_network_compiles_in_one_graph() -> None:
    nets = three("Generator", ngf=4, n_blocks=1)
    runs = (torch.compile(nets[0], fullgraph=True), *nets[1:])
    ys = outputs(runs, torch.randn(1, 3, 16, 16, device=DEVICE))
    hold("output", ys)
    for y in ys:
        y.square().sum().backward()
    for name in parameters_that_count(nets[1]):
        hold(name, [net.get_parameter(name).grad for net in nets])
    assert not nets[0].model[1].bias.grad.any()


def test_slices_of_a_chain_are_chains() -> None:
    """Feature extractors run the first layers alone."""
    nets = three("Generator", ngf=4, n_blocks=1)
    part = nets[0].model[:4]
    hold("the first layers", outputs([part, *(net.model[:4] for net in nets[1:])], torch.randn(1, 3, 16, 16, device=DEVICE)))
    assert type(part) is Chain
    assert (part.impl, Generator(ngf=4, recompute=False).model[:4].recompute) == ("triton", False)


def test_a_picture_without_the_dimension_of_the_batch() -> None:
    net = Generator(ngf=4, n_blocks=1, impl="triton").to(DEVICE)
    x = torch.randn(3, 8, 8, device=DEVICE)
    assert torch.equal(net(x), net(x[None])[0])


def launches(net: nn.Module, x: Tensor) -> int:
    with dry_run() as run:
        net(x)
    return run.counts.launches.total()


@pytest.mark.parametrize("index", ["1", "2", "3", "4", "10", "10.conv_block.1", "10.conv_block.2"])
def test_hooks_fire_and_the_function_stays(index: str) -> None:
    """A layer that somebody listens to is called as a module, with the values that it has in the official network."""
    nets = three("Generator", ngf=4, n_blocks=1)
    seen: list[Tensor] = []
    for net in nets:
        net.get_submodule(f"model.{index}").register_forward_hook(lambda m, args, out: seen.append(out))
    hold("output", outputs(nets, torch.randn(1, 3, 16, 16, device=DEVICE)))
    hold(index, seen)


def listened_to(nets: list[nn.Module], x: Tensor, name: str) -> list[tuple[Tensor, ...]]:
    """Run all nets and return what hooks on module ``name`` saw: what went in, in each net, and what came out."""
    given: list[Tensor] = []
    made: list[Tensor] = []
    for net in nets:
        net.get_submodule(name).register_forward_hook(lambda m, args, out: made.append(out.clone()))
        net.get_submodule(name).register_forward_pre_hook(lambda m, args: given.append(args[0].clone()))
    hold("output", outputs(nets, x))
    return [tuple(given), tuple(made)]


@pytest.mark.parametrize("name", ["model.10.conv_block", "model.10", "model"])
def test_containers_show_their_own_values(name: str) -> None:
    """The residual's sum is not part of what conv_block returns, though the kernels add it in conv_block's last pass."""
    for seen in listened_to(three("Generator", ngf=4, n_blocks=1), torch.randn(1, 3, 16, 16, device=DEVICE), name):
        hold(name, seen)


@pytest.mark.parametrize("name", ["model.model.2", "model.model.1.model.4", "model.model.1.model", "model.model.1.model.3.model"])
def test_a_u_nets_skips_show_their_own_values(name: str) -> None:
    """Skips carry activated values only where nobody can see them."""
    for seen in listened_to(three("UnetGenerator", ngf=2, num_downs=5), torch.randn(1, 3, 64, 64, device=DEVICE), name):
        hold(name, seen)


def test_surgery_on_blocks_keeps_its_meaning() -> None:
    """A conv_block of one's own, another activation after a skip, a forward of one's own, a norm of other channels."""
    torch.manual_seed(1)
    x = torch.randn(1, 3, 64, 64, device=DEVICE)
    nets = three("Generator", ngf=4, n_blocks=1)
    mine = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.InstanceNorm2d(16)).to(DEVICE)
    for net in nets:
        net.model[10].conv_block = copy.deepcopy(mine).to(net.model[1].weight.dtype)
    hold("a conv_block of one's own", outputs(nets, x[..., :16, :16]))
    nets = three("UnetGenerator", ngf=2, num_downs=5)
    for net in nets:
        net.model.model[1].model[4] = nn.LeakyReLU(0.1)
    hold("another activation", outputs(nets, x))
    nets = three("Discriminator", ndf=4)
    for net in nets:
        net.model[2].forward = lambda x, conv=net.model[2]: 2 * conv._conv_forward(x, conv.weight, conv.bias)
    hold("a forward of one's own", outputs(nets, x))
    nets[0].model[3] = nn.InstanceNorm2d(2, affine=True).to(DEVICE)
    with pytest.raises(ValueError, match=r"weight must be \[8\], a number for each channel of x, got \[2\]"):
        nets[0](x)


def test_outputs_may_be_changed_in_place() -> None:
    net = nn.Sequential(Discriminator(ndf=4, impl="triton"), nn.LeakyReLU(0.2, inplace=True)).to(DEVICE)
    net(torch.randn(1, 3, 32, 32, device=DEVICE)).sum().backward()
    assert not net[0].model[2].bias.grad.any()


def test_autocast_keeps_no_copies_of_weights() -> None:
    """A weight is rounded for each use; what is kept is the parameter itself."""
    net = Generator(ngf=8, n_blocks=2, impl="triton").to(memory_format=torch.channels_last)
    weights = {p.data_ptr() for p in net.parameters()}
    saved: list[Tensor] = []
    with (
        dry_run(),
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        net(torch.zeros(1, 3, 64, 64))
    shapes = {p.shape for p in net.parameters() if p.dim() == 4 and p.shape[1] > 3}
    # The first layer up has no norm before it: PyTorch's own operator, and autocast's own cache.
    assert [t.shape for t in saved if t.shape in shapes and t.data_ptr() not in weights] == [net.model[12].weight.shape]


def test_a_replaced_layer_is_called() -> None:
    class Loud(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    nets, loud = three("Discriminator", ndf=4), Loud(4, 8, 4, 2, 1).to(DEVICE)
    for net in nets:
        net.model[2] = copy.deepcopy(loud).to(net.model[0].weight.dtype)
    hold("output", outputs(nets, torch.randn(1, 3, 32, 32, device=DEVICE)))


def test_parametrised_weights_are_used() -> None:
    net = Discriminator(ndf=4, impl="triton").to(DEVICE)
    x = torch.randn(1, 3, 32, 32, device=DEVICE)
    torch.nn.utils.parametrizations.weight_norm(net.model[2])
    net(x).sum().backward()
    assert net.model[2].parametrizations.weight.original0.grad is not None


def test_frozen_biases_get_nothing() -> None:
    net = Discriminator(ndf=4, impl="triton").to(DEVICE).requires_grad_(False)
    x = torch.randn(1, 3, 32, 32, device=DEVICE, requires_grad=True)
    net(x).sum().backward()
    assert x.grad.any()
    assert all(p.grad is None for p in net.parameters())


def test_fewer_launches_where_nobody_listens() -> None:
    """Two for each norm that is not small; four for a block; one for the last convolution, and for the first its picture's border too."""
    net, x = Generator(ngf=8, n_blocks=2, impl="triton"), torch.randn(1, 3, 128, 128)
    # Norms at 128 and 64 pixels; of 32 x 32 a program holds all, but where a border is written.
    first, down, blocks, up, last = 2, 2 + 2 + 1, 2 * 4, 2 + 2, 1
    assert launches(net, x) == first + down + blocks + up + last


def test_where_cudnn_is_faster_the_norms_write_its_border(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other backend: the same function and gradients, and no convolution of ours."""
    nets = three("Generator", ngf=4, n_blocks=1, upsample="resize")
    net, x = nets[0], torch.randn(1, 3, 16, 16, device=DEVICE)
    with dry_run() as dry:
        net(x)
    assert any("reflect_conv" in name for name in dry.counts.launches)
    for module in ("chains", "deferred"):
        monkeypatch.setattr(f"fastcyclegan.nn.{module}.backend_of", lambda *a: "cudnn")
    ys = outputs(nets, x)
    hold("output", ys)
    for y in ys:
        y.square().sum().backward()
    for name in parameters_that_count(nets[1]):
        hold(name, [n.get_parameter(name).grad for n in nets])
    with dry_run() as dry:
        net(x)
    assert not any("reflect_conv" in name for name in dry.counts.launches)


def test_a_picture_of_another_dtype_is_an_error_as_in_torch() -> None:
    x = torch.zeros(1, 3, 8, 8, device=DEVICE)
    for impl in ("triton", "reference"):
        with pytest.raises(RuntimeError, match=r"should be the same|expected scalar type"):  # with oneDNN, without
            Generator(ngf=2, n_blocks=0, impl=impl).to(DEVICE, torch.bfloat16)(x)
