# SPDX-License-Identifier: MIT
"""Faults that are planted into the modules of the watch, one at a time: the simulation has to find each."""

from __future__ import annotations

import importlib
from typing import NamedTuple


class Fault(NamedTuple):
    """A fault: what it is, and which text of a module becomes which."""

    name: str
    module: str
    text: str
    becomes: str
    kinds: tuple[str, ...] = ()  # of events, if the fault is found in few histories of all kinds


FAULTS = [
    Fault("no lock", "table", "fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass"),
    Fault(
        "the lock is waited for without an end",
        "table",
        "LOCK_MAX = 0.5",
        "LOCK_MAX = 1e9",
        ("stop watch", "rival", "wipe"),
    ),
    Fault("no patience with an override", "interop", "PATIENCE = 0.2", "PATIENCE = 0.0", ("override",)),
    Fault("no temporary entry in a replacement", "interop", "[*clear, (table.register, rule(TEMPORARY))]", "clear"),
    Fault("a temporary entry stays", "interop", "[(table.remove, TEMPORARY)] if TEMPORARY in entries else []", "[]"),
    Fault("rivals are not seen", "interop", "if is_as_registered(wsl) and not rivals", "if is_as_registered(wsl)"),
    Fault(
        "APE is not told from others",
        "interop",
        "return not is_rival(entry) and is_for_some",
        "return False",
    ),
    Fault("a rival by its extension is none", "interop", "(is_exe or any(", "(any("),
    Fault(
        "flags are not compared",
        "interop",
        'set(entry.flags) >= set(b"FP")\n\n\ndef is_rival',
        "True\n\n\ndef is_rival",
    ),
    Fault("echo 0 is forgotten", "interop", "self.disabled = not wsl.enabled", "self.disabled = False"),
    Fault(
        "echo 1 is not believed",
        "interop",
        "not self.inode or wsl.inode == self.inode or not",
        "not",
        ("disable WSLInterop", "enable WSLInterop", "rival"),
    ),
    Fault(
        "echo 0 is not saved",
        "watch",
        '"disabled": self._interop.disabled',
        '"disabled": False',
        ("disable WSLInterop", "wipe", "kill watch"),
    ),
    Fault(
        "echo 0 is overlooked in a replacement",
        "interop",
        "if entry and not entry.enabled:\n        raise",
        "if False:\n        raise",
        ("disable WSLInterop", "rival"),
    ),
    Fault("an old look decides", "interop", "if plan[1] != MISSING or not was_free:", "if False:"),
    Fault("quiet is not waited for", "own", "QUIET = 0.05", "QUIET = 0.0", ("wipe", "direct run", "restart")),
    Fault("a wipe is taken for removals", "own", "wiped = not is_any_left and not all(", "wiped = False and not all("),
    Fault("a removal is taken for a wipe", "own", "is_any_left = any(", "is_any_left = all("),
    Fault("a mark goes at once", "own", "now >= self._marks[inode] + SECOND", "True", ("reboot", "stop")),
    Fault("a mark stays", "own", "now >= self._marks[inode] + SECOND", "False"),
    Fault("a mark of others is ignored", "own", "if self._gone and marks", "if False and marks"),
    Fault(
        "no mark",
        "own",
        "table.register(LEAVING_RULE.format(self.mark).encode())\n                table.disable(self.mark)\n",
        "pass\n",
    ),
    Fault(
        "a restart is a stop",
        "own",
        "now >= self._stopped[service] + SECOND:\n"
        "                # A failed start has registered all rules but the refused one."
        " While asking, one may start.\n"
        "                has_failed = _has_failed(service)\n"
        "                active = set(filter(_invocation, rules.SERVICES))\n",
        "True:\n                has_failed, active = _has_failed(service), set()\n",
    ),
    Fault(
        "own entries are told by name",
        "own",
        "if entry and table.parse_rule(maker[1])[1].says() == entry.says()",
        "if entry",
    ),
    Fault(
        "a disabled own entry comes back enabled",
        "own",
        "if enabled and name not in entries}",
        "if name not in entries}",
    ),
    Fault("a stop is not saved", "own", 'dict.fromkeys(self._stopped, "stopped")', "{}", ("stop", "kill watch")),
    Fault(
        "a rule for every program comes back", "own", "if maker and not _is_for_this_program(maker[1]):", "if maker:"
    ),
    Fault(
        "a stop of a service is not seen",
        "own",
        "return any(_invocation(service) !=",
        "return False and any(_invocation(service) !=",
        ("stop", "reload"),
    ),
    Fault("nothing is removed at a shutdown", "watch", "            self._own.leave()\n", "            pass\n"),
    Fault("a reload is not passed on", "watch", "if received == signal.SIGHUP:", "if False:", ("change rules",)),
    Fault("nothing is looked at again", "watch", "plan[2], self._own.look(entries, now))", "0.0)"),
    Fault("the state is not saved", "watch", "state.save(known)", "pass"),
    Fault("without a watch, nothing is removed", "command", "entries.leave(args[1:])", "pass", ("stop", "reboot")),
]


def plant(fault: Fault) -> None:
    """Plant a fault, for the rest of this process; the simulation has to be installed after that."""
    module = importlib.import_module(f"wsl_binfmt.{fault.module}")
    assert module.__file__
    with open(module.__file__, encoding="ascii") as file:
        source = file.read()
    assert source.count(fault.text) == 1, f"{fault.name}: {fault.text!r} is not once in {module.__file__}"
    planted = compile(source.replace(fault.text, fault.becomes), module.__file__, "exec")
    exec(planted, module.__dict__)  # noqa: S102 - the module's own source, with one change
