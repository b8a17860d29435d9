"""Projects that ``migrate plugins new`` writes: a plugin that works, its tests, its packaging.

The plugins in ``samples`` are complete and keep their contracts. ``render`` gives one another name,
``write`` puts the files where nothing was before.
"""

from vmferry.cli.scaffold.render import SAMPLES, Project, render
from vmferry.cli.scaffold.write import write

__all__ = ["SAMPLES", "Project", "render", "write"]
