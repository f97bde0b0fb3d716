"""Every row, in the order of the table."""

from benchmarks import (
    buffers,
    call,
    chunked,
    fresh,
    large,
    lockin_row,
    memory,
    mixed,
    plugin_calls,
    plugin_start,
    plugins,
    startup,
    submit,
)

ROWS = (
    submit.ROW,
    call.ROW,
    chunked.ROW,
    fresh.ROW,
    large.ROW,
    memory.QUEUED,
    memory.IDLE,
    startup.ROW,
    mixed.ROW,
    lockin_row.ROW,
    buffers.RESULTS,
    buffers.ARGUMENTS,
    plugins.LOAD,
    plugins.RELOAD,
    plugin_start.ROW,
    plugin_calls.CALL,
    plugin_calls.MANY,
)
