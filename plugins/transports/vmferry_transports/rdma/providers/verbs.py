"""A device that is there, InfiniBand, RoCE or in software (``rdma_rxe``), through pyverbs.

pyverbs belongs to rdma-core and is in no package index: Debian has it as ``python3-pyverbs``. Both
ends meet over TCP. Nothing is encrypted and nobody is authenticated, as is RDMA's way.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import ipaddress
import mmap
import os
import random
import select
import socket
import struct
from types import SimpleNamespace
from typing import Any

from vmferry.api.transport import Address
from vmferry.errors import ConnectionLost, InputError, LinkError
from vmferry_transports.rdma.greeting import Endpoint
from vmferry_transports.rdma.options import RdmaOptions
from vmferry_transports.rdma.providers.base import (
    Completion,
    Device,
    Opcode,
    Provider,
    QueuePair,
    Region,
    Remote,
)

__all__ = ["Verbs"]

_PRIVATE = struct.Struct("!IIHB16sx")
_PORT = 1
_PAGE = mmap.PAGESIZE
_CHANNEL = "infinibandevent"
_AT_ONCE = 64
_WORDS = ("addr", "cq", "device", "enums", "mr", "pd", "pyverbs_error", "qp", "wr")


def _pyverbs() -> Any:
    """Return pyverbs' modules by their names. Raises ``LinkError`` if it is not installed."""
    try:
        found = {name: importlib.import_module(f"pyverbs.{name}") for name in _WORDS}
    except ImportError as error:
        raise LinkError(
            f"provider verbs needs pyverbs ({error}); install python3-pyverbs for this Python, or"
            " set provider=shared_memory on one host"
        ) from None
    return SimpleNamespace(**found)


