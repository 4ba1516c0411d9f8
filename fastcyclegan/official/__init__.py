"""Run an official checkout's train.py or test.py with our networks and training step
(``python -m fastcyclegan.official``).

Code that decides which parts of a checkout are replaced, verifies that the replacements are equivalent, and
detects later changes belongs here. Official weight files are handled in ``checkpoints/``, and networks for
use in other code in ``compat``.

Uses ``engine``, ``recipes``, ``data``, ``compat``, ``nn`` and ``config``.
"""
