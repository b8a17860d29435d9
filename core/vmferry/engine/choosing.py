"""Which codec a piece is compressed with, as settings and the peer allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vmferry.engine.disks import SourceDisk
from vmferry.engine.sender import Sender
from vmferry.engine.services import Services
from vmferry.engine.settings import Settings
from vmferry.engine.throttle import Throttle
from vmferry.wire.compress import Chooser, Codec, Sampler, available
from vmferry.wire.link import Link
from vmferry.wire.stream import LinkStream

__all__ = ["codec_names", "make_chooser", "make_sender", "make_stream"]


def codec_names(compression: str) -> tuple[str, ...]:
    """The codecs to offer the peer for a setting, best first."""
    if compression == "none":
        return ()
    names = (codec.name.lower() for codec in available() if codec is not Codec.NONE)
    return tuple(name for name in names if compression in ("auto", name))


def make_chooser(
    compression: str,
    agreed: Sequence[str],
    throttle: Throttle,
    clock: Callable[[], float] | None,
) -> Chooser:
    """The chooser for a link whose peer reads the codecs ``agreed``."""
    codecs = [Codec[name.upper()] for name in agreed if name in codec_names(compression)]
    if not codecs:
        return lambda _: Codec.NONE
    if compression != "auto":
        return lambda _: codecs[0]
    sampler = Sampler(codecs, clock)
    return lambda data: sampler.choose(data, throttle.rate_now())


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
    """What sends a guest's memory over ``link`` likewise, judged by samples of its own."""
    chooser = make_chooser(settings.compression, agreed, throttle, services.cpu_clock)
    return LinkStream(link, throttle.take, chooser)
