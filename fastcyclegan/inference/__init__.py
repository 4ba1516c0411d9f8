"""Trained generators at work: images, arrays, tensors and folders of images through a network.

What applies a generator, or measures how good its images are, belongs here. Loading it from a file is in
``checkpoints/``, an iteration of training in ``engine/``.

Uses ``engine``, ``data``, ``checkpoints``, ``nn`` and ``config``.
"""
