"""The faults that benchmarks/faults.py injects by the dozen, a few of each."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
