from __future__ import annotations

import msgspec
import pytest

from vmferry.api import Decision, RoundReport
from vmferry.engine.policy import ConvergencePolicy, DefaultPolicy, PolicyOptions
from vmferry.units import GIB, MIB


def report(number: int, scanned: int, dirty: int, seconds: float = 10.0) -> RoundReport:
    return RoundReport(
        number=number, scanned=scanned, sent=scanned, zeroes=0, seconds=seconds, dirty=dirty
    )


def test_the_full_copy_comes_first_even_when_forced() -> None:
    policy = DefaultPolicy()
    policy.force()
    assert policy.decide(()).decision is Decision.CONTINUE


@pytest.mark.parametrize(
    ("rounds", "decision", "reason"),
    [
        ([(100 * GIB, GIB)], Decision.CONTINUE, "another round"),
        ([(100 * GIB, 16 * MIB)], Decision.SWITCH, "within"),
        ([(100 * GIB, 16 * MIB + 1)], Decision.CONTINUE, "another round"),
        ([(100 * GIB, 0)], Decision.SWITCH, "within"),
        ([(GIB, GIB)], Decision.SWITCH, "rounds do not help"),
        ([(100 * GIB, GIB), (GIB, GIB // 2)], Decision.CONTINUE, "another round"),
        ([(100 * GIB, GIB), (GIB, 2 * GIB)], Decision.SWITCH, "the link takes"),
        ([(100 * GIB, GIB), (2 * GIB, GIB - 1)], Decision.SWITCH, "the last round left"),
    ],
)
def test_rulings(rounds: list[tuple[int, int]], decision: Decision, reason: str) -> None:
    reports = tuple(report(number, *amounts) for number, amounts in enumerate(rounds))
    ruling = DefaultPolicy().decide(reports)
    assert ruling.decision is decision
    assert reason in ruling.reason


def test_ends_after_the_most_rounds_though_each_helps() -> None:
    policy: ConvergencePolicy = DefaultPolicy(PolicyOptions(max_rounds=3, threshold=0))
    sizes = [GIB, GIB // 2, GIB // 4]
    reports = tuple(report(n, 2 * size, size) for n, size in enumerate(sizes))
    assert policy.decide(reports[:2]).decision is Decision.CONTINUE
    ruling = policy.decide(reports)
    assert ruling.decision is Decision.SWITCH
    assert "3 rounds" in ruling.reason


def test_forced_by_the_operator() -> None:
    policy = DefaultPolicy()
    rounds = (report(0, 100 * GIB, GIB),)
    assert policy.decide(rounds).decision is Decision.CONTINUE
    policy.force()
    ruling = policy.decide(rounds)
    assert ruling.decision is Decision.SWITCH
    assert "operator" in ruling.reason


def test_a_round_without_duration_has_no_rates_to_compare() -> None:
    rounds = (report(0, GIB, GIB, seconds=0.0),)
    assert DefaultPolicy().decide(rounds).decision is Decision.CONTINUE


def test_any_guest_is_switched_after_few_rounds() -> None:
    for share in (0.01, 0.5, 0.79, 0.95, 3.0):
        policy, size = DefaultPolicy(PolicyOptions(threshold=0)), 100 * GIB
        rounds: tuple[RoundReport, ...] = ()
        while policy.decide(rounds).decision is Decision.CONTINUE:
            rounds += (report(len(rounds), size, int(size * share)),)
            size = int(size * share)
            assert len(rounds) <= 6


def test_options_are_validated_and_described() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"max_rounds": 0}, PolicyOptions)
    for field in msgspec.inspect.type_info(PolicyOptions).fields:  # type: ignore[attr-defined]
        assert field.type.extra_json_schema["description"]


def test_asked_to_converge_it_goes_on_until_little_is_dirty() -> None:
    policy = DefaultPolicy(PolicyOptions(max_rounds=1, converge=True))
    useless = (report(0, GIB, GIB), report(1, GIB, GIB))
    assert policy.decide(useless).decision is Decision.CONTINUE
    assert policy.decide((*useless, report(2, GIB, MIB))).decision is Decision.SWITCH
    policy.force()
    assert policy.decide(useless).decision is Decision.SWITCH
