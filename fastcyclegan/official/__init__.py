"""``python -m fastcyclegan.official``: an official checkout's train.py or test.py with our networks and
training step.

What is replaced in a checkout, how it is shown to be the same, and how a later change is noticed belong here.
The official files of weights are in ``checkpoints/``, networks for other code in ``compat.py``.

Uses ``engine``, ``recipes``, ``data``, ``compat``, ``nn`` and ``config``.
"""
