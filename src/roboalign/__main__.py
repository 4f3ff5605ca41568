"""`python -m roboalign`, which is what torchrun starts."""

import sys

from roboalign.cli import main

if __name__ == "__main__":
    sys.exit(main())
