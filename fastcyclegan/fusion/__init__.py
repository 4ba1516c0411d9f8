"""``fastcyclegan.accelerate``: layers of somebody else's network replaced by fused ones that compute the
same.

What may be fused, how that is found out, and the modules that take the place belong here. Networks of our own
are in ``nn/``.

Uses ``reference``, ``kernels``, ``nn`` and ``testing``.
"""
