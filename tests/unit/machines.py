# SPDX-License-Identifier: MIT
"""Recorded machines. `python tests/unit/machines.py NAME` prints one, for `wsl-binfmt status --from /dev/stdin`.

A folder of tests/machines has `description`, a line on what a user saw and where
that was reported; the answer that is `expected`; and `machine.json`, as
`wsl-binfmt report` writes it. In its place, `changes.json` may have what differs
from the machine that it is `like`, as a merge patch (RFC 7396): a null takes a
value away.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "generator"))
from wsl_binfmt.diagnosis import conclude, tell
from wsl_binfmt.diagnosis import machine as m

MACHINES = Path(__file__).parents[1] / "machines"
NAMES = sorted(path.name for path in MACHINES.iterdir() if path.is_dir())


def plain(name: str) -> Any:
    """What is in a machine's JSON."""
    whole = MACHINES / name / "machine.json"
    if whole.exists():
        return json.loads(whole.read_text())
    changes = json.loads((MACHINES / name / "changes.json").read_text())
    return patch(plain(changes.pop("like")), changes)


def patch(value: Any, changes: Any) -> Any:
    """Apply a merge patch."""
    if not isinstance(changes, dict):
        return changes
    result = dict(value) if isinstance(value, dict) else {}
    for name, change in changes.items():
        if change is None:
            result.pop(name, None)
        else:
            result[name] = patch(result.get(name), change)
    return result


def load(name: str, **changes: Any) -> m.Machine:
    """A recorded machine, with changes as a merge patch."""
    return m.from_plain(patch(plain(name), changes))


def answer(machine: m.Machine, *, verbose: bool = False) -> str:
    """What the command prints for a machine, with the times of Greenwich."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    try:
        found = conclude.conclude(machine)
        text = tell.as_text(machine, found, tell.Paint(), verbose=verbose)
    finally:
        if before is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = before
        time.tzset()
    return f"{text}\n[exit status {found.exit_status()}]\n"


if __name__ == "__main__":
    print(json.dumps(plain(sys.argv[1]), indent=1))
