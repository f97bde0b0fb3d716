"""Reports: what they summarise, and what of a hostile worker's data is believed."""

import pytest

from ringfence.sandbox.report import LayerReport, Report, Status

GOOD = Report(
    (
        LayerReport("seccomp", Status.FULL, "allow-list"),
        LayerReport("landlock", Status.PARTIAL, "ABI 3", "no ports"),
        LayerReport("cgroup", Status.OFF, "not asked for"),
    )
)


def test_a_report_survives_the_wire() -> None:
    """to_data and from_data are each other's inverse, through text, lists and dicts only."""
    assert Report.from_data(GOOD.to_data()) == GOOD
    assert all(isinstance(v, (str, type(None))) for entry in GOOD.to_data() for v in entry.values())


def test_a_layer_is_found_by_name() -> None:
    """Indexing finds a layer or raises KeyError."""
    assert GOOD["landlock"].cause == "no ports"
    with pytest.raises(KeyError):
        GOOD["monitor"]


def test_layers_below_what_is_required_are_listed() -> None:
    """Off, absent and unmentioned layers are too weak; partial ones hold."""
    weak = GOOD.weaker_than(["seccomp", "landlock", "cgroup", "namespaces"])
    assert [report.layer for report in weak] == ["cgroup", "namespaces"]
    assert GOOD.weaker_than(["seccomp", "landlock"]) == ()


@pytest.mark.parametrize(
    "data",
    [
        None,
        "report",
        [1],
        [{}],
        [{"layer": "x", "status": "full", "detail": 1, "cause": None}],
        [{"layer": "x", "status": "splendid", "detail": "", "cause": None}],
        [{"layer": "x", "status": "full", "detail": "", "cause": None, "more": ""}],
        [{"layer": "x" * 2000, "status": "full", "detail": "", "cause": None}],
        [{"layer": "x", "status": "full", "detail": "", "cause": None}] * 100,
    ],
)
def test_a_malformed_report_is_refused(data: object) -> None:
    """Whatever else arrives in the place of a report is a ValueError."""
    with pytest.raises(ValueError):
        Report.from_data(data)


def test_a_report_reads_as_one_line_a_layer() -> None:
    """The text has a line for each layer, with the cause where there is one."""
    lines = str(GOOD).splitlines()
    assert len(lines) == 3
    assert lines[1].endswith("(no ports)")
