"""The table of faults: what each test notes down, written where ``DIT_FAULT_TABLE`` says.

DIT_FAULT_TABLE=tests/results/faults.md pytest tests/faults -m "slow or not slow"
"""

import os
import pathlib
import sys

import pytest

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parent / room) for room in ("training", "parallel")]

HEAD = """# Faults

Every row is a test of `tests/faults`, and what it saw; written by a run of them ({command}).
{passed} of {total} passed in {seconds:.0f} s.

| fault | where | what happened | passed | seconds |
|---|---|---|---|---|
"""
rows = {}


MOST = 240  # characters of a message


@pytest.fixture
def note(record_property, tmp_path):
    """``note(fault, where, outcome)``: a row of the table; only the last one of a test counts."""

    def write(fault, where, outcome):
        outcome = outcome.replace(str(tmp_path), "...")
        texts = [" ".join(text.split()).replace("|", "/") for text in (fault, where, outcome)]
        record_property("fault", [t if len(t) <= MOST else t[:MOST] + " ..." for t in texts])

    return write


def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        noted = dict(report.user_properties).get("fault")
        rows[report.nodeid] = (noted, report.outcome, report.duration)


def pytest_terminal_summary(config):
    out = os.environ.get("DIT_FAULT_TABLE")
    if not out or not rows:
        return
    here = {k: v for k, v in rows.items() if "tests/faults/" in k}
    text = HEAD.format(
        command="`DIT_FAULT_TABLE=... pytest tests/faults -m 'slow or not slow'`",
        passed=sum(outcome == "passed" for _, outcome, _ in here.values()),
        total=len(here),
        seconds=sum(seconds for *_, seconds in here.values()),
    )
    for name, (noted, outcome, seconds) in here.items():
        fault, where, what = noted or (name.split("::")[-1], "", "it did not come so far")
        passed = "yes" if outcome == "passed" else f"**{outcome}**"
        text += f"| {fault} | {where} | {what} | {passed} | {seconds:.1f} |\n"
    pathlib.Path(out).write_text(text)
