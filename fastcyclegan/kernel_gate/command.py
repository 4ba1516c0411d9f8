"""Compile every kernel that runs on a GPU, and fail on what must not ship; or (--warm) fill a machine's cache
ahead of a training run.

The command compile_kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import torch
import triton

from fastcyclegan.devtools.compile_kernels import ARCHS, reports, table
from fastcyclegan.devtools.jobs import Job
from fastcyclegan.devtools.tile_occupancy import waves
from fastcyclegan.engine.ahead import chip_of
from fastcyclegan.errors import UserError
from fastcyclegan.kernel_gate.shipped import DTYPES, Configs, shipped_jobs
from fastcyclegan.kernels import _launch


def _parser() -> argparse.ArgumentParser:
    description = str(__doc__).split("\n\n")[0]
    parser = argparse.ArgumentParser(prog="compile_kernels", description=description, allow_abbrev=False)
    parser.add_argument(
        "--arch",
        nargs="+",
        choices=list(ARCHS),
        help="chips (default: all, sm_100 reported only; with --warm this GPU)",
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="compilers at a time (default: one a core)",
    )
    warm = parser.add_argument_group("filling the cache")
    text = (
        "compile what a training run will launch, and its translations, into Triton's cache"
        " (TRITON_CACHE_DIR): RUN is its folder; flags of train.py (--netG, --batch_size, --crop_size,"
        " --precision ...) describe a run or change RUN's"
    )
    warm.add_argument("--warm", nargs="?", const="", metavar="RUN", help=text)
    gate = parser.add_argument_group("the gate (without --warm)")
    gate.add_argument("--dtype", nargs="+", choices=list(DTYPES), help="dtypes of the tensors (default: all)")
    gate.add_argument(
        "--configs",
        choices=get_args(Configs),
        help="configurations (default: all); telling: all of the default iteration",
    )
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
        if options.warm is None:
            return _check(parser, options, rest)
        return _warm(parser, options, rest)
    except UserError as error:
        parser.error(str(error))
    except OSError as error:
        where = str(error)
        if error.filename:
            where = f"{error.filename}: {error.strerror}"
        parser.error(f"{where} (Triton's cache is where TRITON_CACHE_DIR says, by default ~/.triton/cache)")
    except KeyboardInterrupt:
        print("\nstopped: what is compiled is kept, and the same command goes on from there", file=sys.stderr)
        return 130


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace, rest: list[str]) -> int:
    """Compile all that runs and report on it."""
    if rest:
        parser.error(
            f"unrecognized arguments: {' '.join(rest)} (a run's folder and the flags of train.py come with"
            " --warm)"
        )
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.open("a").close()  # now, not after twenty minutes
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    jobs = _shipped(options)
    counts = ", ".join(f"{len(mine)} for {name}" for name, mine in jobs.items())
    specialisations = f"specialisations of {len(_launch.REGISTRY)} kernels"
    print(f"Triton {triton.__version__}, {specialisations}: {counts}", flush=True)
    found = reports(jobs, options.out, options.processes)
    print("\n".join([*table(found), *waves()]))
    if options.json is not None:
        kernels = [asdict(r) for r in found]
        options.json.write_text(json.dumps({"triton": triton.__version__, "kernels": kernels}, indent=1))
    failed = sum(bool(r.faults) for r in found if ARCHS[r.arch].gated)
    if failed:
        print(f"{failed} of {len(found)} fail")
        return 1
    print(f"all {len(found)} pass")
    return 0


def _shipped(options: argparse.Namespace) -> dict[str, list[Job]]:
    """Return what runs on each chip that was asked for; all of it where nothing else was asked for."""
    archs, dtypes, configs = list(ARCHS), list(DTYPES), options.configs
    if options.arch is not None:
        archs = options.arch
    if options.dtype is not None:
        dtypes = options.dtype
    if configs is None:
        configs = "all"
    return {name: shipped_jobs(dtypes, ARCHS[name], configs) for name in archs}


def _warm(parser: argparse.ArgumentParser, options: argparse.Namespace, rest: list[str]) -> int:
    """Fill the cache for the run that the options describe."""
    # Imported late: the flags of train.py need packages of the command line.
    from fastcyclegan.console import Console
    from fastcyclegan.kernel_gate.warm import config_of, warm

    for name in ("dtype", "configs", "json", "out"):
        if getattr(options, name) is not None:
            precision = "--precision is train.py's flag for what is computed in"
            parser.error(f"--{name} is the gate's and says nothing with --warm ({precision})")
    if options.arch is None and not torch.cuda.is_available():
        parser.error(f"--warm: this machine has no GPU: name the chip with --arch ({', '.join(ARCHS)})")
    config, console = config_of(options.warm, rest), Console()
    if options.arch is None:
        chips = [this_chip()]
    else:
        chips = [ARCHS[name].chip for name in dict.fromkeys(options.arch)]
    with console:
        warmed = [warm(config, chip, console.log, options.processes, console.once) for chip in chips]
    return int(not all(warmed))


def this_chip() -> _launch.Chip:
    """Return the GPU of this machine."""
    return chip_of(torch.device("cuda", torch.cuda.current_device()))


if __name__ == "__main__":
    sys.exit(main())
