"""Sphinx configuration; build with ``sphinx-build -W docs docs/_build/html``."""

from vmferry import __version__

project = "vmferry"
author = "the vmferry authors"
copyright = author
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"vmferry {release}"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_use_ivar = True
napoleon_custom_sections = ["Raises"]
myst_heading_anchors = 3
