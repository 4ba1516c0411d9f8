"""Fetch one of the authors' datasets: python scripts/download_dataset.py --list"""

import sys

from fastcyclegan.cli import download_dataset

if __name__ == "__main__":
    sys.exit(download_dataset())
