"""Estimate how long a provider takes to compile, depending on whether this machine has compiled it before."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from bench.generator_providers import GENERATORS
from fastcyclegan.config import TrainConfig, default_config, to_dict

# Upper bounds in seconds, by device: with an empty compiler cache, and with a full one.
COMPILING = {"cpu": (150.0, 45.0), "cuda": (120.0, 40.0)}


def code_of(kind: str, size: int, batch: int, config: TrainConfig) -> str:
    """Return a key for the programs that torch.compile produces with these settings.

    ``kind`` is "step" or "generator". The key names the recipe, and those of its settings that are not the
    defaults.
    """
    settings, defaults = to_dict(config), to_dict(default_config(config.model.model))
    changed = []
    for group in ("model", "loss"):
        for name, value in settings[group].items():
            if value != defaults[group][name]:
                changed.append(f"{name} {value}")
    return " ".join([kind, str(size), str(batch), config.model.model, *changed])


def compiled_before(name: str, code: str) -> Path:
    """Return the path of the file that marks a provider as compiled before.

    The file is next to the compiler's cache. It exists once provider ``name`` has been compiled for the
    program key ``code``.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    key = re.sub(r"[^A-Za-z0-9.]+", "-", f"{name} {code} torch {torch.__version__}")
    return Path(cache_dir()) / "fastcyclegan-bench" / key


def _is_compiled(name: str, code: str, device: str) -> bool:
    """Return whether provider ``name`` compiles the program with the key ``code`` on ``device``."""
    provider = GENERATORS[name]
    if code.startswith("step "):
        return provider.compiles(device)
    return provider.mode is not None


def seconds_to_compile(name: str, code: str, device: str) -> float:
    """Return an upper bound, in seconds, on the time to compile provider ``name`` for the key ``code``.

    The bound is lower if the compiler's cache already contains the program.
    """
    if not _is_compiled(name, code, device):
        return 0.0
    seconds, warm = COMPILING[device]
    if compiled_before(name, code).exists():
        seconds = warm
    if GENERATORS[name].mode == "max-autotune":
        seconds *= 2
    return seconds


def remember_compiled(name: str, code: str, device: str) -> None:
    """Create the marker file of ``compiled_before``, unless provider ``name`` is not compiled."""
    if _is_compiled(name, code, device):
        compiled_before(name, code).parent.mkdir(parents=True, exist_ok=True)
        compiled_before(name, code).touch()
