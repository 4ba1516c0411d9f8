"""Trained generators at work: images, arrays, tensors and folders of images through a network.

What applies a generator belongs here. Loading it from a file is in ``checkpoints``, one iteration of training in ``engine``.
Uses ``engine``, ``data``, ``checkpoints`` and ``nn``.
"""
