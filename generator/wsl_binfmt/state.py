# SPDX-License-Identifier: MIT
"""The state file: what a watch knows of the table, for the watch that systemd starts after it was killed."""

import marshal
import posix

from wsl_binfmt import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

FILE = "/run/wsl-binfmt/state"
# Whoever changes what own.py and watch.py save changes this number, so that after an upgrade the watch does not begin
# with a state that it cannot use.
SHAPE = 1


def load() -> "dict[str, Any]":
    """Read the state file; {} if it cannot be read, or has another shape."""
    try:
        with open(FILE, "rb") as file:
            shape, state = marshal.load(file)  # noqa: S302 - only root can write it
        return dict(state) if shape == SHAPE else {}
    except (OSError, EOFError, TypeError, ValueError):
        return {}


def save(state: "dict[str, Any]") -> None:
    """Write the state file, whole or not at all; raises OSError."""
    try:
        with open(f"{FILE}.new", "wb") as file:
            marshal.dump((SHAPE, state), file)
        posix.rename(f"{FILE}.new", FILE)
    except OSError as e:
        e.filename = FILE  # a write that fails does not say where
        raise
