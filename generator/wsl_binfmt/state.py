# SPDX-License-Identifier: MIT
"""The state file: what the watch knows of the table, for the watch that systemd starts after this one was killed."""

import marshal
import posix

TYPE_CHECKING = False  # in place of that of `typing`, whose import takes long
if TYPE_CHECKING:
    from typing import Any, Dict

DIRECTORY = "/run/wsl-binfmt"
FILE = "state"


def load() -> "Dict[str, Any]":
    """Read the state file; what cannot be read is empty."""
    try:
        with open(f"{DIRECTORY}/{FILE}", "rb") as file:
            state = marshal.load(file)
    except (OSError, EOFError, TypeError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def save(state: "Dict[str, Any]") -> None:
    """Write the state file, whole or not at all; raises OSError."""
    temporary = f"{DIRECTORY}/.{FILE}"
    try:
        with open(temporary, "wb") as file:
            marshal.dump(state, file)
        posix.rename(temporary, f"{DIRECTORY}/{FILE}")
    except OSError:
        try:
            posix.unlink(temporary)
        except OSError:
            pass
        raise
