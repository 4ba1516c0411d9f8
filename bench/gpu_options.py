"""Run real training iterations with every option of the engine and of the recipes.

    python -m bench.gpu_options

For each case the losses of the first iteration are compared with float64 by the parity rule of
fastcyclegan.testing. All losses must be finite, all networks must have changed, and the expected number of
graphs must have been captured. The report of a failure includes the kernels that were launched last.
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

from bench.launches import FAULTS, LaunchLog, forbid_fallback, is_device_fault, plant_fault
from bench.machine import DEVICE
from bench.on_device import BROKEN, read_events
from fastcyclegan.config import EngineConfig, OptimConfig, TrainConfig, default_config, with_changes
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.devtools.recorded_graph import RecordedGraph
from fastcyclegan.engine import Engine
from fastcyclegan.nn.networks import set_impl
from fastcyclegan.recipes.cyclegan import CycleGANRecipe
from fastcyclegan.recipes.pix2pix import Pix2PixRecipe
from fastcyclegan.testing import assert_parity, copy_of, random_batch

LR = 2e-4
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
Settings = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Settings that differ from the training defaults of a recipe with batch 1, and the expected result."""

    name: str
    recipe: str = CycleGANRecipe.name
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
    """Whether the first losses depend on random numbers drawn on the device, so that no other computation can
    reproduce them.
    """

    @property
    def config(self) -> TrainConfig:
        settings = {"model": self.model, "loss": self.loss, "optim": self.optim}
        return with_changes(default_config(self.recipe), settings)


PIX2PIX = Pix2PixRecipe.name
# The most informative first: the defaults, then the options of the engine, then those of the recipe and the
# networks, and then another recipe.
CASES = [
    Case("the default: bf16, graph, pairs, overlapped gradients"),
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
    Case("--diffaugment", loss={"diffaugment": "color,translation,cutout"}),
    Case("--ema 0.999", optim={"ema": 0.999}),
    Case("--affine", model={"affine": True}),
    Case("--upsample resize", model={"upsample": "resize"}),
    Case(
        "--downsample antialias --upsample antialias",
        model={"downsample": "antialias", "upsample": "antialias"},
    ),
    Case("--use_dropout", model={"use_dropout": True}, random=True),
    Case("--norm batch", model={"norm": "batch"}),
    Case("--norm none", model={"norm": "none"}),
    Case("--netD pixel", model={"netD": "pixel"}),
    Case("--netD n_layers --n_layers_D 4", model={"netD": "n_layers", "n_layers_D": 4}),
    Case("--netG resnet_6blocks at 128x128", model={"netG": "resnet_6blocks"}, size=128),
    Case("--netG unet_256", model={"netG": "unet_256"}),
    Case("--input_nc 1 --output_nc 1", model={"input_nc": 1, "output_nc": 1}),
    Case("--impl reference", model={"impl": "reference"}),
    Case("pix2pix", PIX2PIX, random=True),
    Case("pix2pix --compile", PIX2PIX, compiled=True, random=True),
    Case("pix2pix --no_dropout", PIX2PIX, model={"no_dropout": True}),
    Case(
        "pix2pix --norm instance --batch_size 4",
        PIX2PIX,
        model={"norm": "instance", "no_dropout": True},
        batch=4,
        graphs=2,
    ),
    Case("pix2pix --gan_mode wgangp", PIX2PIX, loss={"gan_mode": "wgangp"}, random=True),
]


def tiny(case: Case) -> Case:
    """Return ``case`` with sizes so small that it takes a second or two without a GPU."""
    model, size = {"ngf": 2, "ndf": 2, **case.model}, 24
    if case.recipe == PIX2PIX:
        model["netG"], size = "unet_64", 64
    elif str(model.get("netG", "")).startswith("unet"):
        # A U-Net's input size must be a multiple of the number in its name.
        model["netG"], size = "unet_128", 128
    else:
        model["netG"] = "resnet_1blocks"
        if model.get("n_layers_D") == 4:
            size = 48
    return replace(case, model=model, size=size)


INTERPRETED = Case(
    "interpreted kernels",
    model={"netG": "resnet_0blocks", "ngf": 2, "ndf": 2, "netD": "pixel", "impl": "triton"},
    precision="fp32", size=8, engine={"graph": "off"}, graphs=0, iterations=1,
)  # fmt: skip


def to_device(batch: Batch, dtype: torch.dtype = torch.float32) -> Batch:
    return batch.with_images(lambda images: images.to(DEVICE, dtype, memory_format=torch.channels_last))


def engine_of(case: Case, nets: dict[str, nn.Module], **more: Any) -> Engine:
    """Return an engine for ``case`` with a copy of ``nets``.

    Without a GPU it uses a stand-in for CUDA graphs.
    """
    options, config, device = {"graph": "on", **case.engine}, case.config, torch.device(DEVICE)
    if DEVICE == "cpu" and options["graph"] == "on":
        more["capture"] = RecordedGraph()
    recipe, engine = config.make_recipe(), EngineConfig(**options)
    return Engine(recipe, copy_of(nets), config.optim, device, case.precision, case.compiled, engine, **more)


