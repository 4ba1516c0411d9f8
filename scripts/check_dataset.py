"""Check a dataset before training: python scripts/check_dataset.py --help"""

import sys

from _command import function

if __name__ == "__main__":
    sys.exit(function("fastcyclegan.cli", "check_dataset")())
