"""Run a generator with onnxruntime or OpenVINO on a processor, for comparison.

Both read the official network from ONNX, which torch exports, and use as many threads as torch. Neither is
imported before it is needed, and a missing package makes its providers unavailable.
"""

from __future__ import annotations

import copy
import importlib
import io
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bench.timing import Unavailable
from fastcyclegan import reference

# The last model that was exported from each network, with the shape of its images.
_exported: WeakKeyDictionary[nn.Module, tuple[torch.Size, bytes]] = WeakKeyDictionary()
# What OpenVINO has made, to the end of the process. Each of its requests gives the thread a stack for
# signals. When it is freed, it restores the stack from before its creation, which another one may have freed:
# the next signal would then kill the process (seen in 2026.4.1).
_requests: list[object] = []


def package(name: str) -> ModuleType:
    """Import the package ``name``. Raises Unavailable if it is not installed."""
    if name == "openvino":
        # Importing openvino sends usage data to its makers, unless this package is missing.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise Unavailable(f"needs the package {name}, which is in the extra bench") from None


def with_plain_norms(net: nn.Module) -> nn.Module:
    """Return a copy of the reference network ``net`` with PyTorch's instance norms, as the official one has.

    They leave out what the reference adds for its backward, which a runtime would have to compute.
    """
    plain = copy.deepcopy(net)
    for module in list(plain.modules()):
        for name, child in module.named_children():
            if isinstance(child, reference.InstanceNorm2d):
                setattr(module, name, nn.InstanceNorm2d(child.num_features, child.eps))
    return plain.eval()


def exported(net: nn.Module, x: Tensor) -> bytes:
    """Return the reference network ``net`` as an ONNX model for images of the shape of ``x``.

    Raises Unavailable if the package onnx is missing, which torch's exporter needs.
    """
    package("onnx")
    if net in _exported and _exported[net][0] == x.shape:
        return _exported[net][1]
    file: Any = io.BytesIO()  # the annotations of torch's exporter leave out files in memory
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"]}
    with warnings.catch_warnings():
        # This exporter is deprecated, but the new one needs more packages.
        warnings.simplefilter("ignore")
        torch.onnx.export(with_plain_norms(net), (x,), file, dynamo=False, **names)
    _exported[net] = x.shape, file.getvalue()
    return file.getvalue()


def _onnxruntime(model: bytes) -> Callable[[Tensor], Tensor]:
    runtime: Any = package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3
    # Its threads would otherwise keep the cores busy while the next provider runs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def _openvino(model: bytes, precision: str) -> Callable[[Tensor], Tensor]:
    core: Any = package("openvino").Core()
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
    }
    request = core.compile_model(core.read_model(model), "CPU", options).create_infer_request()
    _requests.append(request)
    return lambda x: torch.from_numpy(request.infer([x.numpy()], share_inputs=True)[0])


def translator(runtime: str, net: nn.Module, precision: str) -> Callable[[Tensor], Tensor]:
    """Return a function that translates fp32 images [N, C, H, W] with the reference network ``net``.

    ``runtime`` is "onnxruntime", which computes in fp32, or "openvino". A model is compiled for each new
    shape of images. Raises Unavailable if a package is missing.
    """
    for name in ("onnx", runtime):
        package(name)
    models: dict[torch.Size, Callable[[Tensor], Tensor]] = {}

    def run(x: Tensor) -> Tensor:
        if x.shape not in models:
            model = exported(net, x)
            models[x.shape] = _onnxruntime(model) if runtime == "onnxruntime" else _openvino(model, precision)
        return models[x.shape](x.contiguous())

    return run
