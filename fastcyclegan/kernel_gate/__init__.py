"""The command compile_kernels, which checks all kernels that fastcyclegan launches or precompiles those of a
training run.

Code that lists the runs covering all launches of fastcyclegan, or prints the command's results, belongs here.
Kernels are compiled and the compiled code is read in ``devtools/``, which does not depend on the engine.

Uses ``devtools``, ``engine``, ``recipes``, ``data``, ``kernels``, ``nn``, ``testing``, ``cli`` and
``config``.
"""
