"""On a machine with a GPU: parity tests and every bench, written to bench/results/: python scripts/gpu_suite.py --help"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

from gpu_suite import main

if __name__ == "__main__":
    sys.exit(main())
