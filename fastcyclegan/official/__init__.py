"""Run an official checkout's train.py or test.py with our networks and training step
(``python -m fastcyclegan.official``).

Code that decides which parts of a checkout are replaced, verifies that the replacements are equivalent, and
detects later changes belongs here, and so does what our commands make of flags of the official ones. Official
weight files are handled in ``checkpoints/``, and networks for use in other code in ``compat``.

Uses ``engine``, ``recipes``, ``data``, ``compat``, ``nn``, ``config`` and ``files``.
"""
