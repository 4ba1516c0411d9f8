"""Download one of the authors' datasets: python scripts/download_dataset.py --list"""

import sys

from _command import function

if __name__ == "__main__":
    sys.exit(function("fastcyclegan.cli", "download_dataset")())
