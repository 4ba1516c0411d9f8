"""Tools that look at kernels without a GPU: dry runs that count, launches as compile jobs, compilation ahead
of time, and reports on it.

What counts, inspects, compiles or reproduces launches belongs here. It is handed what to run, and knows no
engine: the list of all that the product launches is in ``kernel_gate/``.

Uses ``kernels`` and ``nn``.
"""
