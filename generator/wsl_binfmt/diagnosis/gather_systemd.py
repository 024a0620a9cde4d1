# SPDX-License-Identifier: MIT
"""Gathering what systemd, the journal and the generator say."""

from __future__ import annotations

import glob
import os
import re
import time
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple

from wsl_binfmt import command, interop, rules
from wsl_binfmt.diagnosis import machine as m
from wsl_binfmt.diagnosis.bounded import Looker, executable, finish, start, text
from wsl_binfmt.diagnosis.bounded import read as read_file
from wsl_binfmt.diagnosis.problems import DROP_IN, GENERATED, GENERATOR, GUARD, SERVICE, SERVICES, WATCH, WSL_CONF

if TYPE_CHECKING:
    import subprocess

# Directories that come before that of GENERATOR, systemd.generator(7).
GENERATORS_FIRST = (
    "/run/systemd/system-generators",
    "/etc/systemd/system-generators",
    "/usr/local/lib/systemd/system-generators",
)
# Of units, those that come after what is in GENERATED.early; systemd.unit(5).
UNIT_PATHS = "/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system"
BOOT = "wsl-binfmt-boot.service"
# Properties of systemd's D-Bus interface, org.freedesktop.systemd1(5).
PROPERTIES = "Id,LoadState,ActiveState,FragmentPath,ConditionResult,DropInPaths,NeedDaemonReload,BindPaths"
MESSAGES_MAX = 300
FIELDS = "MESSAGE,MESSAGE_ID,_SYSTEMD_UNIT,SYSLOG_IDENTIFIER"
# Lines of drop-ins that a diagnosis depends on.
LINES = re.compile(r"\s*(Condition|Assert|BindPaths)\w*\s*=")
Process = Optional["subprocess.Popen[bytes]"]


def begin() -> Tuple[Process, Process]:
    """Start systemctl and journalctl."""
    systemctl = start("systemctl", "show", "--no-pager", f"--property={PROPERTIES}", *SERVICES, GUARD, WATCH)
    matches = f"MESSAGE_ID={command.REPAIR}", "SYSLOG_IDENTIFIER=wsl-binfmt-generator", f"_SYSTEMD_UNIT={SERVICE}"
    options = "--quiet", "--boot", "--output=export", f"--output-fields={FIELDS}", f"--lines={MESSAGES_MAX}"
    return systemctl, start("journalctl", *options, *" + ".join(matches).split())


def read(
    look: Looker, generator: Any, conf: m.Conf, system: m.System, systemctl: Process, journal: Process
) -> m.Protection:
    """Look at what the generator has written, and at its units."""
    generated = look("generated", lambda: read_generated(generator, conf), None)
    masked_by = next(filter(os.path.lexists, _overriding_generators()), None)
    found = m.Protection(
        generated=generated,
        has_generated=look("generated", _has_generated, False),
        generator_state=executable(GENERATOR),
        masked_by=m.DropIn(masked_by, is_link=os.path.islink(masked_by)) if masked_by else None,
        set_aside=look("generated", set_aside, []),
        rules=look("rules", read_rules, []),
        hidden=look("rules", read_hidden, []),
    )
    nobody: Tuple[Optional[m.Watch], bool] = None, False
    watch, is_watch_known = look("watch", find_watch, nobody)
    found = found._replace(watch=watch, is_watch_known=is_watch_known)
    said = finish(systemctl)
    units = look("units", lambda: parse_units(text(said)) if said else None, None)
    if units is None and system.has_systemd:
        look.unknown["units"] = "systemctl did not answer"
    exported = finish(journal)
    messages = look("journal", lambda: parse_journal(exported) if exported is not None else None, None)
    if exported is None or (not exported and os.geteuid() != 0):
        messages = None
        if system.has_systemd:
            look.unknown["journal"] = "this user may not read it, or it did not answer"
    return found._replace(units=units, messages=messages)


