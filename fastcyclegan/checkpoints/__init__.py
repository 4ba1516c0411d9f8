"""Read weights files: recognise the networks in them, load generators, and name the files of a run.

Code that reads checkpoint formats, recognises architectures by their keys, or describes files belongs here.
Code that decides when a run saves, what its training state contains, and how it resumes belongs in
``training/``.

Uses ``kernels``, ``nn``, ``recipes``, ``config``, ``settings``, ``tensor_files`` and ``files``.
"""
