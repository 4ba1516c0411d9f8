"""Train CycleGAN: python scripts/train.py --help"""

import sys

from _command import function

if __name__ == "__main__":
    sys.exit(function("fastcyclegan.cli", "train")())
