"""Real iterations of every option of the engine and the recipe: python -m bench.gpu_options --help

Of each case the losses of the first iteration are held to float64 by the rule of fastcyclegan.testing, all
losses must be finite, all networks must have moved, and a graph must have been captured where there is to be
one. What broke is told with the kernels launched last.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.launches import FAULTS, LaunchLog, breaks_the_device, forbid_fallback, plant_fault
from bench.machine import DEVICE
from bench.on_device import BROKEN, read_events
from fastcyclegan.config import EngineConfig, LossConfig, ModelConfig, OptimConfig
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.devtools.recorded_graph import RecordedGraph
from fastcyclegan.engine import Engine
from fastcyclegan.nn.networks import set_impl
from fastcyclegan.testing import assert_parity, copy_of, make_engine, random_batch, seeded_networks

LR = 2e-4
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
Settings = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Settings that differ from the defaults of training with ``--compile`` at batch 1, and what can be said
    of the result.
    """

    name: str
    model: Settings = field(default_factory=dict)
    loss: Settings = field(default_factory=dict)
    optim: Settings = field(default_factory=dict)
    engine: Settings = field(default_factory=dict)
    precision: str = "bf16"
    compiled: bool = False
    batch: int = 1
    size: int = 256
    iterations: int = 20
    graphs: int = 1
    random: bool = False
    """Whether the first losses depend on numbers drawn on the device, so that no other computation has the
    same.
    """


# The most telling first: what a user meets without a flag, then the engine's options, then the recipe's and
# the networks'.
CASES = [
    Case("the default: bf16, graph, pairs, weight gradients beside"),
    Case("--compile", compiled=True),
    Case("fp32", precision="fp32"),
    Case("--graph off", engine={"graph": "off"}, graphs=0),
    Case("--overlap off", engine={"overlap": "off"}),
    Case("--overlap phases", engine={"overlap": "phases"}),
    Case("--pairing off", engine={"pairing": "off"}),
    Case("--batching off", engine={"batching": "off"}),
    Case("--batch_size 4, the last batch smaller", batch=4, graphs=2),
    Case("--batch_size 4 --micro_batch 2", batch=4, engine={"micro_batch": 2}, graphs=2),
    Case("--nvtx", engine={"nvtx": True}),
    Case("--lambda_identity 0", loss={"lambda_identity": 0.0}),
    Case("--pool_size 0", loss={"pool_size": 0}),
    Case("--pool_size 4: full pools", loss={"pool_size": 4}),
    Case("--gan_mode vanilla", loss={"gan_mode": "vanilla"}),
    Case("--gan_mode wgangp", loss={"gan_mode": "wgangp"}, random=True),
    Case("--ema 0.999", optim={"ema": 0.999}),
    Case("--affine", model={"affine": True}),
    Case("--upsample resize", model={"upsample": "resize"}),
    Case("--use_dropout", model={"use_dropout": True}, random=True),
    Case("--norm batch", model={"norm": "batch"}),
    Case("--norm none", model={"norm": "none"}),
    Case("--netD pixel", model={"netD": "pixel"}),
    Case("--netD n_layers --n_layers_D 4", model={"netD": "n_layers", "n_layers_D": 4}),
    Case("--netG resnet_6blocks at 128x128", model={"netG": "resnet_6blocks"}, size=128),
    Case("--netG unet_256", model={"netG": "unet_256"}),
    Case("--input_nc 1 --output_nc 1", model={"input_nc": 1, "output_nc": 1}),
    Case("--impl reference", model={"impl": "reference"}),
]


def tiny(case: Case) -> Case:
    """Return ``case`` as a machine without a GPU can run it in a second or two; the first one with
    interpreted kernels.
    """
    model, size = {"ngf": 2, "ndf": 2, **case.model}, 24
    if str(model.get("netG", "")).startswith("unet"):
        # Its side is a multiple of what its name says.
        model["netG"], size = "unet_128", 128
    else:
        model["netG"] = "resnet_1blocks"
        if model.get("n_layers_D") == 4:
            size = 48
    return replace(case, model=model, size=size)


INTERPRETED = Case(
    "interpreted kernels", {"netG": "resnet_0blocks", "ngf": 2, "ndf": 2, "netD": "pixel", "impl": "triton"},
    precision="fp32", size=8,
    engine={"graph": "off"}, graphs=0, iterations=1,
)  # fmt: skip


def moved(batch: Batch, dtype: torch.dtype = torch.float32) -> Batch:
    layout = torch.channels_last
    return replace(
        batch,
        A=batch.A.to(DEVICE, dtype, memory_format=layout),
        B=batch.B.to(DEVICE, dtype, memory_format=layout),
    )


def engine_of(case: Case, nets: dict[str, nn.Module], **more: Any) -> Engine:
    """Return an engine over a copy of ``nets`` for ``case``; on a machine without a GPU with the stand-in for
    graphs.
    """
    options = {"graph": "on", **case.engine}
    if DEVICE == "cpu" and options["graph"] == "on":
        more["capture"] = RecordedGraph()
    loss, optim = LossConfig(**case.loss), OptimConfig(**case.optim)
    return make_engine(
        nets, loss, optim, DEVICE, case.precision, case.compiled, EngineConfig(**options), **more
    )


