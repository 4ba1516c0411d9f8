"""Recipes, which define the networks to train and their losses.

There is one module per recipe (CycleGAN and pix2pix), with its settings, and code that recipes share: losses,
image pools. The phases of an iteration belong here. How an iteration runs on a device (precision, streams,
CUDA graphs) does not: that is the job of the engine, which recipes use only through a protocol. ``registry``
finds recipes by name, also those of other packages, for which ``recipe`` and ``losses`` are public.

Uses ``reference``, ``nn``, ``data``, ``settings`` and ``files``.
"""
