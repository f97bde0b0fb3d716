"""``python -m ringfence``: the command, where it is not on the path."""

from ringfence.cli import main

main()
