"""Recipes, which define the networks to train and their losses.

There is one module per recipe (so far only CycleGAN), and code that recipes share. Losses, image pools and
the phases of an iteration belong here. How an iteration runs on a device (precision, streams, CUDA graphs)
does not: that is the job of the engine, which recipes use only through a protocol.

Uses ``reference``, ``nn``, ``data`` and ``config``.
"""
