"""Measure images: distances between two sets of images, and between pairs of images.

Metrics, the features that they compare, and the protocol that is stored with each number belong here. What
makes the images does not: this package gets images, wherever they come from.

Uses ``data``, ``nn``, ``settings``, ``kernels`` (only for the location of the cache folder), ``tensor_files``
and ``files``.
"""
