"""How an iteration is run: device, precision, memory layout, batching, pairing, streams, CUDA graphs, torch.compile and the optimizers.

The only place that knows them. ``engine.py`` has the iteration, ``trained.py`` what a phase trains, ``graph.py`` the capture,
``numbers.py`` what travels beside the pictures, ``devices.py`` what a device can do.
"""

from fastcyclegan.engine.devices import require_impl, resolve_device, resolve_precision, why_not_compiled
from fastcyclegan.engine.engine import Engine

__all__ = ["Engine", "require_impl", "resolve_device", "resolve_precision", "why_not_compiled"]
