"""Say which networks a file of weights holds: python scripts/inspect_checkpoint.py FILE"""

import sys

from _command import function

if __name__ == "__main__":
    sys.exit(function("fastcyclegan.cli", "inspect_checkpoint")())
