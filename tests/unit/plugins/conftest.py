from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from vmferry.api import Grade, Options, Tracker, TrackerCapabilities

Install = Callable[..., None]


class SampleOptions(Options, frozen=True, kw_only=True):
    """Options of every sort."""

    window: Annotated[
        float, msgspec.Meta(ge=0.1, description="time between looks", extra={"unit": "seconds"})
    ] = 1.0
    block_size: Annotated[int, msgspec.Meta(ge=512, extra={"unit": "bytes"})] = 65536
    speed: Annotated[int, msgspec.Meta(extra={"unit": "bytes/s"})] = 0
    limit: Annotated[int, msgspec.Meta(extra={"unit": "bytes"})] | None = None
    threads: int = 2
    sparse: bool = False
    tags: tuple[str, ...] = ("a",)
    folder: Path = Path("/var/tmp")


class SampleTracker(Tracker[SampleOptions]):
    """A tracker that tracks nothing."""

    api_version = 1
    name = "sample"
    summary = "for tests"
    options_type = SampleOptions
    capabilities = TrackerCapabilities(survives=Grade.EMULATED)

    async def start(self, disk: Any, block_size: int) -> int:
        return block_size

    async def harvest(self) -> Any:
        raise NotImplementedError

    async def drain(self) -> None:
        return

    async def stop(self) -> None:
        return


@pytest.fixture
def sample() -> type[SampleTracker]:
    return SampleTracker


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a distribution on the path: its entry points by group, and its modules."""
    modules: list[str] = []

    def add(
        name: str,
        points: Mapping[str, Mapping[str, str]],
        version: str = "1.0",
        **sources: str,
    ) -> None:
        site = tmp_path / name
        info = site / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = [
            line
            for group, entries in points.items()
            for line in (f"[{group}]", *(f"{key} = {value}" for key, value in entries.items()))
        ]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        for module, source in sources.items():
            (site / f"{module}.py").write_text(source)
            modules.append(module)
        monkeypatch.syspath_prepend(str(site))
        importlib.invalidate_caches()

    yield add
    for module in modules:
        import sys

        sys.modules.pop(module, None)
