"""Files of weights: which architecture they hold, loading them into generators, and the names and files of a run.

A checkpoint format, an architecture that is read off its keys, or what is said of a file belongs here. When a run saves, and how it
resumes, is in ``training``. Uses ``nn``, ``config`` and ``tensor_files``.
"""
