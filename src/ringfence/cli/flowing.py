"""Lets paragraphs of --help be folded to the terminal, and not where the source folds them."""

__all__ = ["flowing"]


def flowing(text: str) -> str:
    r"""Return a docstring, without its indentation, whose paragraphs are one line each; but not after a \b."""
    paragraphs = text.strip().split("\n\n")
    return "\n\n".join(
        each.removeprefix("\b\n") if each.startswith("\b") else " ".join(each.split("\n")) for each in paragraphs
    )
