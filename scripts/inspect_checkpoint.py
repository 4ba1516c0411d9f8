"""List the networks in a checkpoint file: python scripts/inspect_checkpoint.py FILE"""

import sys

from _command import function

if __name__ == "__main__":
    sys.exit(function("fastcyclegan.cli", "inspect_checkpoint")())
