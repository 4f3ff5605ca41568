"""`python -m roboalign`, which is what torchrun starts."""

import sys

from roboalign.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
