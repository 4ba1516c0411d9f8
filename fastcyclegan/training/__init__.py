"""Train a model from start to end: run folder, start and resume, loop, schedules, logs and saved files.

What happens before, between and after iterations belongs here. A single iteration belongs to the engine, and
its losses to the recipe. ``checkpoints/`` names and reads weight files.

Uses ``engine``, ``recipes``, ``data``, ``checkpoints``, ``config`` and ``tensor_files``.
"""
