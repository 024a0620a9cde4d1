# SPDX-License-Identifier: MIT
"""What commands of this tree print into its documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def put(path: Path, command: str, text: str) -> None:
    """Put the text in place of what the command, such as "make bench", has put there before: between its two marks."""
    begin, end = f"<!-- begin: {command} -->\n", f"<!-- end: {command} -->\n"
    before, found, rest = path.read_text().partition(begin)
    after = rest.partition(end)[2]
    assert found, f"{path} has no place for {command}"
    path.write_text(before + begin + text + end + after)
