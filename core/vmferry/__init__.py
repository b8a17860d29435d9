"""vmferry moves a running virtual machine to another host together with its local disks.

``vmferry.api`` holds the contracts a plugin implements, ``vmferry.engine`` the three phases
(PUSH, STOP, PULL), ``vmferry.cli`` the ``migrate`` console script.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("vmferry")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
