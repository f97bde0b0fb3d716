"""The text of a new plugin's program: what comes before its functions, and what lets them be called from its host."""

from typing import Final

__all__ = ["PROGRAM_HEAD", "PROGRAM_TAIL"]

PROGRAM_HEAD: Final = '''\
#!/usr/bin/env python3
"""NAME: a program that speaks with its host in lines of JSON, on the descriptor that RINGFENCE_FD names.

Any language will do; this one needs nothing but the standard library.
"""

import json
import os
import traceback


'''

PROGRAM_TAIL: Final = '''\


FUNCTIONS = {function.__name__: function for function in (EXPORTS)}


def read(value: dict) -> object:
    """Return what a value of the protocol means: {"Int": 3} is 3."""
    [(kind, content)] = value.items()
    if kind == "List":
        return [read(each) for each in content]
    return {key: read(each) for key, each in content.items()} if kind == "Map" else content


def written(value: object) -> dict:
    """Return a value as the protocol writes it."""
    if isinstance(value, dict):
        return {"Map": {key: written(each) for key, each in value.items()}}
    if isinstance(value, list):
        return {"List": [written(each) for each in value]}
    kinds = {type(None): "Null", bool: "Bool", int: "Int", float: "Float", str: "String"}
    return {kinds[type(value)]: value}


def answer(message: dict) -> dict | None:
    """Return what to say to a message of the host; None where it expects nothing."""
    if message["type"] == "load":
        return {"type": "loaded", "functions": list(FUNCTIONS)}
    if message["type"] == "stop":
        return {"type": "bye"}
    if message["type"] != "call":
        return None
    try:
        args = [read(each) for each in message["args"]]
        kwargs = {key: read(each) for key, each in message["kwargs"].items()}
        value = written(FUNCTIONS[message["function"]](*args, **kwargs))
        return {"type": "result", "id": message["id"], "value": value}
    except Exception as error:
        trace = traceback.format_exc()
        return {
            "type": "error", "id": message["id"], "error": type(error).__name__, "message": str(error),
            "traceback": trace,
        }


def main() -> None:
    """Greet the host, and answer it until it says stop or is gone."""
    with open(int(os.environ["RINGFENCE_FD"]), "r+b", buffering=0) as host:

        def say(message: dict) -> None:
            line = json.dumps(message).encode() + b"\\n"
            while line:
                line = line[host.write(line) :]

        say({"type": "hello", "protocol": 1, "runtime": "python"})
        rest = b""
        while chunk := host.read(65536):
            *lines, rest = (rest + chunk).split(b"\\n")
            for line in filter(bytes.strip, lines):
                said = answer(json.loads(line))
                if said is not None:
                    say(said)
                    if said["type"] == "bye":
                        return


if __name__ == "__main__":
    main()
'''
