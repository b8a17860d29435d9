"""Calling the hooks: observers one by one and isolated, policies together and in earnest."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Iterator
from typing import Any

import pluggy

from vmferry.api import Decision, Guest, HookSpecs, Phase, Progress, RoundReport, Summary
from vmferry.errors import PluginError
from vmferry.plugins.candidates import Candidate, candidates, duplicates, load_object
from vmferry.plugins.kinds import HOOK

__all__ = ["DISABLE_EXTERNAL", "Hooks", "probe"]

DISABLE_EXTERNAL = "VMFERRY_DISABLE_EXTERNAL_PLUGINS"
"""Environment variable that keeps hooks of other distributions out when set to anything but 0."""

_log = logging.getLogger("vmferry.plugins")
_PREFIX = "vmferry_"
_OWN = "vmferry"
_POLICIES = frozenset({"vmferry_decide", "vmferry_before_switch"})


class Hooks:
    """All registered hook plugins; one typed method for each hook.

    Observers (``phase_changed``, ``round_finished``, ``progress``, ``event``, ``finished``) never
    raise: a plugin's exception is logged with the plugin's name, in full the first time, and the
    others are still told. Policies (``decide``, ``before_switch``) let exceptions through. The
    plugin registered last is asked first.
    """

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager("vmferry")
        self._manager.add_hookspecs(HookSpecs)
        self._complained: set[tuple[str, str]] = set()

    def register(self, plugin: object, name: str) -> None:
        """Add an object whose methods are marked with ``hookimpl``.

        Raises:
            PluginError: it has no hook, one that does not exist, one with a parameter that does
                not exist, or the name is taken. Nothing was added then.

        """
        if inspect.isclass(plugin):
            raise PluginError(f"hook plugin {name!r}: register an instance, not {plugin!r}")
        if self._manager.is_registered(plugin) or self._manager.has_plugin(name):
            raise PluginError(f"hook plugin {name!r} is registered already")
        try:
            self._manager.register(plugin, name)
            self._manager.check_pending()
            self._check_functions(plugin)
        except Exception as error:
            self.unregister(name)
            raise PluginError(f"hook plugin {name!r}: {error}") from error

    def _check_functions(self, plugin: object) -> None:
        """Refuse what pluggy takes without a word: no hook at all, or one nobody would await."""
        callers = self._manager.get_hookcallers(plugin)
        if not callers:
            raise ValueError("it implements no hook; mark a method with hookimpl")
        for caller in callers:
            for implementation in caller.get_hookimpls():
                if implementation.plugin is plugin and inspect.iscoroutinefunction(
                    implementation.function
                ):
                    raise ValueError(f"{caller.name} must be a plain function, not async")

    def unregister(self, name: str) -> None:
        """Remove a plugin; nothing happens if there is none of that name."""
        if self._manager.has_plugin(name):
            self._manager.unregister(name=name)

    def load(self) -> list[str]:
        """Register the hooks of all installed distributions; returns their names.

        A class is instantiated without arguments. One that is broken, or whose name is registered
        by several distributions, is logged and left out. See ``DISABLE_EXTERNAL``.
        """
        loaded = []
        for candidate in _wanted():
            try:
                self.register(_instance(candidate), candidate.name)
            except PluginError as error:
                _log.error("%s; it is left out", error)
            else:
                loaded.append(candidate.name)
        return loaded

    def names(self) -> list[str]:
        """Names of the registered plugins."""
        return sorted(name for name, plugin in self._manager.list_name_plugin() if plugin)

    def phase_changed(self, job: str, role: str, phase: Phase) -> None:
        """Tell the observers that a phase has begun."""
        self._tell("vmferry_phase_changed", job=job, role=role, phase=phase)

    def round_finished(self, job: str, report: RoundReport) -> None:
        """Tell the observers that a round of PUSH is over."""
        self._tell("vmferry_round_finished", job=job, report=report)

    def progress(self, job: str, progress: Progress) -> None:
        """Tell the observers how far something is."""
        self._tell("vmferry_progress", job=job, progress=progress)

    def event(self, job: str, name: str, **facts: Any) -> None:
        """Tell the observers of something worth a log line."""
        self._tell("vmferry_event", job=job, name=name, facts=facts)

    def finished(self, summary: Summary) -> None:
        """Tell the observers that a migration is over."""
        self._tell("vmferry_finished", summary=summary)

    def decide(self, job: str, rounds: tuple[RoundReport, ...]) -> Decision | None:
        """Ask the policies whether to go on; ``None`` if none of them has an opinion.

        Raises:
            PluginError: a policy answered with something that is no ``Decision``.

        """
        for name, answer in self._ask("vmferry_decide", job=job, rounds=rounds):
            if isinstance(answer, Decision):
                return answer
            raise PluginError(
                f"hook plugin {name!r} answered vmferry_decide with {answer!r}, not a Decision"
            )
        return None

    def before_switch(self, job: str, guest: Guest) -> None:
        """Ask the policies for leave to suspend the guest; one that raises stops the migration."""
        for _ in self._ask("vmferry_before_switch", job=job, guest=guest):
            pass

    def _ask(self, hook: str, **facts: Any) -> Iterator[tuple[str, Any]]:
        """The opinions there are, each with its plugin's name; the last registered comes first."""
        for name, caller in reversed(list(self._callers(hook))):
            try:
                answer = caller(**facts)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                _log.error("hook plugin %r stops the job in %s: %s", name, hook, reason)
                raise
            opinions = answer if isinstance(answer, list) else [answer]
            yield from ((name, opinion) for opinion in opinions if opinion is not None)

    def _tell(self, hook: str, **facts: Any) -> None:
        for name, caller in self._callers(hook):
            try:
                caller(**facts)
            except Exception as error:
                self._complain(name, hook, error)

    def _callers(self, hook: str) -> Iterator[tuple[str, pluggy.HookCaller]]:
        """Name of each plugin that implements a hook, with a caller that reaches it alone."""
        full: pluggy.HookCaller = getattr(self._manager.hook, hook)
        plugins = [implementation.plugin for implementation in full.get_hookimpls()]
        for plugin in plugins:
            others = [other for other in plugins if other is not plugin]
            name = self._manager.get_name(plugin) or repr(plugin)
            yield name, self._manager.subset_hook_caller(hook, others)

    def _complain(self, name: str, hook: str, error: Exception) -> None:
        known = (name, hook) in self._complained
        self._complained.add((name, hook))
        level = logging.DEBUG if known else logging.WARNING
        message = "hook plugin %r failed in %s, the migration goes on: %s: %s"
        _log.log(level, message, name, hook, type(error).__name__, error, exc_info=error)


