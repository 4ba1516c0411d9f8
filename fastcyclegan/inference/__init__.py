"""Inference: translate images, arrays, tensors and folders of images with a trained generator.

Code that applies a generator, or measures the quality of its images, belongs here. Loading a generator from
a file belongs in ``checkpoints/``, and a training iteration in ``engine/``.

Uses ``engine``, ``metrics``, ``data``, ``recipes``, ``checkpoints``, ``tiles``, ``nn``, ``kernels``,
``devtools``, ``config``, ``settings``, ``reference`` and ``tensor_files``.
"""