def check_first_losses(case: Case, nets: dict[str, nn.Module], batch: Batch, losses: Tensor) -> None:
    """Hold the losses of the first iteration to float64 by the rule. Raises AssertionError."""
    loss, plain = LossConfig(**case.loss), EngineConfig(graph="off", pairing="off", batching="off")

    def of(precision: str, dtype: torch.dtype) -> Tensor:
        with_reference = copy_of(nets, dtype)
        for net in with_reference.values():
            set_impl(net, "reference")
        engine = make_engine(with_reference, loss, device=DEVICE, precision=precision, options=plain)
        return engine.step(moved(batch, dtype), LR)

    theirs, truth = of(case.precision, torch.float32), of("fp32", torch.float64)
    assert_parity("losses of iteration 1", losses, theirs, truth, DTYPES[case.precision])


def run(case: Case) -> str:
    """Run ``case`` and return a line on what it took. Raises AssertionError where something is not as it must
    be.
    """
    nets = seeded_networks(ModelConfig(**case.model))
    engine = engine_of(case, nets)
    before = {name: _copied(net) for name, net in engine.nets.items()}
    plan = Plan(0, 4 * case.batch + 2, 4 * case.batch + 2, case.batch)
    channels = (case.model.get("input_nc", 3), case.model.get("output_nc", 3))
    given = [random_batch(case.size, plan, n, channels) for n in range(case.iterations)]
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    marks, losses = [time.perf_counter()], []
    for batch in given:
        losses.append(engine.step(moved(batch), LR))
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        marks.append(time.perf_counter())
    for n, each in enumerate(losses):
        assert torch.isfinite(each).all(), f"losses of iteration {n + 1} are not finite: {each.tolist()}"
    for name, net in engine.nets.items():
        pairs = zip(before[name], net.parameters(), strict=True)
        same = all(torch.equal(a, b) for a, b in pairs)
        assert not same, f"{name} has not moved in {case.iterations} iterations"
    captured, why = 0, ""
    if engine.graphs is not None:
        captured, why = engine.graphs.captured, engine.graphs.off
    assert captured == case.graphs, f"{captured} graphs were captured, {case.graphs} expected. {why}"
    if not case.random:
        check_first_losses(case, nets, given[0], losses[0])
    return _line(case.name, marks)


def _copied(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def _line(name: str, marks: Sequence[float]) -> str:
    seconds = [after - before for before, after in pairwise(marks)]
    later = sorted(seconds[len(seconds) // 2 :])
    memory = ""
    if DEVICE == "cuda":
        memory = f"{torch.cuda.max_memory_allocated() / 2**30:6.2f} GiB"
    # Each waits for the device: for a figure without that, the benches.
    return f"{name:<58}{seconds[0]:7.1f} s first {1e3 * later[len(later) // 2]:9.2f} ms later {memory}"


def parse(arguments: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return what was asked for, and the parser, which ends the process for what turns out to be wrong."""
    parser = argparse.ArgumentParser(prog="bench.gpu_options", description=str(__doc__).split("\n\n")[0])
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="a line of JSON a case; those in it are left out"
    )
    parser.add_argument("--only", metavar="CASE", help="this case alone")
    parser.add_argument("--tiny", action="store_true", help="a size for machines without a GPU")
    parser.add_argument(
        "--launch-log", type=Path, metavar="FILE", help="every launch, written before it is made"
    )
    parser.add_argument("--plant-fault", choices=FAULTS, help="let kernels compute something else, or crash")
    return parser, parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the cases that ``--record`` does not know. Returns 1 where one failed, BROKEN after a fault of the
    device.
    """
    parser, options = parse(arguments)
    log = LaunchLog(options.launch_log)
    log.start()
    forbid_fallback()
    if options.plant_fault:
        plant_fault(options.plant_fault)
    cases = CASES
    if options.tiny:
        cases = [INTERPRETED, *(tiny(case) for case in CASES if not case.compiled)]
    known = set()
    if options.record is not None:
        known = {event["case"] for event in read_events(options.record)}

    def write(**event: Any) -> None:
        if options.record is not None:
            with options.record.open("a") as file:
                file.write(json.dumps(event) + "\n")

    todo = [case for case in cases if case.name not in known and options.only in (None, case.name)]
    if not todo and not known:
        parser.error(f"no case is called {options.only!r}: {', '.join(case.name for case in cases)}")
    return _run_all(todo, log, write)


def _run_all(cases: Sequence[Case], log: LaunchLog, write: Callable[..., None]) -> int:
    failed = 0
    for case in cases:
        write(event="began", case=case.name)
        log.last.clear()
        try:
            line = run(case)
        # Whatever one case does, the others are tried.
        except Exception as error:
            broken = breaks_the_device(error)
            text = "".join(traceback.format_exception(error))
            print(f"{case.name}: FAILED\n{text}", flush=True)
            told = {"case": case.name, "text": text[-6000:], "launches": list(log.last)}
            if broken:
                write(event="broken", **told)
                return BROKEN
            write(event="failed", **told)
            failed += 1
        else:
            print(line, flush=True)
            write(event="held", case=case.name, line=line)
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
