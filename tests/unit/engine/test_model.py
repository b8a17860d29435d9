"""The model of the hand-over, checked by spin: it holds, and it finds the faults it must find."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vmferry.wire import messages

MODEL = Path(__file__).parents[3] / "docs" / "model"
CLAIMS = ("one", "some", "ends")

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not MODEL.is_dir(), reason="the documentation is not here"),
]


def check(*arguments: str) -> tuple[int, dict[str, str]]:
    if shutil.which("spin") is None or shutil.which("cc") is None:
        pytest.fail("spin and a C compiler are needed: apt install spin build-essential")
    done = subprocess.run(
        [MODEL / "check.sh", *arguments], capture_output=True, text=True, check=False
    )
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert set(said) == set(CLAIMS), done.stdout + done.stderr
    return done.returncode, {claim: text.split(" ")[0] for claim, text in said.items()}


def test_one_owner_never_none_and_every_job_ends() -> None:
    assert check("3") == (0, dict.fromkeys(CLAIMS, "holds"))


@pytest.mark.parametrize(
    ("fault", "claim"),
    [
        ("COMMIT_AFTER_GO", "one"),
        ("RESUME_FIRST", "one"),
        ("GUESS", "one"),
        ("DESTROY_FIRST", "some"),
    ],
)
def test_a_fault_in_the_protocol_is_found(fault: str, claim: str) -> None:
    code, said = check("2", fault)
    assert code == 1
    assert said[claim] == "broken"


def test_the_model_speaks_of_the_messages_of_the_code() -> None:
    text = (MODEL / "handover.pml").read_text()
    names = re.search(r"^mtype = \{ (.*?) \};", text, re.MULTILINE | re.DOTALL)
    assert names is not None
    known = {message.__name__ for message in messages.MESSAGES}
    assert set(re.split(r",\s*", names[1])) <= known
