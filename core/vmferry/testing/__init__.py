"""The conformance kit: what a plugin author subclasses to see whether a contract is kept.

======================================  =====================================================
``vmferry.testing.volume``              ``VolumeConformance`` for a volume plugin
``vmferry.testing.tracker``             ``TrackerConformance`` and ``TrackerRig`` for a tracker
``vmferry.testing.hypervisor``          ``HypervisorConformance`` and ``HypervisorRig``
``vmferry.testing.export``              ``RecordingExport``: an NBD server that can misbehave
``vmferry.testing.streams``             ``stream_pair``: byte streams that break where told
``vmferry.testing.transport``           ``TransportConformance`` for a transport
``vmferry.testing.hook``                ``HookConformance`` for a hook plugin
``vmferry.testing.relay``               ``Relay``: a TCP connection that can be cut or damaged
``vmferry.testing.memory``              ``MemoryDriver``: the volume contract, executable
``vmferry.testing.memory_tracker``      ``MemoryTracker``: the tracker contract, executable
======================================  =====================================================

A whole test file of a third party's volume plugin::

    class TestFloppy(VolumeConformance):
        @pytest.fixture
        def driver(self):
            return FloppyDriver()

        @pytest.fixture
        def location(self, tmp_path):
            return str(tmp_path / "disk")

The classes want pytest, pytest-asyncio and hypothesis (``pip install vmferry[testing]``); the
memory implementations want none of them. Each failure quotes the sentence of the contract that was
broken. What a plugin says it cannot do is skipped, with that as the reason.
"""

import pkgutil
import sys

if "pytest" in sys.modules:
    sys.modules["pytest"].register_assert_rewrite(
        *(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__))
    )
