"""Measure speed and parity on your machine and images in a minute: python scripts/prove.py --help"""

import sys

from _command import function

if __name__ == "__main__":
    sys.exit(function("bench.prove", "main")())