def _wanted() -> Iterator[Candidate]:
    there = candidates(HOOK)
    own_only = os.environ.get(DISABLE_EXTERNAL, "0") not in {"", "0"}
    for candidate in there:
        if own_only and candidate.distribution != _OWN:
            _log.info("%s is left out because of %s", candidate, DISABLE_EXTERNAL)
            continue
        same = [other for other in there if other.name == candidate.name]
        if len(same) > 1:
            _log.error("%s; it is left out", duplicates(same))
            continue
        yield candidate


def _instance(candidate: Candidate) -> object:
    loaded = load_object(candidate)
    if not inspect.isclass(loaded):
        return loaded
    try:
        return loaded()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise PluginError(f"{candidate} cannot be constructed: {reason}") from error


def probe(candidate: Candidate) -> tuple[str, dict[str, str]]:
    """Summary of a hook plugin, and for each hook it implements ``observer`` or ``policy``.

    Raises:
        PluginError: it could not be registered.

    """
    plugin = _instance(candidate)
    hooks = Hooks()
    try:
        hooks.register(plugin, candidate.name)
    except PluginError as error:
        raise PluginError(f"{candidate}: {error}") from error
    callers = hooks._manager.get_hookcallers(plugin) or []
    roles = {
        caller.name.removeprefix(_PREFIX): "policy" if caller.name in _POLICIES else "observer"
        for caller in callers
    }
    summary = str(getattr(plugin, "summary", "") or inspect.getdoc(plugin) or "")
    return summary.partition("\n")[0], dict(sorted(roles.items()))
