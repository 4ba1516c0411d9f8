"""What compiling a provider takes, by whether torch's compiler has done it before on this machine."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from bench.providers import PROVIDERS
from fastcyclegan.config import ModelConfig

# Seconds at most, by device: with nothing in the compiler's cache, and with all.
COMPILING = {"cpu": (150.0, 45.0), "cuda": (120.0, 40.0)}


def code_of(kind: str, size: int, batch: int, config: ModelConfig, identity: bool = True) -> str:
    """Return what tells apart the programs that torch's compiler makes for ``kind``, "step" or
    "generator"."""
    loss = ""
    if identity:
        loss = "identity"
    return f"{kind} {size} {batch} {loss} {config.netG} {config.ngf}"


def compiled_before(name: str, what: str) -> Path:
    """Return a file beside the compiler's cache that is there once provider ``name`` has been compiled for
    ``what``.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    key = re.sub(r"[^A-Za-z0-9.]+", "-", f"{name} {what} torch {torch.__version__}")
    return Path(cache_dir()) / "fastcyclegan-bench" / key


def seconds_to_compile(name: str, what: str, device: str) -> float:
    """Return what compiling provider ``name`` for ``what`` takes at most, by whether the compiler's cache
    knows it.
    """
    if PROVIDERS[name].mode is None:
        return 0.0
    seconds, warm = COMPILING[device]
    if compiled_before(name, what).exists():
        seconds = warm
    if PROVIDERS[name].mode == "max-autotune":
        seconds *= 2
    return seconds


def remember_compiled(name: str, what: str) -> None:
    if PROVIDERS[name].mode is not None:
        compiled_before(name, what).parent.mkdir(parents=True, exist_ok=True)
        compiled_before(name, what).touch()
