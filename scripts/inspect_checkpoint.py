"""Say which networks a file of weights holds: python scripts/inspect_checkpoint.py FILE"""

import sys

from fastcyclegan.cli import inspect_checkpoint

if __name__ == "__main__":
    sys.exit(inspect_checkpoint())
