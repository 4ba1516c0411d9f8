"""Describe an engine's choices in words, for the table at the start of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from fastcyclegan.engine.batching import why_not_batched, why_not_together
from fastcyclegan.engine.choices import EngineChoices
from fastcyclegan.engine.cuda_graph import MAX_GRAPHS, WARM_UP
from fastcyclegan.kernels.backend_table import describe_backends, is_measured
from fastcyclegan.nn.layer_checks import is_norm
from fastcyclegan.nn.networks import computed_by
from fastcyclegan.recipes.recipe import Phase

Nets = Mapping[str, nn.Module]


def describe(choices: EngineChoices, phases: Sequence[Phase], nets: Nets, average: float) -> dict[str, str]:
    """Return the rows of the table, as a dict from the name of each choice to its description.

    If something is not used, its row gives the reason. ``phases`` are the phases that train ``nets``.
    ``average`` is the decay of the generators' running averages, or 0 if there are none.
    """
    micro_batch = choices.options.micro_batch
    rows = {
        "device": _device(choices.device),
        "precision": choices.precision,
        "layout": "channels_last",
        "impl": _impl(choices, phases, nets),
        "convolutions": _convolutions(choices, phases, nets),
        "norms": _norms(choices, nets),
    }
    if choices.compile_ahead:
        rows["kernels"] = "compiled before the first iteration, if missing from Triton's cache"
    rows |= {
        "batching": _batching(choices, nets),
        "pairing": _pairing(choices, phases, nets),
        "overlap": _overlap(choices),
        "compiled": _compiled(choices, nets),
        "graph": _graph(choices),
    }
    if micro_batch is not None:
        rows["micro batch"] = f"at most {micro_batch} samples at a time"
    if average:
        rows["average"] = f"running averages of the generators' weights, decay {average}"
    return rows


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    if threads == 1:
        return f"{device} (1 thread)"
    return f"{device} ({threads} threads)"


def _impl(choices: EngineChoices, phases: Sequence[Phase], nets: Nets) -> str:
    used = {name: computed_by(net) for name, net in nets.items()}
    library = _library(choices.device)
    for name, impl in used.items():
        is_idle = impl == "triton" and name not in choices.kernel_networks
        if is_idle and _zero_padded(choices, phases, nets) == library:
            used[name] = "triton, but PyTorch computes every layer"
    different = set(used.values())
    if len(different) == 1:
        return different.pop()
    for name in choices.eager_networks:
        used[name] += " (differentiated twice)"
    return ", ".join(f"{name} {impl}" for name, impl in used.items())


def _library(device: torch.device) -> str:
    """Return the name of the library that computes PyTorch's convolutions on ``device``."""
    return {"cuda": "cuDNN", "cpu": "oneDNN"}.get(device.type, "PyTorch")


def _convolutions(choices: EngineChoices, phases: Sequence[Phase], nets: Nets) -> str:
    library = _library(choices.device)
    if choices.cpp_networks:
        if all(getattr(nets[name], "impl", "auto") == "cpp" for name in choices.cpp_networks):
            return f"the C++ kernels where there is one, otherwise {library}"
        return f"the C++ kernels or {library}, whichever is faster for a layer"
    if not choices.kernel_networks:
        return f"{library} for all"
    modules = [module for name in choices.kernel_networks for module in nets[name].modules()]
    rows = []
    if any(isinstance(module, nn.ReflectionPad2d) for module in modules):
        rows.append(f"reflection-padded: {describe_backends(choices.device)}")
    rows.append(f"strided, transposed and 4x4: {_zero_padded(choices, phases, nets)}")
    return "; ".join(rows) + _loads(choices.device)


def _zero_padded(choices: EngineChoices, phases: Sequence[Phase], nets: Nets) -> str:
    """Return what computes the convolutions that pad with zeros, in networks that Triton computes."""
    single = _library(choices.device)
    if is_measured(choices.device):
        single += ", or Triton where it was measured to be faster"
    if not any(not reason for _, reason in _pairs(choices, phases, nets)):
        return single
    return f"Triton for paired networks, {single} for single ones"


