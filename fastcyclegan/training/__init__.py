"""A training run from its start to its end: its folder, starting and resuming it, the loop, schedules, what
it logs and what it saves.

What happens before, between and after iterations belongs here. One iteration is the engine's, what it
minimises the recipe's, and how files of weights are named and read is in ``checkpoints/``.

Uses ``engine``, ``recipes``, ``data``, ``checkpoints``, ``config`` and ``tensor_files``.
"""
