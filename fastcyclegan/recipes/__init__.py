"""What is trained and by which losses: one module a recipe (CycleGAN so far), and what recipes share.

A loss, an image pool, or the phases of an iteration belong here. How an iteration runs on a device (graphs, precision, streams) does not:
that is the engine's, and a recipe knows it as a type alone. Uses ``reference``, ``nn``, ``data`` and ``config``.
"""
