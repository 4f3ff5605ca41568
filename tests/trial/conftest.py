"""A served policy is the same here as in the tests of serving."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "serve"))
