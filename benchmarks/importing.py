"""A function whose module imports from the library what many do: in a fresh process a call may have to pay for that."""

import dataclasses
import datetime
import json
import statistics

__all__ = ["weigh"]


@dataclasses.dataclass
class _Sample:
    value: int
    taken: datetime.date


def weigh(value: int) -> str:
    sample = _Sample(value, datetime.date(2020, 1, 1))
    return json.dumps({"mean": statistics.mean([sample.value, 0]), "taken": sample.taken.isoformat()})
