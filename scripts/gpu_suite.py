"""Run the parity tests and all benches on a GPU machine, and write the results to bench/results/.

For the options: python scripts/gpu_suite.py --help
"""

import sys

from _command import function

if __name__ == "__main__":
    sys.exit(function("bench.gpu_suite", "main")())
