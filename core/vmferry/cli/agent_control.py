"""The agent's control socket: what is done to a job at the destination goes through its agent."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec

from vmferry.cli.control import answering, ask_at
from vmferry.cli.state import private_folder
from vmferry.engine.agent import Agent
from vmferry.errors import VmferryError
from vmferry.wire.messages import Account

__all__ = ["Order", "ask_agents", "commanded"]


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an operator wants of the agent.

    Attributes:
        job: identifier of the migration.
        verb: ``account``: tell what is known; ``withdraw``: never run the guest; ``own``: run it.
        reason: of a withdrawal, for people.

    """

    job: str
    verb: Literal["account", "withdraw", "own"] = "account"
    reason: str = ""


@asynccontextmanager
async def commanded(agent: Agent, state: Path) -> AsyncIterator[None]:
    """Listen for orders while inside."""

    async def answer(line: bytes) -> dict[str, Any]:
        try:
            return await _obey(agent, msgspec.json.decode(line, type=Order))
        except (VmferryError, OSError, msgspec.MsgspecError) as error:
            return {"refused": str(error) or type(error).__name__}

    folder = private_folder(state / "agents")
    async with answering(folder / f"{os.getpid()}.sock", answer):
        yield


async def _obey(agent: Agent, order: Order) -> dict[str, Any]:
    if order.verb == "withdraw":
        await agent.withdraw(order.job, order.reason)
    elif order.verb == "own":
        await agent.own(order.job)
    account: dict[str, Any] = msgspec.to_builtins(await agent.account(order.job))
    return account


async def ask_agents(state: Path, order: Order) -> Account | None:
    """Give an order to the agent of this host; ``None`` if none runs.

    Raises:
        VmferryError: it refused, and why.

    """
    for path in sorted((state / "agents").glob("*.sock")):
        try:
            answer = await ask_at(path, msgspec.to_builtins(order))
        except OSError:  # of an agent that was killed
            continue
        if "refused" in answer:
            raise VmferryError(str(answer["refused"]))
        return msgspec.convert(answer, Account)
    return None
