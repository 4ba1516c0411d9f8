"""Compile every Triton kernel ahead of time and check the result: python scripts/compile_kernels.py --help"""

import sys

from fastcyclegan.compile_kernels import main

if __name__ == "__main__":
    sys.exit(main())
