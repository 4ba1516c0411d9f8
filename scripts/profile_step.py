"""Profile one training step (Chrome trace, table of kernels): python scripts/profile_step.py --help"""

import sys

from _command import function

if __name__ == "__main__":
    sys.exit(function("bench.profile_step", "main")())
