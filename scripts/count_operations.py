"""Print Triton launches, ATen calls and bytes kept for the backward of each network: python scripts/count_operations.py [SIZE]"""

from fastcyclegan.counters import main

if __name__ == "__main__":
    main()
