"""``python -m fastcyclegan.official``: an official checkout's train.py or test.py with our networks and training step.

What is replaced in a checkout, how it is proved to be the same, and how a change is noticed belong here. The official files' names are
in ``checkpoints``, networks for other code in ``compat``. Uses ``engine``, ``recipes``, ``compat`` and ``nn``.
"""
