"""``python -m vmferry_lab``."""

from __future__ import annotations

from vmferry_lab.cli import main

main(prog_name="vmferry_lab")
