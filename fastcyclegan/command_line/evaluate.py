"""The command that measures images. Importing this module and printing the help do not import torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastcyclegan.command_line.exit_codes import run, run_to_the_end
from fastcyclegan.command_line.late_import import function
from fastcyclegan.command_line.parsing import description, parse
from fastcyclegan.settings.evaluate import EvaluateConfig


def _measure(measure: Callable[..., Any], config: EvaluateConfig) -> int:
    from fastcyclegan.console import Console  # of another package, so not before the help

    console = Console()
    with console:
        measure(config, console)
    return 2 if console.failed else 0


def _main(args: Sequence[str] | None) -> int:
    config = parse(EvaluateConfig, args, description(EvaluateConfig))
    measure = function("fastcyclegan.inference.evaluate", "evaluate_images")
    return run_to_the_end(lambda: _measure(measure, config))


def evaluate(args: Sequence[str] | None = None) -> int:
    """Run ``evaluate.py`` and return its exit code."""
    return run(lambda: _main(args))
