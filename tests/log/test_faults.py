"""A short version of the fault suite; `make faults` runs the long one."""

from __future__ import annotations

import json

import pytest

from tests.log.cases import run_script

SCRIPT = """
from tests.log.faults import suite
sys.exit(suite.main())
"""
CAMPAIGNS = {
    "SIGKILL at any time, then resume": 5,
    "process dies at any call": 5,
    "and the call is torn at a page": 1,
    "power fails at any call": 5,
    "changed bytes in a finished log": 15,
    "changed bytes in what a killed writer left": 15,
    "files cut, missing, swapped, foreign": 10,
    "crafted logs and scores": 5,
    "a second writer": 10,
    "files may not grow (RLIMIT_FSIZE)": 2,
    "full file system": 2,
    "the n-th call fails": 4,
    "the n-th system call fails": 1,
    "the writing thread dies": 2,
    "read-only directory": 5,
}
"""Name to the least number of faults."""


@pytest.fixture(scope="module")
def tallies() -> dict[str, dict]:
    """The outcome of each campaign, by name."""
    done = run_script(SCRIPT, "--short", "--json", timeout=500)
    assert done.returncode in (0, 1), done.stderr
    return {tally["name"]: tally for tally in json.loads(done.stdout)}


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_nothing_is_lost(tallies: dict[str, dict], name: str) -> None:
    tally = tallies[name]
    assert tally["lost"] == []
    if tally["remark"]:
        pytest.skip(tally["remark"])
    assert tally["faults"] >= CAMPAIGNS[name]


def test_every_campaign_is_expected(tallies: dict[str, dict]) -> None:
    assert set(tallies) == set(CAMPAIGNS)
