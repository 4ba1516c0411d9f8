"""Look at a dataset before training: python scripts/check_dataset.py --help"""

import sys

from fastcyclegan.cli import check_dataset

if __name__ == "__main__":
    sys.exit(check_dataset())
