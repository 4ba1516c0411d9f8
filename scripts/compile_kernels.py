"""Compile all Triton kernels ahead of time and check the results: python scripts/compile_kernels.py --help"""

import sys

from _command import function

if __name__ == "__main__":
    sys.exit(function("fastcyclegan.kernel_gate.command", "main")())
