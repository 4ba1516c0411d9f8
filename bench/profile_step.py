"""Profile one training step of a provider: write a Chrome trace, and print the costliest kernels.

    python scripts/profile_step.py --provider ours_compiled

The launches by part of the step are printed as well. On a GPU, the kernels are those of the device. Without
one, CPU operators take their place, each with its time excluding the operators that it calls. The parts are G
forward, G backward, D (both directions), and the rest: Adam, the pools and copies. ``trace.json.gz`` can be
opened in a browser's tracing page, and ``profile.json`` is the input of ``bench/roofline.py --profile``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from bench.baselines import plain_networks
from bench.chrome_trace import PARTS, PHASE, STEP, Profile, analyse
from bench.cyclegan_baseline import cyclegan_config
from bench.machine import DEVICE, machine
from bench.providers import PROVIDERS, train_step
from bench.roofline import measured_chip
from bench.step_work import step_work, total
from bench.timing import Unavailable
from fastcyclegan.config import EngineConfig, TrainConfig
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.testing import random_batch

WARM_UPS = 4
COSTLIEST = 10
SIZE = {"cpu": 128, "cuda": 256}


def tables(profile: Profile, floor: float, chip: str) -> Iterator[str]:
    """Yield the lines to print.

    They show the step's time and lower bound, its costliest kernels, and launches and time by part of the
    step. ``floor`` is the lower bound in seconds, and ``chip`` describes the ceilings that it is calculated
    from.
    """
    heading, launches = "operator (excluding the operators it calls)", "operators"
    if DEVICE == "cuda":
        heading, launches = "kernel", "launches"
    busy = sum(profile.seconds.values())
    yield f"The step took {profile.step * 1e3:.2f} ms under the profiler, with {busy * 1e3:.2f} ms of work."
    yield f"Its lower bound is {floor * 1e3:.3g} ms ({chip})."
    yield f"\n{heading:<72}{'calls':>7}{'ms':>10}{'of work':>13}{'of bound':>14}"
    for name, (seconds, calls) in list(profile.kernels.items())[:COSTLIEST]:
        shares = f"{100 * seconds / busy:>11.1f} %{100 * seconds / floor:>12.1f} %"
        yield f"{name[:70]:<72}{calls:>7}{seconds * 1e3:>10.3f}{shares}"
    yield f"\n{'part':<14}{launches:>10}{'ms':>10}"
    for part in PARTS:
        yield f"{part:<14}{profile.launches[part]:>10}{profile.seconds[part] * 1e3:>10.2f}"
    yield f"{'total':<14}{sum(profile.launches.values()):>10}{busy * 1e3:>10.2f}"


def traced(
    provider: str, size: int, batch: int, config: TrainConfig, path: Path
) -> tuple[dict[str, Any], str]:
    """Warm the provider up, run one step under the profiler, and return the trace and the precision.

    The trace is also written to ``path``.
    """
    # Without a CUDA graph, because launches from a graph cannot be assigned to operators and parts. The
    # kernels are the same.
    step = train_step(provider, plain_networks(config), DEVICE, config, options=EngineConfig(graph="off"))

    def marked(f: Callable[..., Any]) -> Callable[..., Any]:
        def g(*arguments: Any) -> Any:
            with torch.profiler.record_function(PHASE):
                return f(*arguments)

        return g

    step.mark(marked)
    batches = []
    for n in range(2):
        made = random_batch(size, Plan(0, 100, 100, batch), n)
        batches.append(made.with_images(lambda images: images.to(DEVICE)))
    for n in range(WARM_UPS):
        step.run(batches[n % 2])
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if DEVICE == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    with torch.profiler.profile(activities=kinds, record_shapes=True) as profile:
        with torch.profiler.record_function(STEP):
            step.run(batches[0])
        if DEVICE == "cuda":
            torch.cuda.synchronize()
    profile.export_chrome_trace(str(path))
    with gzip.open(path, "rt") as file:
        return json.load(file), step.precision


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="profile_step.py", description=str(__doc__).split("\n\n")[0])
    parser.add_argument(
        "--provider",
        choices=PROVIDERS,
        default="ours_compiled",
        help="provider to profile (default: %(default)s)",
    )
    parser.add_argument(
        "--size", type=int, default=SIZE[DEVICE], help="image size in pixels (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=1, help="images per batch (default: %(default)s)")
    parser.add_argument(
        "--blocks", type=int, default=9, help="residual blocks per generator (default: %(default)s)"
    )
    parser.add_argument(
        "--no_identity", "--no-identity", action="store_true", help="train without the identity loss"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder for the results (default: profile/PROVIDER)"
    )
    options = parser.parse_args(arguments)
    if options.output is None:
        options.output = Path("profile") / options.provider
    if options.size < 24 or options.size % 4 or min(options.batch, options.blocks) < 1:
        parser.error("--size must be a multiple of 4 and at least 24, and --batch and --blocks at least 1")
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        PROVIDERS[options.provider].require(DEVICE)
    except OSError as error:
        parser.error(f"--output {options.output}: cannot create this folder: {error.strerror}")
    except Unavailable as reason:
        parser.error(f"{options.provider}: {reason}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command line of scripts/profile_step.py."""
    options = parse(arguments)
    provider, size, batch = options.provider, options.size, options.batch
    identity = not options.no_identity
    config = cyclegan_config(identity, netG=f"resnet_{options.blocks}blocks")
    print(
        f"{machine()['hardware']}: {PROVIDERS[provider].title}, batch {batch}, {size}x{size}",
        flush=True,
    )
    file = options.output / "trace.json.gz"
    trace, precision = traced(provider, size, batch, config, file)
    profile = analyse(trace)
    chip = measured_chip(precision)
    floor = total(step_work(size, batch, options.blocks, identity, precision), chip, 0)
    print("\n".join(tables(profile, floor, f"ceilings {chip.source}, not counting launches")))
    about = {
        "machine": machine(),
        "provider": provider,
        "size": size,
        "batch": batch,
        "blocks": options.blocks,
        "identity": identity,
        "precision": precision,
        "step": profile.step,
        "floor": floor,
        "launches": profile.launches,
        "seconds": profile.seconds,
        "kernels": profile.kernels,
        "operators": profile.operators,
    }
    (options.output / "profile.json").write_text(json.dumps(about, indent=1) + "\n")
    print(f"\nwritten to {options.output}: trace.json.gz, profile.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
