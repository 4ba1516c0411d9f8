"""One training step as a chrome trace, and a table by kernel: python scripts/profile_step.py --help"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

from profile_step import main

if __name__ == "__main__":
    sys.exit(main())
