"""Tests of the documentation share ``pages``, and use the examples as a reader would."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "docs" / "examples")]
