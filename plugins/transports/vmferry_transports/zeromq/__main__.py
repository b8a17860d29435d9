"""Make a pair of CURVE keys: ``python -m vmferry_transports.zeromq FOLDER NAME``."""

from __future__ import annotations

import sys
from pathlib import Path

from vmferry.errors import InputError
from vmferry_transports.zeromq import keys


def main(arguments: list[str]) -> str | None:
    """Return a complaint, or ``None`` when the files were written."""
    if len(arguments) != 2:
        return __doc__
    try:
        public, secret = keys.make(Path(arguments[0]), arguments[1])
    except InputError as error:
        return str(error)
    sys.stdout.write(f"{secret}: keep it here (curve_key)\n{public}: give it to the peers\n")
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
