"""Puts this checkout first where Python looks for packages, so that scripts run installed or not, from any
folder.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