class _Region(Region):
    """Pages of this process, registered."""

    def __init__(self, verbs: Any, domain: Any, size: int, *, remote: bool) -> None:
        flags = verbs.enums.IBV_ACCESS_LOCAL_WRITE
        if remote:
            flags |= verbs.enums.IBV_ACCESS_REMOTE_WRITE
        self._pages = mmap.mmap(-1, -(-size // _PAGE) * _PAGE)
        self._base: Any = (ctypes.c_char * size).from_buffer(self._pages)
        self.address = ctypes.addressof(self._base)
        self.view = memoryview(self._base).cast("B")
        self._memory: Any = verbs.mr.MR(domain, size, flags, address=self.address)
        self.local = int(self._memory.lkey)
        self.key = int(self._memory.rkey) if remote else 0

    def close(self) -> None:
        if self._memory is not None:
            self._memory.close()
            self._memory = None


def _channel(verbs: Any, context: Any) -> tuple[Any, int]:
    """Make a completion channel and find its descriptor, which pyverbs does not tell."""
    before = _channels()
    channel = verbs.cq.CompChannel(context)
    (descriptor,) = _channels() - before
    os.set_blocking(descriptor, False)
    return channel, descriptor


def _channels() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the descriptor of the folder itself
            continue
        if _CHANNEL in target:
            found.add(int(name))
    return found


class _QueuePair(QueuePair):
    def __init__(
        self, verbs: Any, device: _Device, landing: Region, sends: int, receives: int
    ) -> None:
        self._verbs, self._device, self._landing = verbs, device, landing
        enums = verbs.enums
        self._channel, self._descriptor = _channel(verbs, device.context)
        self._queue = verbs.cq.CQ(device.context, sends + receives, None, self._channel)
        self._queue.req_notify()
        cap = verbs.qp.QPCap(max_send_wr=sends, max_recv_wr=receives)
        wanted = verbs.qp.QPInitAttr(
            qp_type=enums.IBV_QPT_RC, scq=self._queue, rcq=self._queue, cap=cap, sq_sig_all=1
        )
        start = verbs.qp.QPAttr(port_num=_PORT)
        start.qp_access_flags = enums.IBV_ACCESS_LOCAL_WRITE | enums.IBV_ACCESS_REMOTE_WRITE
        self._pair = verbs.qp.QP(device.domain, wanted, start)
        self._number = random.getrandbits(24)
        self._there: Endpoint | None = None
        self._closed = False

    @property
    def descriptor(self) -> int:
        return self._descriptor

    def endpoint(self) -> Remote:
        device = self._device
        private = _PRIVATE.pack(self._pair.qp_num, self._number, device.lid, device.mtu, device.gid)
        zone = self._landing
        return Remote(Endpoint(zone.address, zone.key, zone.view.nbytes, private))

    def told(self) -> None:
        return

    def connect(self, remote: Remote) -> None:
        number, start, lid, mtu, gid = _PRIVATE.unpack_from(remote.endpoint.private)
        verbs, device = self._verbs, self._device
        route = verbs.addr.GlobalRoute(
            dgid=verbs.addr.GID(_colons(gid)), sgid_index=device.gid_index, hop_limit=64
        )
        attributes = verbs.qp.QPAttr(port_num=_PORT)
        attributes.ah_attr = verbs.addr.AHAttr(port_num=_PORT, is_global=1, gr=route, dlid=lid)
        attributes.dest_qp_num, attributes.rq_psn, attributes.sq_psn = number, start, self._number
        attributes.path_mtu = min(mtu, device.mtu)
        attributes.max_rd_atomic = attributes.max_dest_rd_atomic = 1
        attributes.min_rnr_timer, attributes.timeout = 12, 14
        attributes.retry_cnt = attributes.rnr_retry = 7
        try:
            self._pair.to_rts(attributes)
        except verbs.pyverbs_error.PyverbsError as error:
            raise LinkError(f"the queue pair cannot be connected: {error}") from None
        self._there = remote.endpoint

    def _part(self, region: Region, offset: int, size: int) -> Any:
        assert isinstance(region, _Region)
        return self._verbs.wr.SGE(region.address + offset, size, region.local)

    def post_receive(self, work: int, region: Region, offset: int, size: int) -> None:
        part = self._part(region, offset, size)
        self._pair.post_recv(self._verbs.wr.RecvWR(wr_id=work, num_sge=1, sg=[part]))

    def post_send(self, work: int, region: Region, offset: int, size: int) -> None:
        opcode = self._verbs.enums.IBV_WR_SEND
        part = self._part(region, offset, size)
        self._post(self._verbs.wr.SendWR(wr_id=work, opcode=opcode, num_sge=1, sg=[part]))

    def post_write(
        self, work: int, region: Region, offset: int, size: int, where: int, immediate: int
    ) -> None:
        assert self._there is not None
        request = self._verbs.wr.SendWR(
            wr_id=work,
            opcode=self._verbs.enums.IBV_WR_RDMA_WRITE_WITH_IMM,
            num_sge=1,
            sg=[self._part(region, offset, size)],
            imm_data=socket.htonl(immediate),
        )
        request.set_wr_rdma(self._there.key, self._there.address + where)
        self._post(request)

    def _post(self, request: Any) -> None:
        try:
            self._pair.post_send(request)
        except self._verbs.pyverbs_error.PyverbsError as error:
            raise ConnectionLost(f"the device takes no work: {error}") from None

    def poll(self) -> list[Completion]:
        if self._closed:
            return []
        if select.select([self._descriptor], [], [], 0)[0]:
            self._channel.get_cq_event(self._queue)
            self._queue.ack_events(1)
            self._queue.req_notify()
        _, found = self._queue.poll(_AT_ONCE)
        return [self._completion(each) for each in found or ()]

    def _completion(self, found: Any) -> Completion:
        enums = self._verbs.enums
        if found.status != enums.IBV_WC_SUCCESS:
            text = self._verbs.cq.cqe_status_to_str(found.status)
            return Completion(Opcode.SEND, found.wr_id, error=f"the device says: {text}")
        opcode = {
            enums.IBV_WC_SEND: Opcode.SEND,
            enums.IBV_WC_RDMA_WRITE: Opcode.WRITE,
            enums.IBV_WC_RECV: Opcode.RECEIVE,
            enums.IBV_WC_RECV_RDMA_WITH_IMM: Opcode.RECEIVE_WRITE,
        }[found.opcode]
        immediate = socket.ntohl(found.imm_data) if opcode is Opcode.RECEIVE_WRITE else 0
        return Completion(opcode, found.wr_id, found.byte_len, immediate)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            for each in (self._pair, self._queue, self._channel):
                each.close()


class _Device(Device):
    """A device's context and protection domain."""

    def __init__(self, verbs: Any, options: RdmaOptions) -> None:
        self._verbs, self.gid_index = verbs, options.gid_index
        try:
            names = [each.name.decode() for each in verbs.device.get_device_list()]
        except verbs.pyverbs_error.PyverbsError:
            names = []
        wanted = options.device or next(iter(names), "")
        if wanted not in names:
            known = ", ".join(names) or "none"
            raise LinkError(
                f"there is no RDMA device {wanted!r}; there are: {known}. In software: modprobe"
                " rdma_rxe; rdma link add rxe0 type rxe netdev eth0"
            )
        try:
            self.context = verbs.device.Context(name=wanted)
            port = self.context.query_port(_PORT)
            gid = self.context.query_gid(_PORT, self.gid_index)
            self.domain = verbs.pd.PD(self.context)
        except verbs.pyverbs_error.PyverbsError as error:
            raise LinkError(f"RDMA device {wanted} cannot be used: {error}") from None
        self.lid, self.mtu = int(port.lid), int(port.active_mtu)
        self.gid = ipaddress.IPv6Address(str(gid.gid)).packed

    def register(self, size: int, *, remote: bool = False) -> Region:
        try:
            return _Region(self._verbs, self.domain, size, remote=remote)
        except self._verbs.pyverbs_error.PyverbsError as error:
            raise LinkError(f"{size} bytes cannot be registered: {error} (ulimit -l?)") from None

    def queue_pair(self, landing: Region, sends: int, receives: int) -> QueuePair:
        try:
            return _QueuePair(self._verbs, self, landing, sends, receives)
        except self._verbs.pyverbs_error.PyverbsError as error:
            raise LinkError(f"no queue pair can be had: {error}") from None

    def close(self) -> None:
        self.domain.close()
        self.context.close()


class Verbs(Provider):
    """Hosts with a device each, who meet over TCP."""

    name = "verbs"

    def __init__(self, options: RdmaOptions) -> None:
        self._options = options

    def open(self) -> Device:
        """Open the device that the options name, or the first one."""
        return _Device(_pyverbs(), self._options)

    async def connect(self, address: Address) -> socket.socket:
        """Connect over TCP."""
        loop = asyncio.get_running_loop()
        family, where = await _resolve(address)
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            await loop.sock_connect(sock, where)
        except OSError as error:
            sock.close()
            raise LinkError(f"cannot be reached: {error.strerror or error}") from None
        except BaseException:
            sock.close()
            raise
        return sock

    async def listen(self, address: Address) -> tuple[socket.socket, int]:
        """Listen over TCP. What comes later goes past it, and is not encrypted either."""
        _pyverbs()
        try:
            family, where = await _resolve(address)
        except LinkError as error:
            raise InputError(str(error)) from None
        if not self._options.insecure and not ipaddress.ip_address(where[0]).is_loopback:
            raise InputError(
                f"{address} can be reached by other hosts, and RDMA neither encrypts nor asks who"
                " they are; accept the risk with insecure=true on a network of your own"
            )
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(where)
            sock.listen(64)
        except OSError as error:
            sock.close()
            raise InputError(f"cannot listen at {address}: {error.strerror or error}") from None
        return sock, int(sock.getsockname()[1])


async def _resolve(address: Address) -> tuple[int, Any]:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(
            address.host or "0.0.0.0",  # noqa: S104 (listened at only with insecure=true)
            address.port,
            type=socket.SOCK_STREAM,
        )
    except (OSError, UnicodeError) as error:
        raise LinkError(f"no address found for {address.host!r}: {error}") from None
    return found[0][0], found[0][4]


def _colons(gid: bytes) -> str:
    """Write a GID as pyverbs wants it."""
    return ipaddress.IPv6Address(gid).exploded
