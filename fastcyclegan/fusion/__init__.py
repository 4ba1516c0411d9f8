"""``fastcyclegan.accelerate``: replace layers of any network with fused layers that compute the same.

This room decides which layers can be fused, and defines the modules that replace them. Our own networks are
in ``nn/``.

Uses ``reference``, ``kernels``, ``nn`` and ``testing``.
"""
