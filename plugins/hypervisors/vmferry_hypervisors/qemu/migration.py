"""QEMU's migration as QMP shows it: settings that are put back, states, what is left.

The states are those of ``MigrationStatus`` in qapi/migration.json.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Mapping
from typing import Any, TypeVar

from vmferry.errors import GuestStopped, HypervisorError
from vmferry_hypervisors.qemu.connections import Connections
from vmferry_hypervisors.qemu.relay import BrokenOff
from vmferry_support.qmp import Event, Listener, Qmp, QmpLost

__all__ = ["FAILED", "UNCARRIED", "Migration", "raced"]

FAILED = ("failed", "cancelled")
UNCARRIED = (
    "postcopy-ram",
    "x-colo",
    "block",
    "dirty-bitmaps",
    "rdma-pin-all",
    "zero-copy-send",
)
"""Capabilities that need another connection, or do otherwise what the engine does."""
_EVENTS = ("MIGRATION", "SHUTDOWN", "STOP", "RESUME")
_CHANNELS = "multifd"
_PLAIN = {"multifd-compression": "none"}
"""The stream is compressed where that pays, and both QEMUs must agree."""
_LAST_WORD = 1.0
"""Seconds within which the monitor tells of the end of a QEMU, or of its migration, that has broken
off the stream."""
T = TypeVar("T")


async def raced(work: Awaitable[T], carried: Connections) -> T:
    """Do ``work``, but raise as soon as what carries breaks; if QEMU broke it, say what it says."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(carried.broken())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if isinstance(carried.failure, BrokenOff):
            await asyncio.wait({task}, timeout=_LAST_WORD)
        if not task.done():
            watch.result()
        return task.result()
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.wait({task, watch})
        _ = watch.cancelled() or watch.exception()
        _ = task.cancelled() or task.exception()


class Migration:
    """One migration of one QEMU, at either end.

    Attributes:
        status: as the events that ``reach`` has heard have it.
        stopped_at: the event loop's time since which the guest stands still, by the same events.

    """

    def __init__(self, qmp: Qmp, name: str, timeout: float) -> None:
        self._qmp, self._name, self._timeout = qmp, name, timeout
        self._capabilities: dict[str, bool] = {}
        self._parameters: dict[str, object] = {}
        self._events: Listener | None = None
        self.status = "none"
        self.stopped_at: float | None = None

    async def known(self) -> dict[str, bool]:
        """The capabilities that this QEMU knows, and whether they are on."""
        listed = await self._qmp.execute("query-migrate-capabilities")
        return {each["capability"]: each["state"] for each in listed}

    async def set(
        self, capabilities: Mapping[str, bool], parameters: Mapping[str, object], channels: int
    ) -> None:
        """Set both, and how many channels memory has, and remember what was before."""
        known = await self.known()
        if channels or known.get(_CHANNELS):
            capabilities = {**capabilities, _CHANNELS: channels > 0}
        if channels:
            parameters = {**parameters, "multifd-channels": channels, **_PLAIN}
        if missing := sorted(set(capabilities) - set(known)):
            raise HypervisorError(f"guest {self._name}: its QEMU cannot do {', '.join(missing)}")
        values = await self._qmp.execute("query-migrate-parameters")
        self._capabilities |= {name: known[name] for name in capabilities}
        self._parameters |= {name: values[name] for name in parameters}
        self._events = self._qmp.listen(*_EVENTS)
        self._events.__enter__()
        await self._set_capabilities(capabilities)
        await self.adjust(parameters)

    def remember(self, capabilities: Mapping[str, bool], parameters: Mapping[str, object]) -> None:
        """What ``restore`` is to put back, as far as QEMU knows it, when somebody else set it."""
        self._capabilities, self._parameters = dict(capabilities), dict(parameters)

    async def _set_capabilities(self, states: Mapping[str, bool]) -> None:
        if states:
            listed = [{"capability": name, "state": state} for name, state in states.items()]
            await self._qmp.execute("migrate-set-capabilities", capabilities=listed)

    async def adjust(self, parameters: Mapping[str, object]) -> None:
        """Change parameters; allowed while it runs."""
        if parameters:
            await self._qmp.execute("migrate-set-parameters", parameters)

    async def restore(self) -> None:
        """Put all settings back as they were. May be called twice."""
        self.deafen()
        capabilities, self._capabilities = self._capabilities, {}
        parameters, self._parameters = self._parameters, {}
        known = await self.known() if capabilities else {}
        await self._set_capabilities(
            {name: capabilities[name] for name in known & capabilities.keys()}
        )
        await self.adjust(parameters)

    def deafen(self) -> None:
        """Hear no more events. May be called twice."""
        events, self._events = self._events, None
        if events is not None:
            events.__exit__()

    async def query(self) -> Mapping[str, Any]:
        """What ``query-migrate`` says; raises if the guest or the migration ended.

        Raises:
            GuestStopped: the guest shut down or panicked, or QEMU ended.
            HypervisorError: the migration failed.

        """
        try:
            status = (await self._qmp.execute("query-status"))["status"]
            if status in ("shutdown", "guest-panicked"):
                raise GuestStopped(f"guest {self._name} stopped: {status}")
            info: Mapping[str, Any] = await self._qmp.execute("query-migrate")
        except QmpLost as error:
            raise self._ended() from error
        if info.get("status") in FAILED:
            raise self._failed(info)
        return info

    def _ended(self) -> GuestStopped:
        return GuestStopped(f"guest {self._name}: its QEMU has ended")

    def _failed(self, info: Mapping[str, Any]) -> HypervisorError:
        why = info.get("error-desc", "QEMU does not say why")
        return HypervisorError(f"guest {self._name}: QEMU's migration {info['status']}: {why}")

    async def reach(self, states: Collection[str], timeout: float | None = None) -> str:
        """Wait for one of ``states``; returns it, or at once if that is the case already.

        It goes by events alone, since questions take time while the guest stands still.

        Args:
            states: any of these.
            timeout: seconds; ``None`` for as long as it takes.

        Raises:
            GuestStopped, HypervisorError: as ``query``.
            QmpTimeout: it took longer.

        """
        while self.status not in states:
            if self.status in FAILED:
                raise self._failed(await self._qmp.execute("query-migrate"))
            await self._hear(timeout)
        return self.status

    async def _hear(self, timeout: float | None) -> None:
        """Note what the next event says."""
        event = await self._next(timeout)
        if event.name == "MIGRATION":
            self.status = str(event.data["status"])
        elif event.name == "SHUTDOWN":
            raise GuestStopped(f"guest {self._name} stopped: {event.name.lower()}")
        else:
            self.stopped_at = event.at if event.name == "STOP" else None

    async def _next(self, timeout: float | None) -> Event:
        if self._events is None:
            raise HypervisorError(f"guest {self._name}: its migration has ended")
        try:
            return await self._events.wait(timeout=timeout)
        except QmpLost as error:
            raise self._ended() from error
