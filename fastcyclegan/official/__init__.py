"""Run an official checkout's train.py or test.py with our networks and training step
(``python -m fastcyclegan.official``).

This room decides which parts of a checkout are replaced, verifies that they are equivalent, and detects later
changes to them. Official weight files are handled in ``checkpoints/``, and networks for other code in
``compat.py``.

Uses ``engine``, ``recipes``, ``data``, ``compat``, ``nn`` and ``config``.
"""
