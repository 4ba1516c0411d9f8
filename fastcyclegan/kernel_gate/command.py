"""Compile every kernel that runs on a GPU, and fail on what must not ship; or (--warm) fill a machine's cache ahead of a training run.

The command compile_kernels.

What runs is found by dry runs at the real sizes: iterations of an engine with each option that changes kernels, translations, and what
other projects use of the operators. A kernel of the registry that none of this launches is an error.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal, get_args

import torch
import triton

from fastcyclegan.config import EngineConfig, LossConfig, ModelConfig, OptimConfig
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.devtools.compile_kernels import ARCHS, Arch, jobs_of, reports, table
from fastcyclegan.devtools.jobs import Job
from fastcyclegan.devtools.tile_occupancy import waves
from fastcyclegan.engine import Engine
from fastcyclegan.engine.ahead import chip_of, dry_translation
from fastcyclegan.errors import UserError
from fastcyclegan.kernels import _launch, accumulating, descriptor_launch, instance_norm, reflect_conv2d
from fastcyclegan.kernels.dispatch import as_on_gpu
from fastcyclegan.nn.networks import Generator
from fastcyclegan.recipes.cyclegan import CycleGAN, build_networks
from fastcyclegan.testing import random_batch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SIZE = 256
# One block launches what nine do.
SMALL = ModelConfig(netG="resnet_1blocks")
# Networks whose layers are of other shapes, or in other orders.
OTHERS = (
    dataclasses.replace(SMALL, netG="unet_256", netD="pixel"),
    dataclasses.replace(SMALL, upsample="resize"),
    dataclasses.replace(SMALL, affine=True),
    dataclasses.replace(SMALL, input_nc=1, output_nc=1),
)
Case = Callable[[], object]


# --- What runs ------------------------------------------------------------------------------------------------------------------------


def _step(model: ModelConfig, precision: str, batch: int, identity: bool = True, pairing: str = "auto") -> None:
    """Run an iteration as it is on a GPU."""
    loss = LossConfig() if identity else LossConfig(lambda_identity=0.0)
    options = EngineConfig(pairing=pairing)  # type: ignore[arg-type]
    with as_on_gpu():
        engine = Engine(CycleGAN(loss), build_networks(model), OptimConfig(), torch.device("cpu"), precision, options=options)
        engine.step(random_batch(SIZE, Plan(0, 100, 100, batch), 0, (model.input_nc, model.output_nc)), 2e-4)


def _translate(model: ModelConfig, precision: str, batch: int) -> None:
    net = build_networks(model)["G_AB"]
    dry_translation(net, torch.zeros(batch, model.input_nc, SIZE, SIZE).to(memory_format=torch.channels_last), DTYPES[precision])


def _keeping_inputs(dtype: torch.dtype) -> None:
    """A generator that computes nothing again in the backward pass."""
    net = Generator(n_blocks=1, impl="triton", recompute=False).to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.zeros(1, 3, SIZE, SIZE, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = net(x)
    y.backward(torch.empty_like(y))


def _operators(dtype: torch.dtype) -> None:
    """The modes that no network uses: planes, affine norms, a convolution alone with its bias, a gradient added to another."""
    for shape in ((1, 64, 256, 256), (1, 256, 32, 32)):
        x, residual = (torch.zeros(shape, dtype=dtype, requires_grad=True) for _ in range(2))
        weight, bias = (torch.zeros(shape[1], requires_grad=True) for _ in range(2))
        y = instance_norm(x, weight, bias, act="leaky_relu", residual=residual, impl="triton")
        y.backward(torch.empty_like(y))
    for channels in ((256, 256), (64, 3)):
        weight, bias = torch.zeros(channels[1], channels[0], 3, 3, requires_grad=True), torch.zeros(channels[1], requires_grad=True)
        x = torch.zeros(1, channels[0], 64, 64, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
        for _ in range(2):
            y = reflect_conv2d(x, weight, bias, padding=1, impl="triton")
            with accumulating():
                y.backward(torch.empty_like(y))


def _cases(precision: str, batches: Sequence[int]) -> Iterator[Case]:
    """Yield what is run, each to be run by itself, the default iteration first."""
    dtype = DTYPES[precision]
    for batch, identity, pairing in itertools.product(batches, (True, False), ("auto", "off")):
        yield functools.partial(_step, SMALL, precision, batch, identity, pairing)
    for model in OTHERS:
        yield functools.partial(_step, model, precision, 1)
    for model, batch in itertools.product((SMALL, *OTHERS), batches):
        yield functools.partial(_translate, model, precision, batch)
    yield functools.partial(_keeping_inputs, dtype)
    yield functools.partial(_operators, dtype)


Configs = Literal["all", "first", "telling"]


def in_fp16(job: Job) -> Job:
    """Return a job in bf16 as it is in fp16."""
    return dataclasses.replace(job, data=re.sub(r"(?<=[*<])bf16\b", "fp16", job.data))


def shipped_jobs(dtypes: Iterable[str], arch: Arch, configs: Configs = "all") -> list[Job]:
    """Return every specialisation that runs on a chip in ``dtypes``.

    ``configs``: in all configurations; in the first; or "telling": in all for the default iteration, in the first for what else there is.
    Only "all" has batches of several samples, which launch the same specialisations as long as nobody changes that.
    Raises RuntimeError for a kernel that nothing launches.
    """
    chip, jobs, batches = arch.chip, {}, (1, 2, 4) if configs == "all" else (1,)

    def note(run: Case, dtype: str, every: bool) -> None:
        found = jobs_of(run, chip, every, all_forms=every).jobs
        jobs.update(dict.fromkeys(map(in_fp16, found) if dtype == "fp16" else found))

    for dtype in dtypes:
        for tf32 in (True, False) if dtype == "fp32" else (True,):
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
                # fp16 launches what bf16 does (a test holds it to that); its dry runs take minutes on a CPU.
                for number, case in enumerate(_cases("bf16" if dtype == "fp16" else dtype, batches)):
                    note(case, dtype, configs == "all" or (configs == "telling" and number == 0))
    if chip.capability >= 90:
        note(lambda: list(descriptor_launch.tiles(torch.device("cpu"))), "fp32", False)
    # A chip that has no tensor descriptors is not asked about them.
    unasked = set() if chip.capability >= 90 else {"_descriptor_copy_kernel"}
    forgotten = sorted(set(_launch.REGISTRY) - {job.kernel for job in jobs} - unasked)
    if forgotten:
        raise RuntimeError(f"nothing here launches {', '.join(forgotten)}: add a case to fastcyclegan/kernel_gate.py")
    return list(jobs)


# --- The command ----------------------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    lines = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(prog="compile_kernels", description=lines[0], allow_abbrev=False)
    parser.add_argument("--arch", nargs="+", choices=list(ARCHS), help="chips (default: all, sm_100 reported only; with --warm this GPU)")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="compilers at a time (default: one a core)")
    warm = parser.add_argument_group("filling the cache")
    text = "compile what a training run will launch, and its translations, into Triton's cache (TRITON_CACHE_DIR): RUN is its folder; "
    text += "flags of train.py (--netG, --batch_size, --crop_size, --precision ...) describe a run or change RUN's"
    warm.add_argument("--warm", nargs="?", const="", metavar="RUN", help=text)
    gate = parser.add_argument_group("the gate (without --warm)")
    gate.add_argument("--dtype", nargs="+", choices=list(DTYPES), help="dtypes of the tensors (default: all)")
    gate.add_argument("--configs", choices=get_args(Configs), help="configurations (default: all); telling: all of the default iteration")
    gate.add_argument("--json", type=Path, metavar="FILE", help="write the full reports here")
    gate.add_argument("--out", type=Path, metavar="DIR", help="write the cubins here")
    return parser


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 1 where a kernel has a fault or does not compile."""
    parser = _parser()
    options, rest = parser.parse_known_args(args)
    if _launch.interpreted():
        parser.error("TRITON_INTERPRET is set: interpreted kernels are not compiled; unset it")
    if options.processes < 1:
        parser.error(f"--processes must be at least 1, got {options.processes}")
    try:
        return _check(parser, options, rest) if options.warm is None else _warm(parser, options, rest)
    except UserError as error:
        parser.error(str(error))
    except OSError as error:
        where = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        parser.error(f"{where} (Triton's cache is where TRITON_CACHE_DIR says, by default ~/.triton/cache)")
    except KeyboardInterrupt:
        print("\nstopped: what is compiled is kept, and the same command goes on from there", file=sys.stderr)
        return 130


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace, rest: list[str]) -> int:
    """Compile all that runs and report on it."""
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)} (a run's folder and the flags of train.py come with --warm)")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.open("a").close()  # now, not after twenty minutes
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    names = options.arch or list(ARCHS)
    jobs = {name: shipped_jobs(options.dtype or DTYPES, ARCHS[name], options.configs or "all") for name in names}
    counts = ", ".join(f"{len(mine)} for {name}" for name, mine in jobs.items())
    print(f"Triton {triton.__version__}, specialisations of {len(_launch.REGISTRY)} kernels: {counts}", flush=True)
    found = reports(jobs, options.out, options.processes)
    print("\n".join([*table(found), *waves()]))
    if options.json is not None:
        options.json.write_text(json.dumps({"triton": triton.__version__, "kernels": [asdict(r) for r in found]}, indent=1))
    failed = sum(bool(r.faults) for r in found if ARCHS[r.arch].gated)
    print(f"{failed} of {len(found)} fail" if failed else f"all {len(found)} pass")
    return 1 if failed else 0


def _warm(parser: argparse.ArgumentParser, options: argparse.Namespace, rest: list[str]) -> int:
    """Fill the cache for the run that the options describe."""
    # Imported late: the flags of train.py need packages of the command line.
    from fastcyclegan.console import Console
    from fastcyclegan.kernel_gate.warm import config_of, warm

    useless = [f"--{name}" for name in ("dtype", "configs", "json", "out") if getattr(options, name) is not None]
    if useless:
        parser.error(f"{useless[0]} is the gate's and says nothing with --warm (--precision is train.py's flag for what is computed in)")
    if options.arch is None and not torch.cuda.is_available():
        parser.error(f"--warm: this machine has no GPU: name the chip with --arch ({', '.join(ARCHS)})")
    config, console = config_of(options.warm, rest), Console()
    chips = [ARCHS[name].chip for name in dict.fromkeys(options.arch)] if options.arch else [this_chip()]
    with console:
        warmed = [warm(config, chip, console.say, options.processes, console.once) for chip in chips]
    return 0 if all(warmed) else 1


def this_chip() -> _launch.Chip:
    """Return the GPU of this machine."""
    return chip_of(torch.device("cuda", torch.cuda.current_device()))


if __name__ == "__main__":
    sys.exit(main())
