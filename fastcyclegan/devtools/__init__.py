"""Tools for kernels that need no GPU: dry runs, compilation ahead of time, and reports on the compiled code.

Code that counts, inspects, compiles or reproduces launches belongs here. The caller passes the code to run,
so this room does not depend on the engine. The list of everything that the product launches is in
``kernel_gate/``.

Uses ``kernels`` and ``nn``.
"""
