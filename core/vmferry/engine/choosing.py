"""Which codec a piece is compressed with, as settings and the peer allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vmferry.engine.disks import SourceDisk
from vmferry.engine.sender import Chooser, Sender
from vmferry.engine.services import Services
from vmferry.engine.settings import Settings
from vmferry.engine.throttle import Throttle
from vmferry.wire.compress import Codec, available
from vmferry.wire.link import Link
from vmferry.wire.sampling import Sampler, StreamSampler
from vmferry.wire.stream import LinkStream, StreamChooser

__all__ = ["codec_names", "make_chooser", "make_sender", "make_stream", "make_stream_chooser"]


def codec_names(compression: str) -> tuple[str, ...]:
    """The codecs to offer the peer for a setting, best first."""
    if compression == "none":
        return ()
    names = (codec.name.lower() for codec in available() if codec is not Codec.NONE)
    return tuple(name for name in names if compression in ("auto", name))


def _codecs(compression: str, agreed: Sequence[str]) -> list[Codec]:
    """Those to choose from, best first, for a link whose peer reads the codecs ``agreed``."""
    return [Codec[name.upper()] for name in agreed if name in codec_names(compression)]


def _fixed(compression: str, codecs: Sequence[Codec]) -> Codec | None:
    """The codec of every piece; ``None`` if samples are to choose it."""
    if not codecs:
        return Codec.NONE
    return None if compression == "auto" else codecs[0]


def make_chooser(
    compression: str,
    agreed: Sequence[str],
    throttle: Throttle,
    clock: Callable[[], float] | None,
) -> Chooser:
    """The chooser for extents, on a link whose peer reads the codecs ``agreed``."""
    codecs = _codecs(compression, agreed)
    if (fixed := _fixed(compression, codecs)) is not None:
        return lambda _: fixed
    sampler = Sampler(codecs, clock)
    return lambda data: sampler.choose(data, throttle.rate_now())


def make_stream_chooser(
    compression: str, agreed: Sequence[str], clock: Callable[[], float] | None
) -> StreamChooser:
    """The chooser for the hypervisor's stream, likewise."""
    codecs = _codecs(compression, agreed)
    if (fixed := _fixed(compression, codecs)) is not None:
        return lambda *_: fixed
    return StreamSampler(codecs, clock).choose


def make_sender(
    link: Link,
    disks: Sequence[SourceDisk],
    services: Services,
    settings: Settings,
    throttle: Throttle,
    agreed: Sequence[str],
) -> Sender:
    """What sends a guest's disks over ``link`` to a peer that reads the codecs ``agreed``."""
    chooser = make_chooser(settings.compression, agreed, throttle, services.cpu_clock)
    volumes = [disk.volume for disk in disks]
    return Sender(link, volumes, services.workers, throttle, chooser, settings.depth)


def make_stream(
    link: Link, services: Services, settings: Settings, throttle: Throttle, agreed: Sequence[str]
) -> LinkStream:
    """What carries a guest's memory over ``link`` to such a peer."""
    choose = make_stream_chooser(settings.compression, agreed, services.cpu_clock)
    return LinkStream(link, throttle.take, choose)
