"""Measure images by FID, KID, LPIPS and metrics of pairs: python scripts/evaluate.py --help"""

import sys

from _command import function

if __name__ == "__main__":
    sys.exit(function("fastcyclegan.command_line.evaluate", "evaluate")())
