"""What every kind of plugin has in common: a name, a version, options and graded capabilities.

A plugin is a class. It is found by its entry point, checked, and constructed with its validated
options, once per job or per disk::

    class FloppyDriver(VolumeDriver[FloppyOptions]):
        api_version = 1
        name = "floppy"
        summary = "disks on floppies, for the patient"
        options_type = FloppyOptions
        capabilities = VolumeCapabilities(holes=Grade.EMULATED)

    [project.entry-points."vmferry.volumes"]
    floppy = "my_package.floppy:FloppyDriver"

Rules for every contract:

* Methods that do I/O are ``async``. One that must block runs its own work in a thread.
* A buffer handed to a plugin is not kept after the call returns.
* ``InputError`` and its children mean that nothing was changed. Any other exception is reported
  with the plugin's name and distribution.
* Cancellation may hit every ``await``. It never leaves a half-made resource behind: what cannot be
  undone at once is undone by ``close``, ``stop`` or ``abort``, each of which may be called twice.
"""

from __future__ import annotations

import enum
from typing import ClassVar, Generic, TypeVar, cast

import msgspec

__all__ = ["API_VERSION", "Capabilities", "Grade", "NoOptions", "Options", "Plugin"]

API_VERSION = 1
"""Version of all contracts in ``vmferry.api``. Fields and methods with a default are only added
within a version; the engine accepts plugins of this version and of the one before."""


class Grade(enum.IntEnum):
    """How well a plugin does something it need not be able to do."""

    NONE = 0
    """Not at all: the engine does without, and says so."""
    EMULATED = 1
    """Correctly, but no cheaper than by the required methods."""
    NATIVE = 2
    """Cheaply, by the storage, device or hypervisor itself."""


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the graded capabilities of each plugin kind; every field is a ``Grade``."""


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of a plugin's options: one typed field each, with a default.

    A field is annotated ``Annotated[int, msgspec.Meta(ge=1, description="...",
    extra={"unit": "bytes"})]``. The units ``bytes``, ``bytes/s`` and ``seconds`` let a user write
    ``64KiB``, ``1Gbit/s`` and ``500ms``. Descriptions and defaults are shown by
    ``migrate plugins show NAME``.
    """


class NoOptions(Options, frozen=True, kw_only=True):
    """For a plugin that has nothing to choose."""


OptionsT = TypeVar("OptionsT", bound=Options)


class Plugin(Generic[OptionsT]):
    """Base of every plugin class.

    Attributes:
        api_version: the contract version the plugin was written for; set it to a literal.
        name: the name users type; the same as the entry point's.
        summary: one line for ``migrate plugins``.
        options_type: the struct that holds the options.
        capabilities: what the plugin can do beyond the required core.
        options: this instance's validated options.

    """

    api_version: ClassVar[int]
    name: ClassVar[str]
    summary: ClassVar[str] = ""
    options_type: ClassVar[type[Options]] = NoOptions
    capabilities: ClassVar[Capabilities] = Capabilities()

    def __init__(self, options: OptionsT | None = None) -> None:
        self.options: OptionsT = (
            cast("OptionsT", self.options_type()) if options is None else options
        )
