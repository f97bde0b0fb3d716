"""What a worker says of its stacks, which may be anything, turned into text."""

from hypothesis import given
from hypothesis import strategies as st

from ringfence.pool import stacks
from ringfence.pool.errors import CpuExceeded, TaskTimeout, WorkerCrashed

HONEST = b"""Thread 0x00007efd151c36c0 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 982 in run
  File "/usr/lib/python3.11/threading.py", line 1002 in _bootstrap

Thread 0x00007efd151c36c1 [helper] (most recent call first):
  File "/app/side.py", line 7 in work
  File "/usr/lib/python3.11/threading.py", line 1002 in _bootstrap

Current thread 0x00007efd16005b80 (most recent call first):
  File "/app/script.py", line 12 in busy
  File "/app/script.py", line ??? in outer
  File "OURSworker/serve.py", line 99 in _call
  File "<string>", line 1 in <module>
""".replace(b"OURS", stacks._OURS.encode())


def test_an_honest_answer_becomes_a_traceback() -> None:
    """The task's frames in the order of a traceback, the main thread last, ours and idle threads left out."""
    found = stacks.read_stacks(HONEST)
    assert found == [
        [("/usr/lib/python3.11/threading.py", 1002, "_bootstrap"), ("/app/side.py", 7, "work")],
        [("/app/script.py", 0, "outer"), ("/app/script.py", 12, "busy")],
    ]
    assert stacks.place_of(found) == "/app/script.py, line 12, in busy"
    error = TaskTimeout("the task ran longer than its timeout of 1 s", 1.0, 1.1)
    stacks.attach(error, HONEST, lambda text: text.replace("in busy", "in busy\n    while True: pass"))
    assert str(error) == (
        "the task ran longer than its timeout of 1 s; it was at /app/script.py, line 12, in busy"
    )
    assert error.stack.endswith('  File "/app/script.py", line 12, in busy\n    while True: pass')
    assert error.stack in "".join(error.__notes__)


def test_an_answer_is_whole_when_the_main_threads_first_frame_is_there() -> None:
    """Not before; and when faulthandler says that it has cut off the rest."""
    assert stacks.is_whole(HONEST)
    assert not any(stacks.is_whole(HONEST[:end]) for end in range(len(HONEST)))
    assert stacks.is_whole(b'  File "x", line 1 in f\n  ...\n')


def test_an_error_that_has_its_stack_is_not_asked_for_another() -> None:
    """Nor is one that no limit is behind; the limit may be the cause of what others are told."""
    late = TaskTimeout("late")
    assert stacks.wants_stack(late)
    other = WorkerCrashed("killed")
    assert not stacks.wants_stack(other)
    other.__cause__ = CpuExceeded("much")
    assert stacks.wants_stack(other)
    late.locate("File ...")
    assert not stacks.wants_stack(late)
    assert not stacks.wants_stack(None)


_LINES = st.one_of(
    st.just("Current thread 0x00007efd16005b80 (most recent call first):"),
    st.builds('  File "{}", line {} in {}'.format, st.text(max_size=400), st.integers(), st.text(max_size=400)),
    st.text(max_size=50),
)


@given(st.one_of(st.binary(max_size=500), st.lists(_LINES, max_size=60).map(lambda x: "\n".join(x).encode())))
def test_whatever_a_worker_says_is_bounded_and_printable(data: bytes) -> None:
    """No control character, no long text, no more threads and frames than are shown."""
    found = stacks.read_stacks(data)
    assert len(found) <= 16
    for stack in found:
        assert 0 < len(stack) <= 40
        for frame in stack:
            assert frame.file.isprintable()
            assert frame.function.isprintable()
            assert len(frame.file) + len(frame.function) < 700
    error = TaskTimeout("late")
    stacks.attach(error, data, str)
    assert len(error.stack) < 16 * 40 * 800
