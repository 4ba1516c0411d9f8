"""Run a recipe's iterations on a device, as fast as the device allows.

The engine handles precision, memory layout, batching, pairing, streams, CUDA graphs, torch.compile and
optimizers.
``engine.py`` contains the iteration, in the order in which it happens, and ``choices.py`` the decisions made
beforehand. Code that makes the same iteration faster belongs here. The losses that an iteration minimises are
defined in ``recipes/``, and the work between iterations in ``training/``.

Uses ``reference``, ``kernels``, ``nn``, ``recipes``, ``data``, ``devtools`` and ``settings``.
"""

from fastcyclegan.engine.devices import (
    replaces_compiler,
    require_impl,
    resolve_device,
    resolve_precision,
    why_not_compiled,
)
from fastcyclegan.engine.engine import Engine

__all__ = [
    "Engine",
    "replaces_compiler",
    "require_impl",
    "resolve_device",
    "resolve_precision",
    "why_not_compiled",
]
