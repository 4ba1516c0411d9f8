"""Train a model from start to end: run folder, start and resume, loop, schedules, logs and saved files.

Code that runs before, between or after iterations belongs here. A single iteration belongs to the engine, and
its losses to the recipe. Code that names and reads weight files is in ``checkpoints/``.

What evaluates a run while it trains is here too; the metrics themselves are in ``metrics``.

Uses ``engine``, ``recipes``, ``data``, ``metrics``, ``checkpoints``, ``nn``, ``config``, ``settings``,
``tensor_files`` and ``files``.
"""
