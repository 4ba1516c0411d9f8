"""Images on their way from files to batches: scanning, decoding, sampling, loaders, and pixels back into
images.

A loader, a file format, an augmentation, a dataset to download or a check of one belongs here. What a network
does with a batch does not: this room runs without networks and kernels.

Uses ``config`` and ``tensor_files``.
"""
