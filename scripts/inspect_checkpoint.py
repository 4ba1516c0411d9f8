"""Say which networks a file of weights holds: python scripts/inspect_checkpoint.py FILE"""

import sys

from _checkout import function

if __name__ == "__main__":
    sys.exit(function("fastcyclegan.cli", "inspect_checkpoint")())
