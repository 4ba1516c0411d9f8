"""``fastcyclegan.accelerate``: replace layers of any network with equivalent fused layers.

This package decides which layers can be fused, and defines the modules that replace them. Our own networks
are in ``nn/``.

Uses ``reference``, ``kernels``, ``nn`` and ``testing``.
"""
