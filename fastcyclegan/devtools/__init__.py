"""Tools that look at kernels without a GPU: dry runs that count, launches as compile jobs, compilation ahead of time, and their reports.

What inspects, counts, compiles or reproduces launches belongs here; it is handed what to run, and knows no engine. The list of all that the
product launches is in ``kernel_gate``. Uses ``kernels`` and ``nn``.
"""
