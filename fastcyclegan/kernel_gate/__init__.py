"""The command compile_kernels: all that the product launches, compiled and checked; or a training run's
kernels compiled beforehand.

Which runs make up the product's launches, and what the command prints, belong here. Compiling, and reading
what the compiler made, is in ``devtools/``, which knows no engine.

Uses ``devtools``, ``engine``, ``recipes``, ``data``, ``kernels``, ``nn``, ``testing``, ``cli`` and
``config``.
"""
