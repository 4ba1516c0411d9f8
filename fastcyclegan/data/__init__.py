"""Images on their way from files to batches: scanning, decoding, sampling, loaders, and pixels back into images.

A new loader, file format, augmentation or dataset check belongs here. What a network does with a batch does not. Uses ``config`` and
``errors`` alone, so it runs without networks and kernels.
"""
