# SPDX-License-Identifier: MIT
"""`wsl-binfmt restore`: the same repair of WSLInterop as the watch's, by hand."""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any, Callable

from wsl_binfmt import interop, state, table
from wsl_binfmt.diagnosis import gather

RESTORE_MAX = 10.0  # seconds
# A script for gather.BEHIND_GUARD.
SWITCH_ON = """\
mount --bind "$0" "$0" || exit
read -r state <"$0/status"
[ "$state" = disabled ] || exit 0
echo 1 >"$0/status" && exit 3
"""


class RestoreError(Exception):
    """WSLInterop could not be restored; the text says why."""


def restore(generator: Any, tell: Callable[[str], object], *, dry_run: bool) -> None:
    """Repair what is wrong with WSLInterop, and switch the table on; tell what was done.

    dry_run: only tell what would be done. Raises OSError and RestoreError.
    """
    reason = _nothing_to_do(generator)
    if reason:
        tell(f"{reason}: nothing to do")
        return
    if not os.access(interop.INIT, os.X_OK):
        raise RestoreError(interop.NO_INIT)
    saved = state.load()
    known = interop.Interop(saved.get("inode", 0), disabled=saved.get("disabled", False))
    has_done = False
    end = time.monotonic() + RESTORE_MAX
    while True:
        plan = known.look(table.entries(), time.monotonic()) if dry_run else known.repair()
        writes, wrong, _ = plan
        if wrong:
            tell(f"{wrong}: would be restored" if dry_run else f"{wrong}: restored")
        elif any(argument == interop.TEMPORARY for _, argument in writes):
            tell("a temporary entry was left behind: " + ("would be removed" if dry_run else "removed"))
        elif writes:
            done = "would be put" if dry_run else "put"
            tell(f"entries that are more specific than WSLInterop were behind it: {done} before it")
        has_done = has_done or bool(writes)
        if dry_run or not writes:
            break
        if time.monotonic() > end:
            raise RestoreError("another program changes WSLInterop all the time: giving up")
        time.sleep(0.01)
    if dry_run and os.geteuid() == 0 and gather.is_switched_on_behind_guard() is False:
        tell("the whole table was switched off (echo 0 >status): would be switched on")
        has_done = True
    elif not dry_run and switch_on():
        tell("the whole table was switched off (echo 0 >status): switched on")
        has_done = True
    if known.disabled:
        tell(f"WSLInterop was disabled by hand, and stays so: echo 1 >{table.DIRECTORY}/WSLInterop")
    elif not has_done:
        tell("WSLInterop is as WSL registers it, and no other entry takes Windows programs: nothing to do")


def _nothing_to_do(generator: Any) -> str:
    """Tell why there is nothing to do on this machine; "" if there may be something."""
    if generator.not_a_distro():
        reason: str = generator.not_a_distro()
        return reason
    if not generator.settings()[1]:
        return "/etc/wsl.conf switches Windows programs off"
    if not os.path.exists(f"{table.DIRECTORY}/register"):
        return f"{table.DIRECTORY} is not mounted"
    if os.statvfs(table.DIRECTORY).f_flag & os.ST_RDONLY:
        return f"{table.DIRECTORY} is read-only"
    return ""


def switch_on() -> bool:
    """Switch the table on, if it was switched off; returns whether that was so. Raises OSError."""
    done = subprocess.run(
        [*gather.BEHIND_GUARD, SWITCH_ON, table.DIRECTORY],
        check=False,
        stderr=subprocess.PIPE,
        text=True,
        timeout=RESTORE_MAX,
    )
    if done.returncode not in (0, 3):
        raise OSError(0, done.stderr.strip(), f"{table.DIRECTORY}/status")
    return done.returncode == 3
