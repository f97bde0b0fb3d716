"""The committed system call tables are the kernel headers'."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import filter_oracle
import syscall_headers

from ringfence.sandbox.seccomp import syscall_table


@pytest.mark.parametrize("machine", sorted(syscall_headers.HEADERS))
def test_the_table_agrees_with_the_installed_headers(machine: str) -> None:
    """Every number that the kernel's headers give is the one in the table."""
    if not syscall_headers.HEADERS[machine].exists():
        pytest.skip(f"{syscall_headers.HEADERS[machine]} is not installed")
    table = syscall_table(machine)
    for name, number in syscall_headers.parse(machine).items():
        assert table[name] == number, name


@pytest.mark.skipif(filter_oracle.load() is None, reason="libseccomp.so.2 is not installed")
@pytest.mark.parametrize("machine", sorted(syscall_headers.HEADERS))
def test_libseccomp_knows_the_same_numbers(machine: str) -> None:
    """Every name that libseccomp knows on a machine has the number it has here; it knows nearly all."""
    library = filter_oracle.load()
    assert library is not None
    table = syscall_table(machine)
    theirs = {call: filter_oracle.number_of(library, machine, call) for call in table}
    known = {call: number for call, number in theirs.items() if number is not None}
    assert known == {call: table[call] for call in known}
    assert len(known) > len(table) - 30


@pytest.mark.parametrize("machine", sorted(syscall_headers.HEADERS))
def test_no_number_has_two_names(machine: str) -> None:
    """A table maps each number to one call."""
    table = syscall_table(machine)
    assert len(set(table.values())) == len(table)


def test_new_calls_have_the_same_number_everywhere() -> None:
    """From 424 on (pidfd_send_signal) the machines share their numbers."""
    first, second = (syscall_table(machine) for machine in sorted(syscall_headers.HEADERS))
    for name in first.keys() & second.keys():
        if first[name] >= 424:
            assert first[name] == second[name], name


def test_the_newest_call_is_the_one_the_tables_were_made_with() -> None:
    """The range test of the filter begins above rseq_slice_yield (Linux 7.0)."""
    for machine in syscall_headers.HEADERS:
        assert max(syscall_table(machine).values()) == 471
