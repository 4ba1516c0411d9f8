"""Join two folders of images into files of pairs, side by side: python scripts/make_aligned.py --help"""

import sys

from _command import function

if __name__ == "__main__":
    sys.exit(function("fastcyclegan.command_line.make_aligned", "make_aligned")())
