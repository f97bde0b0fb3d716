"""Imports dill, where nothing can be written as well: it asks for a temporary folder, and uses none for us."""

import tempfile

__all__ = ["dill"]

try:
    tempfile.gettempdir()
except FileNotFoundError:
    tempfile.tempdir = "/"
    import dill

    tempfile.tempdir = None
else:
    import dill