def check_first_losses(case: Case, nets: dict[str, nn.Module], batch: Batch, losses: Tensor) -> None:
    """Raise AssertionError if the losses of the first iteration are not close enough to float64.

    The parity rule of ``fastcyclegan.testing`` sets the limit.
    """
    config, plain = case.config, EngineConfig(graph="off", pairing="off", batching="off")

    def of(precision: str, dtype: torch.dtype) -> Tensor:
        with_reference = copy_of(nets, dtype)
        for net in with_reference.values():
            set_impl(net, "reference")
        recipe, device = config.make_recipe(), torch.device(DEVICE)
        engine = Engine(recipe, with_reference, OptimConfig(), device, precision, options=plain)
        return engine.step(to_device(batch, dtype), LR)

    reference, truth = of(case.precision, torch.float32), of("fp32", torch.float64)
    assert_parity("losses of iteration 1", losses, reference, truth, DTYPES[case.precision])


def run(case: Case) -> str:
    """Run ``case`` and return a line that reports its times and peak memory.

    Raises AssertionError if a result is not as expected.
    """
    torch.manual_seed(0)
    recipe = case.config.make_recipe()
    nets = recipe.build_networks()
    engine = engine_of(case, nets)
    before = {name: _copied(net) for name, net in engine.nets.items()}
    images = 4 * case.batch + 2
    paired, numbers = recipe.layouts[0] == "aligned", recipe.numbers_per_sample
    plan = Plan(0, images, images, case.batch, numbers=numbers, paired=paired)
    channels = recipe.requirements.channels
    batches = [random_batch(case.size, plan, n, channels) for n in range(case.iterations)]
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    marks, losses = [time.perf_counter()], []
    for batch in batches:
        losses.append(engine.step(to_device(batch), LR))
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        marks.append(time.perf_counter())
    for n, each in enumerate(losses):
        assert torch.isfinite(each).all(), f"losses of iteration {n + 1} are not finite: {each.tolist()}"
    for name, net in engine.nets.items():
        pairs = zip(before[name], net.parameters(), strict=True)
        same = all(torch.equal(a, b) for a, b in pairs)
        assert not same, f"the weights of {name} have not changed in {case.iterations} iterations"
    captured, reason = 0, ""
    if engine.graphs is not None:
        captured, reason = engine.graphs.captured, engine.graphs.off
    assert captured == case.graphs, f"{captured} graphs were captured, expected {case.graphs}. {reason}"
    if not case.random:
        check_first_losses(case, nets, batches[0], losses[0])
    return _line(case.name, marks)


def _copied(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def _line(name: str, marks: Sequence[float]) -> str:
    seconds = [after - before for before, after in pairwise(marks)]
    later = sorted(seconds[len(seconds) // 2 :])
    memory = ""
    if DEVICE == "cuda":
        memory = f"{torch.cuda.max_memory_allocated() / 2**30:6.2f} GiB"
    # These times include waiting for the device after each iteration; the benches measure without it.
    return f"{name:<58}{seconds[0]:7.1f} s first {1e3 * later[len(later) // 2]:9.2f} ms later {memory}"


def parse(arguments: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return the parser and the parsed options; the caller reports later errors through the parser."""
    parser = argparse.ArgumentParser(prog="bench.gpu_options", description=str(__doc__).split("\n\n")[0])
    parser.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="append a JSON line to FILE for the start and the result of each case; skip cases already in it",
    )
    parser.add_argument("--only", metavar="CASE", help="run only this case")
    parser.add_argument("--tiny", action="store_true", help="use tiny sizes, for machines without a GPU")
    parser.add_argument(
        "--launch-log", type=Path, metavar="FILE", help="write each kernel launch to FILE before it starts"
    )
    parser.add_argument(
        "--plant-fault",
        choices=FAULTS,
        help="kernel: compute wrong results in kernels; crash: crash them",
    )
    return parser, parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the cases that the file given by ``--record`` does not contain yet.

    Returns 1 if a case failed, and BROKEN after a device fault.
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
        parser.error(
            f"--only: no case is named {options.only!r}; cases: {', '.join(case.name for case in cases)}"
        )
    return _run_all(todo, log, write)


def _run_all(cases: Sequence[Case], log: LaunchLog, write: Callable[..., None]) -> int:
    failed = 0
    for case in cases:
        write(event="began", case=case.name)
        log.last.clear()
        try:
            line = run(case)
        # An error in one case must not stop the others.
        except Exception as error:
            broken = is_device_fault(error)
            text = "".join(traceback.format_exception(error))
            print(f"{case.name}: FAILED\n{text}", flush=True)
            details = {"case": case.name, "text": text[-6000:], "launches": list(log.last)}
            if broken:
                write(event="broken", **details)
                return BROKEN
            write(event="failed", **details)
            failed += 1
        else:
            print(line, flush=True)
            write(event="held", case=case.name, line=line)
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
