"""Read files of weights: recognise the networks in them, load generators, and name the files of a run.

Checkpoint formats, architectures that are recognised by their keys, and descriptions of files belong here.
When a run saves, what its training state contains, and how it resumes belong in ``training/``.

Uses ``nn``, ``recipes``, ``config`` and ``tensor_files``.
"""
