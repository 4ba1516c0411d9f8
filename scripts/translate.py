"""Translate pictures with a trained generator: python scripts/translate.py --help"""

import sys

from fastcyclegan.cli import translate

if __name__ == "__main__":
    sys.exit(translate())
