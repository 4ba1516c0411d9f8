"""What an engine chose, in words: the table at the start of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from fastcyclegan.engine.batching import why_not_batched, why_not_together
from fastcyclegan.engine.choices import EngineChoices
from fastcyclegan.engine.cuda_graph import MOST_GRAPHS, WARM_UP
from fastcyclegan.kernels.backend_table import describe_backends
from fastcyclegan.nn.networks import computed_by
from fastcyclegan.recipes.recipe import Phase

Nets = Mapping[str, nn.Module]


def describe(choices: EngineChoices, phases: Sequence[Phase], nets: Nets, average: float) -> dict[str, str]:
    """Return each of ``choices`` by its name, for ``nets`` and the phases that train them; where something is
    not done, why.

    ``average``: the decay of the generators' running averages, 0 for none.
    """
    micro_batch = choices.options.micro_batch
    rows = {
        "device": _device(choices.device),
        "precision": choices.precision,
        "layout": "channels_last",
        "impl": _impl(choices, nets),
        "convolutions": _convolutions(choices),
    }
    if choices.compile_ahead:
        rows["kernels"] = "compiled before the first iteration, where Triton's cache lacks them"
    rows |= {
        "batching": _batching(choices, nets),
        "pairing": _pairing(choices, phases, nets),
        "overlap": _overlap(choices),
        "compiled": _compiled(choices, nets),
        "graph": _graph(choices),
    }
    if micro_batch is not None:
        rows["micro batch"] = f"at most {micro_batch} of a batch at a time"
    if average:
        rows["average"] = f"of the generators' weights, decay {average}"
    return rows


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)"


def _impl(choices: EngineChoices, nets: Nets) -> str:
    used = {name: computed_by(net) for name, net in nets.items()}
    different = set(used.values())
    if len(different) == 1:
        return different.pop()
    for name in choices.eager_networks:
        used[name] += " (differentiated twice by wgangp)"
    return ", ".join(f"{name} {impl}" for name, impl in used.items())


def _convolutions(choices: EngineChoices) -> str:
    library = {"cuda": "cuDNN", "cpu": "oneDNN"}.get(choices.device.type, "PyTorch")
    if not choices.kernel_networks:
        return f"all {library}"
    backends = describe_backends(choices.device)
    others = f"Triton in pairs, {library} where networks run apart" if choices.pairing else library
    return f"reflected ones {backends}; strided, transposed and 4x4 ones {others}{_loads(choices.device)}"


def _loads(device: torch.device) -> str:
    """Return how kernels load where that is not as they were meant to: the driver is asked, as at the first
    launch.
    """
    if device.type != "cuda":
        return ""
    # Imported late: it needs Triton.
    from fastcyclegan.kernels.descriptor_launch import refusal

    reason = refusal(device)
    if not reason:
        return ""
    return f"; tensor descriptors refused ({reason}): pointers"


def _batching(choices: EngineChoices, nets: Nets) -> str:
    if choices.singly:
        wrong = "PyTorch's compiler for processors goes wrong with more (seen in torch 2.13)"
        return f"no, images one by one: {wrong}"
    if not choices.batching:
        return "off (--batching off)"
    text, together = "each network once a stage, its images of one size together", False
    reasons = {name: why_not_batched(name, net) for name, net in nets.items()}
    for name, reason in reasons.items():
        if reason:
            text += f"; not {name}: {reason}"
        else:
            together = True
    if not together:
        return f"no: {next(iter(reasons.values()))}"
    return text


def _pairing(choices: EngineChoices, phases: Sequence[Phase], nets: Nets) -> str:
    if choices.options.pairing == "off":
        return "off (--pairing off)"
    if not choices.pairing:
        return "no: off" if choices.kernel_networks else "no: PyTorch computes"
    pairs = []
    for phase in phases:
        if len(phase.trains) == 1:
            continue
        reason = why_not_together({name: nets[name] for name in phase.trains})
        how = f"apart: {reason}" if reason else "as one"
        pairs.append(f"{' and '.join(phase.trains)} {how}")
    if not pairs:
        return "no: each phase trains one network"
    return ", ".join(pairs)


def _overlap(choices: EngineChoices) -> str:
    asked = choices.options.overlap
    if asked == "phases" and not choices.overlap_phases:
        return "no: a phase needs the weights after the update of the one before"
    if choices.device.type != "cuda":
        return "phases in another order, on one stream" if choices.overlap_phases else "no: one stream here"
    parts = []
    if choices.weight_stream:
        parts.append("weight gradients")
    if choices.phase_stream:
        parts.append("the discriminators' phase")
    if parts:
        return f"{' and '.join(parts)} on streams of their own"
    return "off (--overlap off)" if asked == "off" else "no: without a graph there is nothing to fill"


def _compiled(choices: EngineChoices, nets: Nets) -> str:
    if not choices.compiled:
        return "no"
    if choices.kernel_networks:
        others = [name for name in nets if choices.compiles(name)]
        return f"{' '.join(others)} and the losses" if others else "the losses (the networks are kernels)"
    if choices.eager_networks:
        return f"all but {' '.join(choices.eager_networks)} (wgangp differentiates them twice)"
    return "yes"


def _graph(choices: EngineChoices) -> str:
    if choices.graph:
        return f"one for each size of batch, at most {MOST_GRAPHS}, captured after {WARM_UP} iterations"
    if choices.options.graph == "off":
        return "off (--graph off)"
    if choices.device.type != "cuda":
        return "no: needs a CUDA GPU"
    return "no: --compile or --graph on asks for it"