def _norms(choices: EngineChoices, nets: Nets) -> str:
    """Return what computes each kind of norm in ``nets``."""
    kinds: dict[str, dict[str, None]] = {}  # the values are used as an ordered set
    for name, net in nets.items():
        for module in net.modules():
            if is_norm(module) and choices.uses_kernels([name]):
                ours = "Triton" if name in choices.kernel_networks else "the C++ kernels"
                kinds.setdefault("instance", {})[f"{ours}, fused with the activation"] = None
            elif isinstance(module, nn.modules.batchnorm._NormBase):
                kinds.setdefault(_kind_of_norm(module), {})["PyTorch"] = None
    if not kinds:
        return "none"
    return "; ".join(f"{kind}: {' or '.join(by)}" for kind, by in kinds.items())


def _kind_of_norm(module: nn.Module) -> str:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "batch"
    return "instance"


def _loads(device: torch.device) -> str:
    """Return a note if the kernels should use tensor descriptors but these do not work, otherwise "".

    This probes the driver, as the first launch would.
    """
    if device.type != "cuda":
        return ""
    # Imported late, because it needs Triton.
    from fastcyclegan.kernels.descriptor_launch import refusal

    reason = refusal(device)
    if not reason:
        return ""
    return f"; loads use pointers, because tensor descriptors do not work ({reason})"


def _batching(choices: EngineChoices, nets: Nets) -> str:
    if choices.singly:
        wrong = "with more, torch.compile on a CPU computes wrong gradients (seen in torch 2.13)"
        return f"no, one image at a time: {wrong}"
    if not choices.batching:
        return "off (--batching off)"
    text, together = "one call per network and stage, for images of the same size", False
    reasons = {name: why_not_batched(name, net) for name, net in nets.items()}
    for name, reason in reasons.items():
        if reason:
            text += f"; not for {name}: {reason}"
        else:
            together = True
    if not together:
        return f"no: {next(iter(reasons.values()))}"
    return text


def _pairing(choices: EngineChoices, phases: Sequence[Phase], nets: Nets) -> str:
    if choices.options.pairing == "off":
        return "off (--pairing off)"
    if not choices.pairing:
        if choices.cpp_networks:
            return "no: one network keeps a CPU busy"
        return "off" if choices.kernel_networks else "no: PyTorch computes the networks"
    pairs = []
    for together, reason in _pairs(choices, phases, nets):
        mode = f"run separately: {reason}" if reason else "run as one"
        pairs.append(f"{' and '.join(together)} {mode}")
    if not pairs:
        return "no: each phase trains a single network"
    return ", ".join(pairs)


def _pairs(choices: EngineChoices, phases: Sequence[Phase], nets: Nets) -> list[tuple[Sequence[str], str]]:
    """Return the networks that each phase trains together, and why they cannot run as one, or ""."""
    if not choices.pairing:
        return []
    together = [phase.trains for phase in dict.fromkeys(phases) if len(phase.trains) > 1]
    return [(names, why_not_together({name: nets[name] for name in names})) for names in together]


def _overlap(choices: EngineChoices) -> str:
    requested = choices.options.overlap
    if requested == "phases" and not choices.overlap_phases:
        return "no: a phase needs the weights that the phase before it has updated"
    if choices.device.type != "cuda":
        return "phases interleaved on one stream" if choices.overlap_phases else "no: needs a CUDA GPU"
    parts = []
    if choices.weight_stream:
        parts.append("weight gradients")
    if choices.phase_stream:
        parts.append("the discriminators' phase")
    if parts:
        return f"{' and '.join(parts)} run concurrently with the main stream"
    return (
        "off (--overlap off)"
        if requested == "off"
        else "no: needs the kernels, and a CUDA graph or --overlap wgrad"
    )


def _compiled(choices: EngineChoices, nets: Nets) -> str:
    if not choices.compiled:
        return "no"
    if choices.cpp_networks and not any(choices.compiles(name) for name in nets):
        return "no: the C++ kernels compute the networks"
    if choices.kernel_networks:
        others = [name for name in nets if choices.compiles(name)]
        return (
            f"{' '.join(others)} and the losses"
            if others
            else "the losses (the kernels compute the networks)"
        )
    if choices.eager_networks:
        return f"all except {' '.join(choices.eager_networks)} (they are differentiated twice)"
    return "yes"


def _graph(choices: EngineChoices) -> str:
    if choices.graph:
        return f"one per batch size, at most {MAX_GRAPHS}, captured after {WARM_UP} iterations"
    if choices.options.graph == "off":
        return "off (--graph off)"
    if choices.device.type != "cuda":
        return "no: needs a CUDA GPU"
    return "no: use --compile or --graph on to enable it"
