"""Where tables are printed: in a terminal as wide as it is, in a file or a pipe as wide as they need."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 200


def console() -> Console:
    """Standard output. What is no terminal has no width; rich would cut every table to 80 columns."""
    from rich.console import Console

    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=PIPE_WIDTH)
