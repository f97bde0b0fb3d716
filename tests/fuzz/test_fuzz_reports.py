"""What a worker says of its lock-in is a report whose own words are that again, or a ValueError of a few words."""

import pytest
from fuzzing import Target, explored, inputs, kind_of
from hypothesis import given, settings

from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import RemoteProtocolError, UnregisteredType
from ringfence.sandbox.plan import Layer
from ringfence.sandbox.report import LayerReport, Report, Status

_CODEC = Codec()


def check(data: bytes) -> str:
    """Read the report in `data`, and compare what it says with what was said."""
    try:
        said = _CODEC.unpack(data)
    except (RemoteProtocolError, UnregisteredType) as error:
        return kind_of(error)
    try:
        report = Report.from_data(said)
    except ValueError as error:
        assert len(str(error)) < 10_000
        return kind_of(error)
    assert Report.from_data(report.to_data()) == report
    assert len(str(report)) < 200_000
    # A layer that is not said to hold is never taken for one that does.
    holds = {layer.layer for layer in report.layers if layer.status not in (Status.NONE, Status.OFF)}
    weak = {layer.layer for layer in report.weaker_than(Layer)}
    assert weak >= {str(layer) for layer in Layer} - holds
    return f"{report.level} {len(weak)} {len(report.layers)}"


_GOOD = Report(tuple(LayerReport(str(layer), Status.FULL, "all of it") for layer in Layer))
_MIXED = Report(
    (
        LayerReport("seccomp", Status.FULL, "an allow-list"),
        LayerReport("landlock", Status.PARTIAL, "files", "ABI 1"),
        LayerReport("namespaces", Status.NONE, "nothing", "EPERM"),
    )
)
TARGET = Target(
    check,
    [_CODEC.pack(said) for said in (_GOOD.to_data(), _MIXED.to_data(), [], tuple(_MIXED.to_data()))],
    [b"\xa5layer", b"\xa6status", b"\xa6detail", b"\xa5cause", b"\xa4full", b"\xa4none", b"\xa3off", b"\xc0", b"\x84",
     b"\xa7seccomp", b"\xa8landlock", b"\xd4\x01\x00", b"\xc7\x0b\x0b\x07|b1C1,2,\1\2"],
)  # fmt: skip


@settings(max_examples=200)
@given(inputs(TARGET))
def test_any_report_is_one_or_a_value_error(data: bytes) -> None:
    """The invariant above."""
    check(data)


@pytest.mark.soak
def test_reports_for_long() -> None:
    """The same, for as long as is asked for."""
    explored(TARGET, "reports")
