"""``fastcyclegan.accelerate``: replace layers of any network with fused layers of the same function.

This package decides which layers can be fused, and defines the modules that replace them. Our own networks
are in ``nn/``.

Uses ``reference``, ``kernels``, ``nn`` and ``testing``.
"""
