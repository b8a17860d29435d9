"""The contracts: all a plugin author needs.

===================  =========================  ==================================
entry-point group    base class                 in module
===================  =========================  ==================================
vmferry.volumes      ``VolumeDriver``           ``vmferry.api.volume``
vmferry.trackers     ``Tracker``                ``vmferry.api.tracker``
vmferry.transports   ``Transport``              ``vmferry.api.transport``
vmferry.hypervisors  ``Hypervisor``            ``vmferry.api.hypervisor``
vmferry.trials       ``Trial``                  ``vmferry.api.trial``
vmferry.hooks        any class with hooks       ``vmferry.api.hooks``
===================  =========================  ==================================
"""

from vmferry.api.findings import Finding, Severity
from vmferry.api.guest import ArrivingDisk, Disk, Guest
from vmferry.api.hooks import Decision, HookSpecs, Phase, Progress, RoundReport, Summary, hookimpl
from vmferry.api.hypervisor import (
    Arrival,
    ByteStream,
    Departure,
    Hypervisor,
    HypervisorCapabilities,
    MemoryProgress,
    Remains,
)
from vmferry.api.load import Load, Moved, MoveLink, TrialPlan, TrialWish
from vmferry.api.plugin import API_VERSION, Capabilities, Grade, NoOptions, Options, Plugin
from vmferry.api.tracker import Tracker, TrackerCapabilities
from vmferry.api.transport import (
    Address,
    Connection,
    Frame,
    Lane,
    Limits,
    Listener,
    PeerInfo,
    Transport,
    TransportCapabilities,
)
from vmferry.api.trial import Trial, TrialStatus, Verdict
from vmferry.api.volume import (
    Access,
    BlockIO,
    Extent,
    ExtentKind,
    Geometry,
    Volume,
    VolumeCapabilities,
    VolumeDriver,
)

__all__ = [
    "API_VERSION",
    "Access",
    "Address",
    "Arrival",
    "ArrivingDisk",
    "BlockIO",
    "ByteStream",
    "Capabilities",
    "Connection",
    "Decision",
    "Departure",
    "Disk",
    "Extent",
    "ExtentKind",
    "Finding",
    "Frame",
    "Geometry",
    "Grade",
    "Guest",
    "HookSpecs",
    "Hypervisor",
    "HypervisorCapabilities",
    "Lane",
    "Limits",
    "Listener",
    "Load",
    "MemoryProgress",
    "MoveLink",
    "Moved",
    "NoOptions",
    "Options",
    "PeerInfo",
    "Phase",
    "Plugin",
    "Progress",
    "Remains",
    "RoundReport",
    "Severity",
    "Summary",
    "Tracker",
    "TrackerCapabilities",
    "Transport",
    "TransportCapabilities",
    "Trial",
    "TrialPlan",
    "TrialStatus",
    "TrialWish",
    "Verdict",
    "Volume",
    "VolumeCapabilities",
    "VolumeDriver",
    "hookimpl",
]
