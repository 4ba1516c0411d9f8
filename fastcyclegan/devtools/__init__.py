"""Tools for working on kernels without a GPU: dry runs, compilation ahead of time, reports on compiled code.

Code that counts, inspects, compiles or reproduces launches belongs here. The caller passes the code to run,
so this package does not depend on the engine. The list of all kernels that fastcyclegan launches is made in
``kernel_gate/``.

Uses ``kernels`` and ``nn``.
"""
