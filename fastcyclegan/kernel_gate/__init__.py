"""The command compile_kernels: check all kernels that the product launches, or precompile a run's.

This room lists the runs that cover the product's launches, and prints the results. Compiling kernels and
reading the compiled code is done in ``devtools/``, which does not depend on the engine.

Uses ``devtools``, ``engine``, ``recipes``, ``data``, ``kernels``, ``nn``, ``testing``, ``cli`` and
``config``.
"""
