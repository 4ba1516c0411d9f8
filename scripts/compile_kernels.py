"""Compile every Triton kernel ahead of time and check the result: python scripts/compile_kernels.py --help"""

import sys

from _command import function

if __name__ == "__main__":
    sys.exit(function("fastcyclegan.kernel_gate.command", "main")())
