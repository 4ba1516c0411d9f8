"""The Triton kernels of fastcyclegan, imported as ``fastcyclegan.kernels``. See README.md beside this file for what is here."""

if __name__ != "fastcyclegan.kernels":
    raise ImportError(f"this folder is the package fastcyclegan.kernels, not {__name__!r}: write `import fastcyclegan.kernels`")

from .instance_norm import instance_norm, instance_norm_ref

__all__ = ["instance_norm", "instance_norm_ref"]
