"""Files of weights: which architecture they hold, loading them into generators, and the names of a run's
files.

A checkpoint format, an architecture that is read off its keys, or what is said of a file belongs here. When a
run saves, what its state holds, and how it resumes is in ``training/``.

Uses ``nn``, ``recipes``, ``config`` and ``tensor_files``.
"""
