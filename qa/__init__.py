"""Spantune: which few parameters should an encoder train to answer questions?

The way of the data, one direction:
examples (`squad`) → windows → batches → span logits (`model`) → loss (`loop`)
→ run folder (`runs`) → predictions (`spans`) → scores (`metrics`) → table (`report`).
"""

import textwrap

__version__ = "0.1.0"


class UserError(Exception):
    """A mistake of the user: one line naming the place, what is wrong, and what to do."""


def in_one_line(error: BaseException, secret: str = "") -> str:
    """An exception's kind and text without the `secret`, in at most 200 characters."""
    said = f"{type(error).__name__}: {error}".replace(secret, "")
    return textwrap.shorten(said, 200, placeholder=" …")


class Interrupted(Exception):
    """A signal asked the program to stop; what had been computed was saved first."""

    def __init__(
        self, signum: int, advice: str = "a checkpoint is saved, --resume goes on from it"
    ):
        super().__init__(signum, advice)
        self.signum, self.advice = signum, advice
