"""Compile every GPU kernel, and exit with an error if any is unfit to ship. With --warm, fill Triton's cache
ahead of a training run instead.

This is the command compile_kernels.
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
        help="chips to compile for; faults on sm_100 are only noted (default: all, or with --warm this GPU)",
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="number of compiler processes (default: one per core)",
    )
    warm = parser.add_argument_group("filling the cache")
    text = (
        "compile the kernels of a training run and its translations into Triton's cache (TRITON_CACHE_DIR)."
        " RUN is the run's folder; flags of train.py (--netG, --batch_size, --crop_size, --precision ...)"
        " describe a run or override the settings of RUN"
    )
    warm.add_argument("--warm", nargs="?", const="", metavar="RUN", help=text)
    gate = parser.add_argument_group("checking the kernels (without --warm)")
    gate.add_argument("--dtype", nargs="+", choices=list(DTYPES), help="dtypes to compile for (default: all)")
    gate.add_argument(
        "--configs",
        choices=get_args(Configs),
        help="which configurations of each kernel to compile: all, only the first, or telling, which means"
        " all for the default training iteration and the first for everything else (default: all)",
    )
    gate.add_argument("--json", type=Path, metavar="FILE", help="write the full reports to FILE as JSON")
    gate.add_argument("--out", type=Path, metavar="DIR", help="write the compiled kernels (cubins) to DIR")
    return parser


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, which is 1 if a kernel has a fault or does not compile."""
    parser = _parser()
    options, flags = parser.parse_known_args(args)
    if _launch.interpreted():
        parser.error("TRITON_INTERPRET is set, and interpreted kernels are not compiled; unset it")
    if options.processes < 1:
        parser.error(f"--processes must be at least 1, got {options.processes}")
    try:
        if options.warm is None:
            return _check(parser, options, flags)
        return _warm(parser, options, flags)
    except UserError as error:
        parser.error(str(error))
    except OSError as error:
        reason = str(error)
        if error.filename:
            reason = f"{error.filename}: {error.strerror}"
        parser.error(f"{reason} (Triton's cache is in TRITON_CACHE_DIR, by default ~/.triton/cache)")
    except KeyboardInterrupt:
        print(
            "\nstopped: kernels compiled so far are kept, and the same command resumes from there",
            file=sys.stderr,
        )
        return 130


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace, flags: list[str]) -> int:
    """Compile all kernels that fastcyclegan launches, report on them, and return the exit code."""
    if flags:
        parser.error(
            f"unrecognized arguments: {' '.join(flags)} (a run's folder and the flags of train.py need"
            " --warm)"
        )
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.open("a").close()  # so that an error is raised now, not after twenty minutes
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    jobs = _shipped(options)
    counts = ", ".join(f"{len(chip_jobs)} for {name}" for name, chip_jobs in jobs.items())
    registered = f"{len(_launch.REGISTRY)} kernels"
    print(f"Triton {triton.__version__}, {registered}; specialisations to compile: {counts}", flush=True)
    checked = reports(jobs, options.out, options.processes)
    print("\n".join([*table(checked), *waves()]))
    if options.json is not None:
        kernels = [asdict(r) for r in checked]
        options.json.write_text(json.dumps({"triton": triton.__version__, "kernels": kernels}, indent=1))
    failed = sum(bool(r.faults) for r in checked if ARCHS[r.arch].gated)
    if failed:
        print(f"{failed} of {len(checked)} specialisations fail")
        return 1
    print(f"all {len(checked)} specialisations pass")
    return 0


def _shipped(options: argparse.Namespace) -> dict[str, list[Job]]:
    """Return the jobs for each chip, as selected by --arch, --dtype and --configs. The default is all."""
    archs, dtypes, configs = list(ARCHS), list(DTYPES), options.configs
    if options.arch is not None:
        archs = options.arch
    if options.dtype is not None:
        dtypes = options.dtype
    if configs is None:
        configs = "all"
    return {name: shipped_jobs(dtypes, ARCHS[name], configs) for name in archs}


def _warm(parser: argparse.ArgumentParser, options: argparse.Namespace, flags: list[str]) -> int:
    """Fill Triton's cache for the run that ``options`` and ``flags``, the flags of train.py, describe.

    Returns the exit code.
    """
    # Imported late, because the flags of train.py need the packages of the command line.
    from fastcyclegan.console import Console
    from fastcyclegan.kernel_gate.warm import config_of, warm

    for name in ("dtype", "configs", "json", "out"):
        if getattr(options, name) is not None:
            precision = "with --warm, train.py's flag --precision sets the precision"
            parser.error(f"--{name} cannot be combined with --warm ({precision})")
    if options.arch is None and not torch.cuda.is_available():
        parser.error(f"--warm: this machine has no GPU; name the chip with --arch ({', '.join(ARCHS)})")
    config, console = config_of(options.warm, flags), Console()
    if options.arch is None:
        chips = [this_chip()]
    else:
        chips = [ARCHS[name].chip for name in dict.fromkeys(options.arch)]
    with console:
        warmed = [warm(config, chip, console.log, options.processes, console.once) for chip in chips]
    return int(not all(warmed))


def this_chip() -> _launch.Chip:
    """Return this machine's GPU."""
    return chip_of(torch.device("cuda", torch.cuda.current_device()))


if __name__ == "__main__":
    sys.exit(main())
