"""Print the Triton launches, ATen calls and bytes kept for the backward of each network.

Run it as: python scripts/count_operations.py [SIZE]
"""

import sys

from _command import function

if __name__ == "__main__":
    sys.exit(function("fastcyclegan.devtools.dry_run", "main")())
