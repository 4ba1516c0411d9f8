"""Turn image files into training batches: find, check, decode and sample images, and write pixels back.

Loaders, file formats, augmentations, dataset downloads and dataset checks belong here. Code that runs a
network on a batch does not: this package works without networks.

Uses ``settings``, ``kernels`` (only for the location of the cache folder), ``tensor_files`` and ``files``.
"""
