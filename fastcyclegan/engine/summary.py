"""What an engine chose, in words: the table at the start of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fastcyclegan.engine.batching import why_not_batched, why_not_paired
from fastcyclegan.engine.cuda_graph import MOST_GRAPHS, WARM_UP
from fastcyclegan.kernels.backend_table import describe_backends
from fastcyclegan.nn.networks import computed_by

if TYPE_CHECKING:
    from fastcyclegan.engine.engine import Engine


def describe(engine: Engine) -> dict[str, str]:
    """Return each choice of ``engine`` by its name; where something is not done, why."""
    device = engine.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return {
        "device": f"{device} ({name})",
        "precision": engine.precision,
        "layout": "channels_last",
        "impl": _impl(engine),
        "convolutions": _convolutions(engine),
        **({"kernels": "compiled before the first iteration, where Triton's cache lacks them"} if engine.ahead is not None else {}),
        "batching": _batching(engine),
        "pairing": _pairing(engine),
        "overlap": _overlap(engine),
        "compiled": _compiled(engine),
        "graph": _graph(engine),
        **({"micro batch": f"at most {engine.options.micro_batch} of a batch at a time"} if engine.options.micro_batch is not None else {}),
        **({"average": f"of the generators' weights, decay {engine.average.decay}"} if engine.average is not None else {}),
    }


def _impl(engine: Engine) -> str:
    used = {name: computed_by(net) for name, net in engine.nets.items()}
    if len(set(used.values())) == 1:
        return used["G_AB"]
    twice, reason = engine.recipe.twice_differentiated, "differentiated twice by wgangp"
    return ", ".join(f"{name} {impl}" + f" ({reason})" * (name in twice) for name, impl in used.items())


def _convolutions(engine: Engine) -> str:
    library = {"cuda": "cuDNN", "cpu": "oneDNN"}.get(engine.device.type, "PyTorch")
    if not engine.on_kernels:
        return f"all {library}"
    others = f"Triton in pairs, {library} where networks run apart" if engine.pairing else library
    return f"reflected ones {describe_backends(engine.device)}; strided, transposed and 4x4 ones {others}{_loads(engine.device)}"


def _loads(device: torch.device) -> str:
    """Return how kernels load where that is not as they were meant to: the driver is asked, as at the first launch."""
    if device.type != "cuda":
        return ""
    # Imported late: it needs Triton.
    from fastcyclegan.kernels.descriptor_launch import refusal

    return f"; tensor descriptors refused ({reason}): pointers" if (reason := refusal(device)) else ""


def _batching(engine: Engine) -> str:
    if engine.singly:
        return "no, pictures one by one: PyTorch's compiler for processors goes wrong with more (seen in torch 2.13)"
    if not engine.passes.batching:
        return "off (--batching off)"
    reasons = {name: reason for name, net in engine.nets.items() if (reason := why_not_batched(name, net))}
    if len(reasons) == len(engine.nets):
        return f"no: {next(iter(reasons.values()))}"
    apart = "".join(f"; not {name}: {reason}" for name, reason in reasons.items())
    return f"each network once a stage, its pictures of one size together{apart}"


def _pairing(engine: Engine) -> str:
    if not engine.pairing:
        return "off (--pairing off)" if engine.options.pairing == "off" else f"no: {'PyTorch computes' if not engine.on_kernels else 'off'}"
    found = []
    for phase in engine.recipe.phases:
        nets = {name: engine.nets[name] for name in phase.trains}
        reasons = [*(why_not_batched(name, net) for name, net in nets.items()), why_not_paired(nets)]
        reason = next(filter(None, reasons), "")
        found.append(f"{' and '.join(nets)} " + (f"apart: {reason}" if reason else "as one"))
    return ", ".join(found)


def _overlap(engine: Engine) -> str:
    if engine.device.type != "cuda":
        return "no: one stream here" if engine.options.overlap != "phases" else "phases in another order, on one stream"
    parts = ["weight gradients"] * (engine.weight_stream is not None) + ["the discriminators' phase"] * (engine.phase_stream is not None)
    off = "off (--overlap off)" if engine.options.overlap == "off" else "no: without a graph there is nothing to fill"
    return f"{' and '.join(parts)} on streams of their own" if parts else off


def _compiled(engine: Engine) -> str:
    if not engine.compiled:
        return "no"
    eager = engine.recipe.twice_differentiated
    if engine.on_kernels:
        others = [name for name in engine.nets if name not in engine.on_kernels and name not in eager]
        return f"{' '.join(others)} and the losses" if others else "the losses (the networks are kernels)"
    return f"all but {' '.join(eager)} (wgangp differentiates them twice)" if eager else "yes"


def _graph(engine: Engine) -> str:
    graph = engine.options.graph
    if engine.graphs is not None:
        return f"one for each size of batch, at most {MOST_GRAPHS}, captured after {WARM_UP} iterations"
    if graph == "off":
        return "off (--graph off)"
    return "no: needs a CUDA GPU" if engine.device.type != "cuda" else "no: --compile or --graph on asks for it"
