"""Networks called in odd ways give what plain torch gives, or raise as clearly as it does."""

from __future__ import annotations

import copy
import io
import os
import pickle
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from fastcyclegan import accelerate
from fastcyclegan.testing import assert_same_bits
from tests.nn.odd_calls import (
    SUBJECTS,
    Call,
    check,
    check_refused,
    images,
    leaf,
    outcomes,
    results,
    train,
    trio,
    upstream,
)

pytestmark = pytest.mark.usefixtures("no_tf32")


def _backward_twice(net: nn.Module, x: Tensor, retain: bool = True) -> dict[str, Tensor]:
    y = net(x.requires_grad_())
    y.backward(upstream(y), retain_graph=retain)
    y.backward(upstream(y))
    return results(net, y, x)


def _change_output(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    y = net(x.requires_grad_()).add_(1)
    y.backward(upstream(y))
    return results(net, y, x)


def _change_weights(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    y = net(x)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1)
    y.backward(upstream(y))
    return results(net, y)


def _with_gradient(change: Any) -> Call:
    """Return a call whose upstream gradient is changed by ``change``."""

    def call(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
        y = net(x.requires_grad_())
        y.backward(change(upstream(y)))
        return results(net, y, x)

    return call


def _checkpointed(reentrant: bool) -> Call:
    def call(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
        y = checkpoint(net, x.requires_grad_(), use_reentrant=reentrant)
        y.backward(upstream(y))
        return results(net, y, x)

    return call


def _functional(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Call with other parameters, so that the network's own get no gradient."""
    parameters = {name: leaf(1.5 * p) for name, p in net.named_parameters()}
    y = torch.func.functional_call(net, parameters, (x,))
    y.backward(upstream(y))
    assert all(p.grad is None for p in net.parameters())
    return {"y": y} | {f"d {name}": p.grad for name, p in parameters.items() if p.dim() == 4}


def _after_inference(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    with torch.inference_mode():
        net(x)
    with torch.no_grad():
        z = net.eval()(x)
    return {**train(net.train(), x), "z": z}


def _pickled(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        net(x)
    return train(pickle.loads(pickle.dumps(net)), x)


def _saved(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    net(x)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return train(torch.load(file, weights_only=False), x)


def _optimised(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    return train(net, x)


def _some_gradients(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    weights = [p for p in net.parameters() if p.dim() == 4][::2]
    y = net(x.requires_grad_())
    gradients = torch.autograd.grad(y, [x, *weights], upstream(y))
    return {"y": y} | {str(n): gradient for n, gradient in enumerate(gradients)}


def _in_anomaly_mode(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    with warnings.catch_warnings(), torch.autograd.detect_anomaly(check_nan=True):
        return train(net, x)


def _unused(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    y = net(x.requires_grad_())
    (2 * x).sum().backward()
    return results(net, y, x)


CALLS: dict[str, Call] = {
    "copied": lambda net, x: train(copy.deepcopy(net), x),
    "pickled after no_grad": _pickled,
    "saved and loaded as a whole": _saved,
    "functional_call": _functional,
    "trained after inference and eval": _after_inference,
    "trained twice": lambda net, x: (train(net, x), train(net, x.flip(-1)))[1],
    "after steps of an optimiser": _optimised,
    "checkpoint, reentrant": _checkpointed(True),
    "checkpoint, not reentrant": _checkpointed(False),
    "two backwards": _backward_twice,
    "two backwards without retain_graph": lambda net, x: _backward_twice(net, x, False),
    "output changed in place": _change_output,
    "weights changed before the backward": _change_weights,
    "expanded gradient": _with_gradient(lambda g: g[:, :, :1].expand(g.shape)),
    "gradient of one number": _with_gradient(lambda g: g[0, 0, 0, 0].expand(g.shape)),
    "channels_last gradient": _with_gradient(lambda g: g.to(memory_format=torch.channels_last)),
    "transposed gradient": _with_gradient(lambda g: g.transpose(2, 3).contiguous().transpose(2, 3)),
    "gradient of zeros": _with_gradient(torch.zeros_like),
    "gradient of another dtype": _with_gradient(lambda g: g.half()),
    "gradient of another shape": _with_gradient(lambda g: g[:, :, 1:]),
    "NaN gradient": _with_gradient(lambda g: g * float("nan")),
    "gradients of some inputs": _some_gradients,
    "output unused": _unused,
    "anomaly mode": _in_anomaly_mode,
    "by keyword": lambda net, x: {"y": net(**{"input" if hasattr(net, "act") else "x": x})},
    "two images too many": lambda net, x: {"y": net(x, x, x)},
    "no argument": lambda net, x: {"y": net()},
}
# Interpreted, these take as long as all calls of the others.
REFERENCE_ONLY = {"trained twice", "gradient of zeros", "after steps of an optimiser"}
CALL_CASES = [(name, call, "reference") for name in ("generator", "unet", "patches") for call in CALLS] + [
    ("patches", call, "triton") for call in CALLS if call not in REFERENCE_ONLY
]


@pytest.mark.parametrize(("name", "call", "impl"), CALL_CASES)
def test_calls(name: str, call: str, impl: str) -> None:
    check(outcomes(trio(name, impl), CALLS[call], images(name)))


@pytest.mark.parametrize("name", ["generator", "patches", "norm", "accelerated"])
@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
def test_input_changed_before_the_backward(name: str, impl: str, layout: torch.memory_format) -> None:
    """Either the backward raises, or its gradients are those of the images that the forward was given."""
    if (name, impl) == ("generator", "triton") and layout == torch.contiguous_format:
        pytest.skip("slow; the accelerated network copies its input in the same way")
    nets, x = trio(name, impl), images(name).to(memory_format=layout)
    y = nets[0](x)
    x.add_(1)
    try:
        y.backward(upstream(y))
    except RuntimeError as error:
        check_refused(error, "modified by an inplace operation")
        return
    plain = [train(net, images(name).to(next(net.parameters()).dtype)) for net in nets[1:]]
    for found in plain:
        del found["x"]
    check([results(nets[0], y), *plain])


# --- Transforms ---------------------------------------------------------------------------------------------


def _dual(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    with forward_ad.dual_level():
        y, tangent = forward_ad.unpack_dual(net(forward_ad.make_dual(x, x.sin())))
    return {"y": y, "tangent": tangent}


def _per_image_gradients(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(net, parameters, (image[None],)).square().sum()
        return y

    parameters = {name: p.detach() for name, p in net.named_parameters()}
    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, torch.cat([x, x.flip(-1)]))
    return {name: gradient for name, gradient in gradients.items() if gradient.dim() == 5}


def _penalty(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    y = net(x.requires_grad_())
    (gradient,) = torch.autograd.grad(y, x, upstream(y), create_graph=True)
    gradient.square().sum().backward()
    return {**results(net, y, x), "gradient": gradient.detach()}


TRANSFORMS: dict[str, Call] = {
    "vmap": lambda net, x: {"y": torch.func.vmap(net)(torch.stack([x, x.flip(-1)]))},
    "grad": lambda net, x: {"x": torch.func.grad(lambda x: net(x).square().sum())(x)},
    "vjp": lambda net, x: {"x": torch.func.vjp(net, x)[1](upstream(net(x)))[0]},
    "jvp": lambda net, x: {"tangent": torch.func.jvp(net, (x,), (x.cos(),))[1]},
    "jacrev": lambda net, x: {"rows": torch.func.jacrev(lambda x: net(x).flatten()[:3])(x)},
    "jacfwd": lambda net, x: {
        "column": torch.func.jacfwd(lambda s: net(s * x))(torch.ones_like(x[0, 0, 0, 0]))
    },
    "forward mode": _dual,
    "gradients of each image": _per_image_gradients,
    "gradient penalty": _penalty,
    "Hessian": lambda net, x: {
        "product": torch.autograd.functional.hvp(lambda x: net(x).square().sum(), x, x.cos())[1]
    },
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", ["generator", "unet", "patches", "accelerated"])
def test_transforms(name: str, transform: str) -> None:
    check(outcomes(trio(name, "reference"), TRANSFORMS[transform], images(name)))


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", ["patches", "norm"])
def test_kernels_refuse_transforms(name: str, transform: str) -> None:
    found = outcomes(trio(name, "triton")[:1], TRANSFORMS[transform], images(name))
    if transform in ("gradient penalty", "Hessian"):
        message = "do not support double backward .* use impl='reference'"
    else:
        message = "does not support torch.func's transforms or forward-mode .* use impl='auto'"
    check_refused(found[0], message)


@pytest.mark.parametrize("name", ["patches", "norm", "accelerated"])
def test_gradcheck(name: str) -> None:
    net = trio(name, "reference")[0].double()
    x = images(name)[:1, :, :24, :24].double().requires_grad_()
    assert torch.autograd.gradcheck(net, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(net, x, fast_mode=True)


# --- Compilers ----------------------------------------------------------------------------------------------


def _compiled(**options: Any) -> Call:
    def call(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
        torch.compiler.reset()
        y = torch.compile(net, **options)(x.requires_grad_())
        y.backward(upstream(y))
        return results(net, y, x)

    return call


def _exported(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    dynamic = ({0: torch.export.Dim("N", min=1, max=8)},)
    with torch.no_grad():
        program = torch.export.export(net, (torch.cat([x, x]),), dynamic_shapes=dynamic).module()
        return {"y": program(x), "more images": program(torch.cat([x, x.flip(-1), x]))}


def _traced(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    file = io.BytesIO()
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(net, x, check_trace=False), file)
        file.seek(0)
        loaded = torch.jit.load(file)
        return {"y": loaded(x), "other": loaded(x.flip(-1))}


COMPILERS: dict[str, Call] = {
    "compile, eager": _compiled(backend="eager", fullgraph=True),
    "compile, AOT autograd": _compiled(backend="aot_eager"),
    "export": lambda net, x: {"y": torch.export.export(net, (x,)).module()(x.flip(-1))},
    "export, any number of images": _exported,
    "jit.trace, saved and loaded": _traced,
    "jit.script": lambda net, x: {"y": torch.jit.script(net)(x)},
    "make_fx": lambda net, x: {"y": make_fx(net)(x)(x.flip(-1))},
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("name", ["generator", "accelerated"])
def test_compilers(name: str, compiler: str) -> None:
    found = outcomes(trio(name, "reference"), COMPILERS[compiler], images(name)[:1])
    if (name, compiler) == ("accelerated", "jit.script"):
        check_refused(found[0], r"torch.jit.script does not support an accelerated network: call undo\(\)")
    else:
        check(found)


@pytest.mark.parametrize("name", ["generator", "accelerated"])
def test_fx_refuses_networks_that_choose_their_kernels_by_the_image(name: str) -> None:
    with pytest.raises(torch.fx.proxy.TraceError):
        torch.fx.symbolic_trace(trio(name, "reference")[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("compiler", ["compile, AOT autograd", "export", "jit.trace, saved and loaded"])
def test_compilers_with_kernels(compiler: str) -> None:
    check(outcomes(trio("patches", "triton"), COMPILERS[compiler], images("patches")[:1]))


@pytest.mark.parametrize("compiler", ["none", "compile, AOT autograd", "export"])
@pytest.mark.parametrize("name", ["generator", "accelerated"])
def test_one_image_and_activations_in_place(name: str, compiler: str) -> None:
    """A norm's output may be changed in place, although its gradient is made contiguous for one image."""
    ours, *plain = trio(name, "reference")
    for net in (ours, *plain):
        for layer in net.modules():
            if isinstance(layer, (nn.ReLU, nn.LeakyReLU)):
                layer.inplace = True
    if name == "accelerated":
        ours = copy.deepcopy(plain[0])
        accelerate(ours, impl="reference")
    call = train if compiler == "none" else COMPILERS[compiler]
    check(outcomes([ours, *plain], call, images(name)[:1]))


# --- Threads and processes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize("name", ["patches", "accelerated"])
def test_four_threads_give_the_bits_of_one(name: str, impl: str) -> None:
    net = trio(name, impl)[0]
    inputs = [images(name)[:1].roll(n, -1) for n in range(4)]
    start = threading.Barrier(len(inputs))

    def work(x: Tensor) -> Tensor:
        start.wait()
        y: Tensor = net(x)
        return y.detach()

    with ThreadPoolExecutor(len(inputs)) as pool:
        found = list(pool.map(work, inputs))
    for n, x in enumerate(inputs):
        assert_same_bits(f"thread {n}", found[n], net(x).detach())


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_a_forked_process_computes_the_same_bits(impl: str) -> None:
    net = trio("patches", impl)[0]
    expected = train(net, images("patches"))
    net.zero_grad()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        # Whatever happens, the child must not go on with the tests.
        try:
            found = train(net, images("patches"))
            same = all(torch.equal(found[key], expected[key]) for key in expected)
            os.write(writing, b"same" if same else b"other")
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b"same"
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("name", SUBJECTS)
def test_autocast_computes_what_plain_torch_does(name: str) -> None:
    """Only outputs are compared: bf16 turns some ReLUs, which the rule for rounding does not cover.

    Generators return fp32, because their tanh computes in fp32.
    """
    found = []
    for net, dtype in zip(
        trio(name, "reference"), (torch.float32, torch.float32, torch.float64), strict=True
    ):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            y = net(images(name).to(dtype))
        found.append({"y": y.float() if name in ("generator", "unet") and dtype == torch.float32 else y})
    check(found, torch.bfloat16)
