"""Train CycleGAN: python scripts/train.py --help"""

import sys

from fastcyclegan.cli import train

if __name__ == "__main__":
    sys.exit(train())
