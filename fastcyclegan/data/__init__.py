"""Turn image files into training batches: find, check, decode and sample images, and write pixels back.

Loaders, file formats, augmentations, dataset downloads and dataset checks belong here. What a network does
with a batch does not: this room runs without networks and kernels.

Uses ``config`` and ``tensor_files``.
"""
