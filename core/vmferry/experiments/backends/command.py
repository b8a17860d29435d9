"""The command lines of both ends of a migration, as the parameters of a run have them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vmferry.experiments.results import RunSpec
from vmferry.plugins import ANY_PLUGIN
from vmferry.units import MIB

__all__ = ["agent_words", "migration_words", "plugin_words", "source_words"]


def migration_words(spec: RunSpec) -> list[str]:
    """The options of ``migrate run`` that say how."""
    parameters, policy = spec.parameters, spec.policy
    words: dict[str, str | float] = {
        "--block-size": parameters.block_size,
        "--piece": max(MIB, parameters.block_size),
        "--compression": parameters.compression,
        "--bandwidth": parameters.limit,
        "--threshold": policy.threshold,
        "--max-rounds": policy.max_rounds,
        "--min-gain": policy.min_gain,
    }
    if parameters.tracker != "auto":
        words["--tracker"] = parameters.tracker
    return [str(word) for pair in words.items() for word in pair]


def plugin_words(spec: RunSpec, *kinds: str) -> list[str]:
    """The options of plugins of these kinds that the experiment's file sets."""
    return [
        word
        for kind in kinds
        for name, options in spec.options.get(kind, {}).items()
        for key, value in options.items()
        for word in (f"--{kind}-opt", f"{'' if name == ANY_PLUGIN else f'{name}.'}{key}={value}")
    ]


def _host_words(options: Mapping[str, str]) -> list[str]:
    return [
        word for key, value in options.items() for word in ("--hypervisor-opt", f"{key}={value}")
    ]


def agent_words(spec: RunSpec, folder: Path, host: Mapping[str, str]) -> list[str]:
    """``migrate serve`` at the destination; makes its pool."""
    pool = folder / "pool"
    pool.mkdir()
    volume = spec.parameters.volume
    return [
        *("serve", f"{spec.parameters.transport}://127.0.0.1:0", "--once"),
        *("--pool", str(pool), "--state-dir", str(folder / "there")),
        *(() if volume == "auto" else ("--volume", volume)),
        *_host_words(host),
        *plugin_words(spec, "hypervisor", "transport", "volume"),
    ]


def source_words(
    spec: RunSpec, guest: str, url: str, folder: Path, host: Mapping[str, str]
) -> list[str]:
    """``migrate run`` at the source."""
    return [
        *("run", guest, url, "--hypervisor", spec.parameters.hypervisor),
        *("--state-dir", str(folder / "here")),
        *migration_words(spec),
        *_host_words(host),
        *plugin_words(spec, "hypervisor", "tracker", "transport", "volume"),
    ]
