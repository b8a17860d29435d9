"""``python -m vmferry`` is the same as ``migrate``."""

import sys

from vmferry.cli import main

if __name__ == "__main__":
    sys.exit(main())