def read_generated(generator: Any, conf: m.Conf) -> List[m.Generated]:
    """Compare what the generator would write now with what it has written."""
    normal, early = generator.output(conf.interop) if conf.protect else ({}, {})
    wanted: Dict[str, str] = {**normal, **{f"early/{path}": text for path, text in early.items()}}
    ours = [f"sysinit.target.wants/{name}" for name in (GUARD, WATCH, BOOT)]
    ours += [f"{service}.d/{DROP_IN}" for service in SERVICES]
    found = [m.Generated(path, True, _compare(path, content)) for path, content in wanted.items()]
    unwanted = [path for path in ours if path not in wanted and os.path.lexists(f"{GENERATED}/{path}")]
    return found + [m.Generated(path, False) for path in unwanted]


def _compare(path: str, content: str) -> str:
    is_early = path.startswith("early/")
    full = f"{GENERATED}.early/{path[len('early/') :]}" if is_early else f"{GENERATED}/{path}"
    if not os.path.lexists(full):
        return "missing"
    if content.startswith("/"):
        return "right" if os.path.islink(full) and os.readlink(full) == content else "old"
    return "right" if read_file(full) == content else "old"


def _has_generated() -> bool:
    try:
        # If a file was removed, the time of that is not known.
        changed = max(os.stat(path).st_ctime_ns for path in (WSL_CONF, GENERATOR))
        return os.stat(GENERATED).st_mtime_ns > changed
    except OSError:
        return False


def set_aside() -> List[str]:
    """List the drop-ins that the generator masks, without those of WSL."""
    found = []
    for service in SERVICES:
        directory = f"{GENERATED}.early/{service}.d"
        for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
            if os.path.islink(f"{directory}/{name}") and os.readlink(f"{directory}/{name}") == os.devnull:
                paths = (f"{path}/{service}.d/{name}" for path in UNIT_PATHS)
                found += [path for path in paths if os.path.lexists(path)]
    return found


def read_rules() -> List[m.Rule]:
    """Read the rules of binfmt.d, and of update-binfmts."""
    found = []
    for path, line, rule in rules.rules_of_binfmt_d():
        name = os.fsdecode(_name_in(rule))
        found.append(m.Rule(path, line, name, os.fsdecode(rule)))
    for rule in rules.rules_of_update_binfmts():
        if rules.RUN_DETECTORS not in rule:
            name = os.fsdecode(_name_in(rule))
            path = f"{rules.UPDATE_BINFMTS}/{name}"
            package = read_file(path).partition("\n")[0]
            found.append(m.Rule(path, 0, name, os.fsdecode(rule), "" if package == ":" else package))
    found = [_with_package(rule) if _is_of_interest(rule) else rule for rule in found]
    return [rule._replace(interpreter_state=_interpreter_state(rule)) for rule in found]


def _interpreter_state(rule: m.Rule) -> str:
    entry = rule.entry()
    return executable(os.fsdecode(entry.interpreter)) if entry else m.THERE


def read_hidden() -> List[m.Rule]:
    """Read the rules of packages that a file of the same name hides."""
    found = []
    administrators, packages = rules.BINFMT_D[:2], rules.BINFMT_D[2:]
    for path in (path for directory in packages for path in sorted(glob.glob(f"{directory}/*.conf"))):
        hiding = [f"{directory}/{os.path.basename(path)}" for directory in administrators]
        by = next(filter(os.path.lexists, hiding), "")
        for number, line in enumerate(read_file(path).split("\n") if by else [], 1):
            if line[:1] not in ("", "#", ";"):
                name = os.fsdecode(_name_in(os.fsencode(line)))
                found.append(m.Rule(path, number, name, line, hidden_by=by))
    return found


def _name_in(rule: bytes) -> bytes:
    """Read the name in a rule, which the kernel may refuse: what is between its first two delimiters."""
    return rule[1:].split(rule[:1], 1)[0]


def _is_of_interest(rule: m.Rule) -> bool:
    """Whether the package of a rule matters."""
    entry = rule.entry()
    return bool(rule.line) and (rule.name == interop.NAME or (entry is not None and interop.is_rival(entry)))


def _with_package(rule: m.Rule) -> m.Rule:
    """Name the Debian package that a rule belongs to, if one does."""
    said = text(finish(start("dpkg-query", "--search", rule.path)) or b"")
    return rule._replace(package=said.partition(":")[0]) if said.endswith(f": {rule.path}\n") else rule


