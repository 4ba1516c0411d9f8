"""Triton kernels and the PyTorch operators built from them, imported as ``fastcyclegan.kernels``.

README.md in this folder describes them.
"""

if __name__ != "fastcyclegan.kernels":
    raise ImportError(
        f"this folder is the package fastcyclegan.kernels, not {__name__!r}: write `import"
        " fastcyclegan.kernels`"
    )

from ._failures import KernelError
from ._overlap import overlapping
from ._weight_gradients import accumulating
from ._working_copies import WorkingCopies
from .instance_norm import instance_norm, instance_norm_ref
from .reflect_conv import reflect_conv2d, reflect_conv2d_ref
from .residual_block import residual_block, residual_block_ref

__all__ = [
    "KernelError",
    "WorkingCopies",
    "accumulating",
    "instance_norm",
    "instance_norm_ref",
    "overlapping",
    "reflect_conv2d",
    "reflect_conv2d_ref",
    "residual_block",
    "residual_block_ref",
]
