"""The benchmark of faults, in its small version, finds none."""

import pytest

from benchmarks import faults


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_no_fault_is_left() -> None:
    found = faults.measure(small=True)
    assert found["kills"]["tried"] == found["kills"]["recovered"] == 1
    assert found["attacks"]["tried"] > 60 and found["attacks"]["executed"] == 0
    assert found["damaged"]["tried"] > 10 and found["damaged"]["tracebacks"] == 0
    assert found["fuzz"] == {"tried": 100, "tracebacks": 0, "wrong": 0}
