"""How an iteration runs on a device: precision, memory layout, batching, pairing, streams, CUDA graphs,
torch.compile, optimizers.

``engine.py`` has the iteration, in the order in which it happens, and ``choices.py`` what is decided
beforehand. Whatever makes the same iteration faster belongs here; what the iteration minimises is in
``recipes/``, and what happens between iterations in ``training/``.

Uses ``reference``, ``kernels``, ``nn``, ``recipes``, ``data``, ``devtools`` and ``config``.
"""

from fastcyclegan.engine.devices import require_impl, resolve_device, resolve_precision, why_not_compiled
from fastcyclegan.engine.engine import Engine

__all__ = ["Engine", "require_impl", "resolve_device", "resolve_precision", "why_not_compiled"]
