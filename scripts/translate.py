"""Translate images with a trained generator: python scripts/translate.py --help"""

import sys

from _command import function

if __name__ == "__main__":
    sys.exit(function("fastcyclegan.cli", "translate")())
