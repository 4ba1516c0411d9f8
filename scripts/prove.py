"""Speed and parity on your own machine and pictures, in a minute: python scripts/prove.py --help"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

from prove import main

if __name__ == "__main__":
    sys.exit(main())
