"""What is trained and by which losses: one module a recipe (CycleGAN so far), and what recipes share.

A loss, an image pool, or the phases of an iteration belong here. How an iteration runs on a device
(precision, streams, CUDA graphs) does not: that is the engine's, which a recipe knows as a type alone.

Uses ``reference``, ``nn``, ``data`` and ``config``.
"""
