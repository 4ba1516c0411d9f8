"""On a machine with a GPU: parity tests and every bench, written to bench/results/: python
scripts/gpu_suite.py --help
"""

import sys

from _command import function

if __name__ == "__main__":
    sys.exit(function("bench.gpu_suite", "main")())
