"""All providers of generators produce the same images, and those that cannot run give the reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from bench.baselines import plain_networks
from bench.generator_providers import GENERATOR_BUILD_ORDER, GENERATORS, generator
from bench.other_runtimes import exported, package, with_plain_norms
from bench.timing import Unavailable
from fastcyclegan.testing import relative_error
from tests.bench.small_steps import SMALL

UNCOMPILED = [name for name, provider in GENERATORS.items() if provider.mode is None and not provider.strict]
RUNTIMES = ("onnxruntime", "openvino_fp32", "openvino_bf16")


def plain() -> nn.Module:
    return plain_networks(SMALL)["G_AB"]


def exact(net: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        y: Tensor = net.double()(x.double())
    net.float()
    return y


@pytest.mark.parametrize("name", UNCOMPILED)
def test_all_produce_the_same_images(name: str) -> None:
    net = plain()
    try:
        run, precision = generator(name, net, "cpu", ngf=8, n_blocks=1)
        # Several sizes, and a batch after a single image.
        for shape in ((1, 3, 32, 32), (2, 3, 32, 32), (1, 3, 24, 40)):
            x = torch.rand(shape) * 2 - 1
            first, again = run(x), run(x.flip(0))
            assert first.dtype == torch.float32
            assert relative_error(first, exact(net, x)) < (1e-5 if precision == "fp32" else 0.1)
            # An earlier result is not overwritten by a later one.
            assert torch.equal(first.flip(0), again)
    except Unavailable as reason:
        pytest.skip(str(reason))
    faulty, _ = generator(name, net, "cpu", fault=True, ngf=8, n_blocks=1)
    assert relative_error(faulty(x), exact(net, x)) > 0.1


def test_every_provider_is_built() -> None:
    assert sorted(GENERATOR_BUILD_ORDER) == sorted(GENERATORS)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        *((name, "onnx") for name in RUNTIMES),
        ("onnxruntime", "onnxruntime"),
        ("openvino_fp32", "openvino"),
        ("openvino_bf16", "openvino"),
    ],
)
def test_a_missing_package_is_a_reason(name: str, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package_name in ("onnx", "onnxruntime", "openvino"):
        if package_name != missing:
            monkeypatch.setitem(sys.modules, package_name, ModuleType(package_name))
    monkeypatch.setitem(sys.modules, missing, None)
    if name == "openvino_bf16":
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    with pytest.raises(Unavailable, match=f"needs the package {missing}, which is in the extra bench"):
        generator(name, plain(), "cpu", ngf=8, n_blocks=1)


def test_what_only_runs_on_a_processor_is_skipped_on_a_gpu() -> None:
    for name in (*RUNTIMES, "ours_without_kernels", "ours_fast_fp32"):
        with pytest.raises(Unavailable, match="only timed on a CPU"):
            GENERATORS[name].require("cuda")


def test_bf16_needs_a_processor_with_its_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for name in ("openvino_bf16", "ours_fast_bf16"):
        with pytest.raises(Unavailable, match="this processor has no bf16 instructions"):
            GENERATORS[name].require("cpu")


def test_other_runtimes_get_the_norms_of_the_official_network() -> None:
    """A norm in the model is one operator, without the reshapes that the reference adds for its backward."""
    onnx = pytest.importorskip("onnx")
    net, x = plain(), torch.rand(1, 3, 32, 32)
    assert torch.equal(with_plain_norms(net)(x), net(x))
    model = onnx.load_model_from_string(exported(net, x))
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("InstanceNormalization") == 7
    assert "Shape" not in operators
    assert exported(net, x) is exported(net, x)
    assert exported(net, x) != exported(net, torch.rand(2, 3, 32, 32))


def test_importing_openvino_sends_nothing() -> None:
    """The package that sends usage data when openvino is imported is not imported with it."""
    pytest.importorskip("onnx")
    try:
        package("openvino")
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert not [name for name, module in sys.modules.items() if "openvino_telemetry" in name and module]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_signal_is_handled_after_the_other_runtimes_were_used(runtime: str) -> None:
    """OpenVINO leaves a stack for signals that no longer exists, if its models are freed: see _requests."""
    pytest.importorskip("onnx")
    pytest.importorskip(runtime)
    script = f"""
import faulthandler, gc, os, signal, torch
from bench.other_runtimes import translator
from bench.baselines import plain_networks
from tests.bench.small_steps import SMALL

faulthandler.enable()
net = plain_networks(SMALL)["G_AB"]

def use():
    runs = [translator({runtime!r}, net, "fp32") for _ in range(3)]
    for run in runs:
        run(torch.rand(1, 3, 32, 32))
        run(torch.rand(1, 3, 24, 40))

use()
gc.collect()
signal.signal(signal.SIGINT, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGINT)
"""
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], cwd=root, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "handled\n"), result.stderr


def test_the_extra_has_every_package() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    extra = text.partition("\nbench = [")[2].partition("\n]")[0]
    assert all(f'"{name}>=' in extra for name in ("onnx", "onnxruntime", "openvino"))
