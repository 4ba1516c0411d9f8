"""What an engine chose, in words: the table at the start of a run."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fastcyclegan.engine.batching import why_not_batched, why_not_paired
from fastcyclegan.engine.choices import Choices
from fastcyclegan.engine.cuda_graph import MOST_GRAPHS, WARM_UP
from fastcyclegan.kernels.backend_table import describe_backends
from fastcyclegan.nn.networks import computed_by
from fastcyclegan.recipes.cyclegan import CycleGAN

Nets = Mapping[str, nn.Module]


def describe(choices: Choices, recipe: CycleGAN, nets: Nets, average: float) -> dict[str, str]:
    """Return each of ``choices`` by its name, for the networks of ``recipe``; where something is not done,
    why.

    ``average``: the decay of the generators' running averages, 0 for none.
    """
    device, options = choices.device, choices.options
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    )
    return {
        "device": f"{device} ({name})",
        "precision": choices.precision,
        "layout": "channels_last",
        "impl": _impl(recipe, nets),
        "convolutions": _convolutions(choices),
        **(
            {"kernels": "compiled before the first iteration, where Triton's cache lacks them"}
            if choices.compile_ahead
            else {}
        ),
        "batching": _batching(choices, nets),
        "pairing": _pairing(choices, recipe, nets),
        "overlap": _overlap(choices),
        "compiled": _compiled(choices, recipe, nets),
        "graph": _graph(choices),
        **(
            {"micro batch": f"at most {options.micro_batch} of a batch at a time"}
            if options.micro_batch is not None
            else {}
        ),
        **({"average": f"of the generators' weights, decay {average}"} if average else {}),
    }


def _impl(recipe: CycleGAN, nets: Nets) -> str:
    used = {name: computed_by(net) for name, net in nets.items()}
    if len(set(used.values())) == 1:
        return used["G_AB"]
    twice, reason = recipe.twice_differentiated, "differentiated twice by wgangp"
    return ", ".join(f"{name} {impl}" + f" ({reason})" * (name in twice) for name, impl in used.items())


def _convolutions(choices: Choices) -> str:
    library = {"cuda": "cuDNN", "cpu": "oneDNN"}.get(choices.device.type, "PyTorch")
    if not choices.kernels:
        return f"all {library}"
    others = f"Triton in pairs, {library} where networks run apart" if choices.pairing else library
    return (
        f"reflected ones {describe_backends(choices.device)}; strided, transposed and 4x4 ones"
        f" {others}{_loads(choices.device)}"
    )


def _loads(device: torch.device) -> str:
    """Return how kernels load where that is not as they were meant to: the driver is asked, as at the first
    launch.
    """
    if device.type != "cuda":
        return ""
    # Imported late: it needs Triton.
    from fastcyclegan.kernels.descriptor_launch import refusal

    return f"; tensor descriptors refused ({reason}): pointers" if (reason := refusal(device)) else ""


def _batching(choices: Choices, nets: Nets) -> str:
    if choices.singly:
        return (
            "no, pictures one by one: PyTorch's compiler for processors goes wrong with more (seen in torch"
            " 2.13)"
        )
    if not choices.batching:
        return "off (--batching off)"
    reasons = {name: reason for name, net in nets.items() if (reason := why_not_batched(name, net))}
    if len(reasons) == len(nets):
        return f"no: {next(iter(reasons.values()))}"
    apart = "".join(f"; not {name}: {reason}" for name, reason in reasons.items())
    return f"each network once a stage, its pictures of one size together{apart}"


def _pairing(choices: Choices, recipe: CycleGAN, nets: Nets) -> str:
    if not choices.pairing:
        return (
            "off (--pairing off)"
            if choices.options.pairing == "off"
            else f"no: {'PyTorch computes' if not choices.kernels else 'off'}"
        )
    found = []
    for phase in recipe.phases:
        pair = {name: nets[name] for name in phase.trains}
        reasons = [*(why_not_batched(name, net) for name, net in pair.items()), why_not_paired(pair)]
        reason = next(filter(None, reasons), "")
        found.append(f"{' and '.join(pair)} " + (f"apart: {reason}" if reason else "as one"))
    return ", ".join(found)


def _overlap(choices: Choices) -> str:
    if choices.device.type != "cuda":
        return (
            "no: one stream here"
            if choices.options.overlap != "phases"
            else "phases in another order, on one stream"
        )
    parts = ["weight gradients"] * choices.weight_stream + [
        "the discriminators' phase"
    ] * choices.phase_stream
    off = (
        "off (--overlap off)"
        if choices.options.overlap == "off"
        else "no: without a graph there is nothing to fill"
    )
    return f"{' and '.join(parts)} on streams of their own" if parts else off


def _compiled(choices: Choices, recipe: CycleGAN, nets: Nets) -> str:
    if not choices.compiled:
        return "no"
    eager = recipe.twice_differentiated
    if choices.kernels:
        others = [name for name in nets if name not in choices.kernels and name not in eager]
        return f"{' '.join(others)} and the losses" if others else "the losses (the networks are kernels)"
    return f"all but {' '.join(eager)} (wgangp differentiates them twice)" if eager else "yes"


def _graph(choices: Choices) -> str:
    graph = choices.options.graph
    if choices.graph:
        return f"one for each size of batch, at most {MOST_GRAPHS}, captured after {WARM_UP} iterations"
    if graph == "off":
        return "off (--graph off)"
    return (
        "no: needs a CUDA GPU" if choices.device.type != "cuda" else "no: --compile or --graph on asks for it"
    )
