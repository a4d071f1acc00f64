"""Text that others wrote, such as a guest, made fit to be shown on a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""*text* on one line, with what is not to be seen in it as an escape (`\x1b`, `\n`, `\u202e`).

    Those are all control characters, C1 too, what reorders or hides text, and what no encoding has:
    all that Unicode's categories C and Z have, save the blank.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
