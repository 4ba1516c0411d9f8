"""Inspect kernels without a GPU: count launches in dry runs, compile ahead of time, and report on the code.

Code that counts, inspects, compiles or reproduces launches belongs here. The caller passes the code to run,
so this room does not depend on the engine. The list of everything that the product launches is in
``kernel_gate/``.

Uses ``kernels`` and ``nn``.
"""