def find_watch() -> Tuple[Optional[m.Watch], bool]:
    """Find the process of the watch, and tell whether this user may see all processes."""
    is_known = os.path.isdir("/proc/1")
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        words = read_file(f"/proc/{name}/cmdline").split("\0")
        # python3 -BIS /usr/bin/wsl-binfmt watch
        if words[-2:-1] != ["watch"] or not any(word.endswith("/wsl-binfmt") for word in words):
            continue
        # The processes of containers are seen here as well.
        if any(line.endswith(f"/{WATCH}") for line in read_file(f"/proc/{name}/cgroup").split("\n")):
            return m.Watch(int(name), _started(name)), True
    return None, is_known


def _started(pid: str) -> float:
    """Tell when a process was started, in seconds since 1970."""
    fields = read_file(f"/proc/{pid}/stat").rpartition(")")[2].split()
    uptime = read_file("/proc/uptime").split()
    if len(fields) < 20 or not uptime:
        return 0.0
    return time.time() - float(uptime[0]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")


def parse_units(said: str) -> Optional[Dict[str, m.Unit]]:
    """Parse what `systemctl show` says: the properties of each unit; None if it says nothing."""
    units = {}
    for block in said.split("\n\n"):
        found: Dict[str, str] = {}
        for line in block.strip("\n").split("\n"):
            name, _, value = line.partition("=")
            # Some properties are printed more than once.
            found[name] = f"{found[name]}\n{value}" if name in found else value
        if "Id" in found:
            condition = found.get("ConditionResult")
            units[found["Id"]] = m.Unit(
                load=found.get("LoadState", ""),
                active=found.get("ActiveState", ""),
                fragment=_fragment(found.get("FragmentPath", "")),
                condition=None if condition not in ("yes", "no") else condition == "yes",
                bind_paths=found.get("BindPaths", ""),
                needs_reload=found.get("NeedDaemonReload") == "yes",
                drop_ins=[_read_drop_in(path) for path in found.get("DropInPaths", "").split()],
            )
    return units or None


def _fragment(path: str) -> str:
    """Tell the file of a unit. On NixOS, that of a package is a link in /etc; the link of a masked unit is its own."""
    real = os.path.realpath(path) if path.startswith("/etc/") else path
    return path if real == os.devnull else real


def _read_drop_in(path: str) -> m.DropIn:
    lines = [line.strip() for line in read_file(path).splitlines() if LINES.match(line)]
    return m.DropIn(path, lines, os.path.islink(path))


def parse_journal(said: bytes) -> List[m.Message]:
    """Parse what `journalctl --output=export` says, <https://systemd.io/JOURNAL_EXPORT_FORMATS>."""
    messages = []
    fields: Dict[bytes, bytes] = {}
    at = 0
    while at < len(said):
        end = said.find(b"\n", at)
        end = len(said) if end < 0 else end
        line = said[at:end]
        at = end + 1
        name, is_text, value = line.partition(b"=")
        if line and not is_text:  # a field of bytes: its length, then the bytes
            length = int.from_bytes(said[at : at + 8], "little")
            value = said[at + 8 : at + 8 + length]
            at += 8 + length + 1
        if line:
            fields[name] = value
        if (not line or at >= len(said)) and fields:
            messages += _message(fields)
            fields = {}
    return messages


def _message(fields: Dict[bytes, bytes]) -> List[m.Message]:
    try:
        at = int(fields[b"__REALTIME_TIMESTAMP"]) / 1e6
        said = text(fields[b"MESSAGE"])
    except (KeyError, ValueError):
        return []
    is_repair = fields.get(b"MESSAGE_ID") == command.REPAIR.encode()
    identifier = fields.get(b"SYSLOG_IDENTIFIER", b"")
    is_of_generator = identifier == b"wsl-binfmt-generator"
    source = identifier if is_of_generator else fields.get(b"_SYSTEMD_UNIT", identifier)
    return [m.Message(text(source), said, at, is_repair)]


def _overriding_generators() -> List[str]:
    paths = [f"{directory}/{os.path.basename(GENERATOR)}" for directory in GENERATORS_FIRST]
    # With another PREFIX, the generator itself is in such a directory, or a link to it.
    return [path for path in paths if os.path.realpath(path) != os.path.realpath(GENERATOR)]
