"""Register every kernel on import, for code that lists, compiles or launches kernels by name."""

from . import border_triton, descriptor_triton, instance_norm_triton, reflect_conv_triton, zero_conv_triton

__all__ = [
    "border_triton",
    "descriptor_triton",
    "instance_norm_triton",
    "reflect_conv_triton",
    "zero_conv_triton",
]
