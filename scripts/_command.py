"""What scripts need to run a function of this checkout: python scripts/NAME.py"""

import _checkout  # noqa: F401

from fastcyclegan.commands import function as function
