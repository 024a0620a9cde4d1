# SPDX-License-Identifier: MIT
"""What is wrong, from the facts: whether a Windows program starts, who answers it, and every problem."""

from __future__ import annotations

import difflib
import errno
import os
import re
import shlex
import socket
from typing import Callable, Iterator, NamedTuple

from wsl_binfmt import facts, formats, interop, table

ERROR, WARNING, NOTE = "error", "warning", "note"
RESTORE = "sudo wsl-binfmt restore"
RELOAD = "sudo systemctl daemon-reload"
FIX_MAX = 190  # characters: a longer command would be cut
INTEROP_SOCKETS = "/run/WSL"
TERMINATE = "`wsl.exe --terminate DISTRO` on Windows"
# Every problem: how bad it is as a rule, and what it is. The most harmful first.
PROBLEMS = {
    "not-wsl": (NOTE, "This is not WSL."),
    "wsl1": (NOTE, "This is WSL 1, which has no binfmt_misc table of its own."),
    "container": (NOTE, "This is a container, not a WSL distro."),
    "interop-off": (NOTE, "/etc/wsl.conf switches Windows programs off."),
    "exe-not-executable": (ERROR, "The file of the program cannot be executed."),
    "table-disabled": (ERROR, "The whole table is switched off, although each entry says that it is enabled."),
    "not-registered": (ERROR, "WSLInterop is missing."),
    "disabled-by-hand": (ERROR, "Somebody has disabled WSLInterop."),
    "foreign-interpreter": (ERROR, "WSLInterop does not lead to /init."),
    "shadowed": (ERROR, "Another entry that matches Windows programs was registered later than WSLInterop."),
    "interop-socket-dead": (ERROR, "WSL_INTEROP names a socket that nobody listens to."),
    "table-not-mounted": (ERROR, "The table is not mounted here."),
    "autofs-stuck": (ERROR, "The automount of the table does not answer."),
    "other-user-namespace": (WARNING, "This is a user namespace of its own, which may have a table of its own."),
    "cwd-untranslatable": (WARNING, "The current directory has no Windows path."),
    "missing-fix-binary": (
        WARNING,
        "WSLInterop lacks the flag F: Windows programs do not start where /init is not seen.",
    ),
    "generator-missing-output": (WARNING, "The generator ran and failed."),
    "generator-masked": (WARNING, "Another file hides the generator, so that nothing protects this distro."),
    "no-systemd": (WARNING, "systemd does not run here, so that nothing protects this distro."),
    "reload-needed": (WARNING, "What the generator has written is out of date."),
    "override-in-the-way": (WARNING, "A drop-in undoes what ours do."),
    "guard-inactive": (WARNING, "Nothing keeps this distro from emptying the table."),
    "watch-inactive": (WARNING, "Nobody repairs what others do to WSLInterop."),
    "unit-masked": (WARNING, "A unit is masked."),
    "unit-failed": (WARNING, "systemd-binfmt.service has failed."),
    "rule-redefines-wslinterop": (WARNING, "A rule of binfmt.d registers WSLInterop."),
    "config-error": (WARNING, "/etc/wsl.conf is malformed: WSL reads no further."),
    "second-name": (WARNING, "A second entry leads to /init, so that disabling WSLInterop has no effect."),
    "stale-stand-in": (WARNING, "An entry that stood in for WSLInterop was left behind."),
    "unit-skipped": (NOTE, "systemd-binfmt.service was skipped: no format of binfmt.d is registered."),
    "table-read-only": (NOTE, "The table is read-only: nobody in this distro can change it."),
    "protection-off": (NOTE, "/etc/wsl.conf switches this package off."),
    "config-unused": (NOTE, "/etc/wsl.conf has something that WSL does not know."),
}
# These are the whole answer.
ELSEWHERE = "not-wsl", "wsl1", "container"
DROP_IN = "50-wsl-binfmt.conf"

# What WSL reads of /etc/wsl.conf, src/linux/init/WslDistributionConfig.cpp in its source; and whether it is a boolean.
KNOWN_SETTINGS = {
    "automount.cgroups": False,
    "automount.enabled": True,
    "automount.ldconfig": True,
    "automount.mountfstab": True,
    "automount.options": False,
    "automount.root": False,
    "boot.command": False,
    "boot.inittimeout": False,
    "boot.protectbinfmt": True,
    "boot.systemd": True,
    "fileserver.enabled": True,
    "fileserver.logfile": False,
    "fileserver.loglevel": False,
    "fileserver.logtruncate": True,
    "filesystem.umask": False,
    "general.guiapplications": True,
    "gpu.appendlibpath": True,
    "gpu.enabled": True,
    "interop.appendwindowspath": True,
    "interop.enabled": True,
    "network.generatehosts": True,
    "network.generateresolvconf": True,
    "network.hostname": False,
    "time.usewindowstimezone": True,
    "user.default": False,
}
BOOLEANS = "true", "false", "1", "0"
NAME_MAX = 50  # characters
# Sections of %UserProfile%\.wslconfig on Windows.
WSLCONFIG = "wsl2.", "experimental."

START_MAX = 256  # bytes by which the kernel chooses, BINPRM_BUF_SIZE
# How a Windows program begins, as those of today do.
PROGRAM = b"MZ\x90\x00\x03\x00\x00\x00\x04\x00\x00\x00\xff\xff\x00\x00".ljust(START_MAX, b"\0")
# What systemd-binfmt says of a rule that the kernel refused.
REFUSED_RULE = re.compile(r"(/\S+\.conf:\d+): (.*)")


class Problem(NamedTuple):
    """A problem, with its cause, what shows it, and the command that settles it."""

    id: str
    summary: str
    evidence: list[str]
    fix: str | None
    severity: str


class Program(NamedTuple):
    """A file that is to be started."""

    path: str
    start: bytes | None  # its first START_MAX bytes; None if this user may not read them
    fault: str  # why it cannot be executed; "" if it can
    evidence: list[str]
    fix: str | None


class Diagnosis(NamedTuple):
    """The answer."""

    works: bool | None  # whether a Windows program starts; None: could not tell
    handler: facts.Registered | None  # who answers it
    outranked: list[str]  # entries that would answer, were the handler not there
    problems: list[Problem]
    not_checked: list[str]  # what nobody has looked at, and why


def diagnose(seen: facts.Facts, program: Program | None = None) -> Diagnosis:
    """Make a diagnosis of the facts. program: the one that is to start, instead of any."""
    problems = list(_elsewhere(seen))
    if problems:
        return Diagnosis(None, None, [], problems, [])
    path, start = (program.path, program.start or PROGRAM) if program else ("program.exe", PROGRAM)
    matching = [each for each in seen.entries or [] if each.entry.enabled and matches(each.entry, start, path)]
    handler = matching[0] if matching else None
    for check in CHECKS:
        problems += check(seen)
    problems += _interop(seen, handler)
    if program and program.fault:
        problems.append(_problem("exe-not-executable", program.evidence, program.fix, program.fault))
    problems += _session()
    problems.sort(
        key=lambda problem: ([ERROR, WARNING, NOTE].index(problem.severity), list(PROBLEMS).index(problem.id))
    )
    works = _works(seen, handler, problems)
    not_checked = list(_not_checked(seen))
    if program and program.start is None:
        works = works and None
        not_checked.append(f"how {program.path} begins: this user may not read it, or it does not answer")
    return Diagnosis(works, handler, [each.name for each in matching[1:]], problems, not_checked)


def matches(entry: table.Entry, start: bytes, path: str) -> bool:
    """Whether the kernel chooses an entry for a file, search_binfmt_handler() in fs/binfmt_misc.c."""
    if entry.extension is not None:
        return os.fsencode(os.path.basename(path)).endswith(b"." + entry.extension)
    if entry.magic is None or entry.offset + len(entry.magic) > len(start):
        return False
    return entry.may_match(start)


def _works(seen: facts.Facts, handler: facts.Registered | None, problems: list[Problem]) -> bool | None:
    found = {problem.id for problem in problems if problem.severity == ERROR}
    if not seen.conf.interop or found & {"exe-not-executable", "table-disabled", "interop-socket-dead"}:
        return False
    if seen.entries is None or seen.own_user_namespace:
        return None
    return handler is not None and interop.leads_to_init(handler.entry)


def _not_checked(seen: facts.Facts) -> Iterator[str]:
    if seen.is_switched_on is None and seen.entries is not None:
        yield "whether the whole table is switched off: only root can see that, run this with sudo"
    if seen.entries is None and seen.table_mount and seen.table_mount.kind == "binfmt_misc":
        yield "the entries of the table: it could not be read in time"
    if not seen.conf.is_known:
        yield "/etc/wsl.conf: this user may not read it, or it does not answer"
    if seen.has_systemd and seen.units is None:
        yield "the units: systemctl did not answer"
    if seen.has_systemd and seen.messages is None:
        yield "the journal: this user may not read it, or it did not answer"
    if os.path.isdir(INTEROP_SOCKETS) and interop_socket() is None:
        yield "the socket by which WSL reaches Windows: none belongs to this session"


def _problem(name: str, evidence: list[str], fix: str | None = None, summary: str = "", severity: str = "") -> Problem:
    # A command that cannot be shown as it is, is no help.
    if fix and not (fix.isprintable() and len(fix) <= FIX_MAX):
        fix = None
    return Problem(name, summary or PROBLEMS[name][1], evidence[: facts.SHOWN_MAX], fix, severity or PROBLEMS[name][0])


def edit(path: str, line: int | str = 0) -> str:
    """Make the command that opens a file at a line."""
    return f"sudo ${{EDITOR:-vi}} {f'+{line} ' if line else ''}{shlex.quote(path)}"


def _elsewhere(seen: facts.Facts) -> Iterator[Problem]:
    if re.match(r"4\.4\.0-\d+-Microsoft", seen.release):
        yield _problem("wsl1", [f"the kernel calls itself {seen.release}"], "wsl.exe --set-version $WSL_DISTRO_NAME 2")
    elif seen.elsewhere not in ("", "not WSL"):
        yield _problem("container", [seen.elsewhere])
    elif seen.elsewhere:
        yield _problem("not-wsl", [f"the kernel calls itself {seen.release}, and there is no container=wsl"])


def _table(seen: facts.Facts) -> Iterator[Problem]:
    """Check the table as a whole."""
    mount = seen.table_mount
    if seen.own_user_namespace:
        yield _problem("other-user-namespace", ["/proc/self/uid_map"])
    if mount is None:
        yield _problem(
            "table-not-mounted",
            [f"{table.DIRECTORY} is not in /proc/self/mountinfo"],
            f"sudo mount -t binfmt_misc binfmt_misc {table.DIRECTORY}",
        )
    elif mount.kind == "autofs":
        yield _problem(
            "autofs-stuck",
            [f"{table.DIRECTORY} is an autofs mount, and looking at it does not mount the table"],
            "sudo systemctl restart proc-sys-fs-binfmt_misc.automount",
        )
    elif "ro" in mount.options:
        yield _problem("table-read-only", [f"{table.DIRECTORY} is mounted with the option ro"])
    if seen.is_switched_on is False:
        fix = RESTORE if _can_change(seen) else None
        yield _problem("table-disabled", [f"{table.DIRECTORY}/status says disabled"], fix)


def _interop(seen: facts.Facts, handler: facts.Registered | None) -> Iterator[Problem]:
    """Check WSLInterop, and what comes before it. handler: who answers a Windows program."""
    if seen.entries is None or not seen.conf.interop:
        return
    restore = RESTORE if _can_change(seen) else None
    ours = next((each for each in seen.entries if each.name == interop.NAME), None)
    if seen.stale:
        yield _problem("stale-stand-in", [_entry(name) for name in seen.stale], restore)
    if ours is None:
        yield from _missing(seen, handler, restore)
    elif not ours.entry.enabled:
        fix = f"echo 1 | sudo tee {_path(ours.name)}"
        yield _problem("disabled-by-hand", [f"{_path(ours.name)} says: disabled"], fix)
    elif not interop.leads_to_init(ours.entry):
        evidence = [f"{_path(ours.name)} leads to {os.fsdecode(ours.entry.interpreter)}"]
        yield _problem("foreign-interpreter", [*evidence, *_where_from(ours)], restore)
    elif b"F" not in ours.entry.flags:
        yield _problem("missing-fix-binary", [f"{_path(ours.name)} has the flags {ours.entry.flags.decode()}"], restore)
    for each in seen.entries if ours else ():
        is_second = each.entry.enabled and not interop.is_ours(each.name) and interop.leads_to_init(each.entry)
        if is_second and (_is_disabled(ours) or not _is_of_wsl(seen, each.name)):
            yield _problem("second-name", [_entry(each.name)], f"echo -1 | sudo tee {shlex.quote(_path(each.name))}")
    if not _is_disabled(ours):
        yield from _shadowed(seen, handler, restore)


def _missing(seen: facts.Facts, handler: facts.Registered | None, restore: str | None) -> Iterator[Problem]:
    """Tell that WSLInterop is missing; another entry may do its work."""
    if seen.stale:
        return
    evidence = [f"{_path(interop.NAME)} does not exist"]
    if handler and interop.leads_to_init(handler.entry):
        evidence.append(f"{_entry(handler.name)} answers in its place")
        yield _problem("not-registered", evidence, restore, "", WARNING)
    else:
        yield _problem("not-registered", evidence, restore)


def _shadowed(seen: facts.Facts, handler: facts.Registered | None, restore: str | None) -> Iterator[Problem]:
    """Tell which entries take Windows programs, all or some, before one that leads to /init gets them."""
    entries = seen.entries or []
    if not any(interop.leads_to_init(each.entry) for each in entries):
        return
    for each in entries:
        if not each.entry.enabled or not each.entry.may_match(interop.WINDOWS):
            continue
        if interop.leads_to_init(each.entry):
            return
        evidence = [f"{_path(each.name)} leads to {os.fsdecode(each.entry.interpreter)}", *_where_from(each)]
        summary = f"{each.name} outranks WSLInterop: it matches Windows programs, and was registered later."
        if each is handler:
            yield _problem("shadowed", evidence, restore, summary)
        else:
            yield _problem(
                "shadowed", evidence, restore, f"{each.name} outranks WSLInterop for some programs.", WARNING
            )


def _is_disabled(each: facts.Registered | None) -> bool:
    return each is not None and not each.entry.enabled


def _is_of_wsl(seen: facts.Facts, name: str) -> bool:
    """Whether WSL's own override registers an entry of that name, as it does up to WSL 2.6.1."""
    paths = {path for unit in (seen.units or {}).values() for path in unit.get("DropInPaths", "").split()}
    overrides = [path for path in paths if path.startswith("/run/") and path.endswith("/override.conf")]
    overrides = overrides or [f"{facts.GENERATED}/{service}.d/override.conf" for service in formats.SERVICES]
    return any(f":{name}:" in facts.read(path) for path in overrides)


def _path(name: str) -> str:
    return f"{table.DIRECTORY}/{name}"


def _entry(name: str) -> str:
    return f"the entry {_path(name)}"


def _where_from(each: facts.Registered) -> Iterator[str]:
    """Tell where an entry comes from, as far as that can be known."""
    if each.entry.interpreter == b"/usr/lib/binfmt-support/run-detectors":
        yield "binfmt-support has several formats for such files, and a detector for each"
    path = f"{formats.UPDATE_BINFMTS}/{each.name}"
    if os.path.exists(path):
        yield f"{path}, of the package {facts.read(path).partition(chr(10))[0]}"
    for file, line, rule in formats.rules_of_binfmt_d():
        if os.fsdecode(formats.name_in(rule)) == each.name:
            package = facts.package_of(file)
            yield f"{file}:{line}" + (f", of the package {package}" if package else "")


def _conf(seen: facts.Facts) -> Iterator[Problem]:
    """Check /etc/wsl.conf."""
    conf = seen.conf
    if not conf.is_known:
        return
    # WSL takes the first of several.
    lines = {setting.name: setting.line for setting in reversed(conf.settings)}
    if not conf.interop:
        line = lines.get("interop.enabled", 0)
        evidence = [f"/etc/wsl.conf:{line}: enabled=false in [interop]", f"a change counts after {TERMINATE}"]
        yield _problem("interop-off", evidence, edit("/etc/wsl.conf", line))
    if not conf.protect:
        line = lines.get("boot.protectbinfmt", 0)
        evidence = [f"/etc/wsl.conf:{line}: protectBinfmt=false in [boot]", f"a change counts after {TERMINATE}"]
        yield _problem("protection-off", evidence, edit("/etc/wsl.conf", line))
    if conf.stopped_at:
        ignored = [f"/etc/wsl.conf:{each.line}: {each.name} is ignored" for each in conf.ignored]
        evidence = [f"/etc/wsl.conf:{conf.stopped_at}: not a [section], name=value or # comment", *ignored]
        yield _problem("config-error", evidence, edit("/etc/wsl.conf", conf.stopped_at))
    for setting in conf.settings[: facts.SHOWN_MAX]:
        wrong = _unused(setting)
        if wrong:
            evidence = [f"/etc/wsl.conf:{setting.line}: {wrong}"]
            yield _problem("config-unused", evidence, edit("/etc/wsl.conf", setting.line))


def _unused(setting: facts.Setting) -> str:
    """Tell what WSL does not know of a setting; "" if it knows it."""
    if setting.name.startswith(WSLCONFIG):
        return f"{setting.name} belongs into %UserProfile%\\.wslconfig on Windows"
    if len(setting.name) > NAME_MAX:
        return "WSL knows no setting with such a long name"
    if setting.name not in KNOWN_SETTINGS:
        likely = difflib.get_close_matches(setting.name, KNOWN_SETTINGS, 1)
        return f"WSL knows no {setting.name}" + (f"; {likely[0]} may be meant" if likely else "")
    if KNOWN_SETTINGS[setting.name] and setting.value.lower() not in BOOLEANS:
        return f"{setting.name} is neither true nor false but {setting.value!r}"
    return ""


def _generator(seen: facts.Facts) -> Iterator[Problem]:
    """Check that the generator has done its work."""
    if not seen.has_systemd:
        yield _problem(
            "no-systemd",
            [
                "/run/systemd/system does not exist",
                "systemd=true under [boot] in /etc/wsl.conf starts it, after `wsl.exe --shutdown` on Windows",
            ],
            edit("/etc/wsl.conf"),
        )
        return
    stale = [path for path, text in seen.wanted.items() if not _is_written(seen.written.get(path), text)]
    unwanted = [] if seen.wanted else [f"{facts.GENERATED}/{path}" for path in _written_ones()]
    if seen.masked_by:
        yield _problem("generator-masked", [f"{seen.masked_by} hides {facts.GENERATOR}"], _remove(seen.masked_by))
    elif (stale or unwanted) and seen.conf.is_known:
        evidence = [f"{facts.GENERATED}/{path} is missing or old" for path in stale[:3]] + unwanted[:3]
        failure = [each.text for each in seen.messages or [] if each.source == "wsl-binfmt-generator"]
        failure = [text for text in failure if "cannot write" in text or "unexpected" in text][-1:]
        if not failure and facts.has_generated_since():
            failure = ["why: sudo journalctl -t wsl-binfmt-generator"]
        if failure and all(text is None for text in seen.written.values()):
            yield _problem("generator-missing-output", [failure[0], *evidence], RELOAD)
        else:
            yield _problem("reload-needed", evidence, RELOAD)


def _is_written(written: str | None, wanted: str) -> bool:
    """Whether a file is as the generator would write it now, but for the line that says where its settings are from."""
    source = "SourcePath=/etc/wsl.conf\n"
    return written is not None and written.replace(source, "") == wanted.replace(source, "")


def _written_ones() -> list[str]:
    """Which of our files are there although the generator would write none."""
    paths = [f"sysinit.target.wants/{unit}" for unit in (facts.GUARD, facts.WATCH, facts.BOOT)]
    paths += [f"{service}.d/{DROP_IN}" for service in formats.SERVICES]
    return [path for path in paths if os.path.lexists(f"{facts.GENERATED}/{path}")]


def _units(seen: facts.Facts) -> Iterator[Problem]:
    """Check the units, as far as they are meant to be there."""
    units = seen.units or {}
    if not units:
        return
    wanted = {path.partition("/")[2] for path in seen.wanted if path.endswith((".mount", ".service"))}
    masked = [name for name, unit in units.items() if unit.get("LoadState") == "masked"]
    for name in masked:
        if name in wanted or name == formats.SERVICES[0]:
            yield _problem("unit-masked", [f"{name} is masked"], f"sudo systemctl unmask {name}", "", _severity(name))
    # Whoever hides or skips the generator has nothing of this either.
    if all(text is None for text in seen.written.values()):
        wanted = set()
    can_change = _can_change(seen)
    if facts.GUARD in wanted and facts.GUARD not in masked and can_change and not seen.over_status:
        yield _problem("guard-inactive", [_state(units, facts.GUARD)], f"sudo systemctl start {facts.GUARD}")
    watch = units.get(facts.WATCH, {})
    if facts.WATCH in wanted and facts.WATCH not in masked and can_change and watch.get("ActiveState") != "active":
        yield _problem("watch-inactive", [_state(units, facts.WATCH)], f"sudo systemctl start {facts.WATCH}")
    for name in formats.SERVICES:
        if units.get(name, {}).get("LoadState") == "loaded" and seen.written.get(f"{name}.d/{DROP_IN}"):
            yield from _drop_ins(name, units[name])
    yield from _systemd_binfmt(seen, units.get(formats.SERVICES[0], {}))


def _can_change(seen: facts.Facts) -> bool:
    """Whether the table is there, and can be written to from here."""
    mount = seen.table_mount
    return mount is not None and mount.kind == "binfmt_misc" and "ro" not in mount.options


def _severity(unit: str) -> str:
    """Masking systemd-binfmt.service costs formats, and is no risk for Windows programs."""
    return NOTE if unit == formats.SERVICES[0] else WARNING


def _state(units: dict[str, dict[str, str]], name: str) -> str:
    return f"{name} is {units.get(name, {}).get('ActiveState', 'unknown')}"


def missing_part(service: dict[str, str]) -> str:
    """Tell what of our drop-in does not count for a service; "" if all does."""
    names = "BindPaths", "ExecStartPre", "ExecStartPost", "ExecStopPost"
    effective = " ".join(service.get(name, "") for name in names)
    needed = f"/dev/null:{table.DIRECTORY}/status", "hook starting", "hook started", "hook stopped"
    return next((part for part in needed if part not in effective), "")


def _drop_ins(name: str, service: dict[str, str]) -> Iterator[Problem]:
    """Check that what our drop-ins say is what counts."""
    missing = missing_part(service)
    if not missing:
        return
    paths = service.get("DropInPaths", "").split()
    ours = f"{facts.GENERATED}/{name}.d/{DROP_IN}"
    if service.get("NeedDaemonReload") == "yes":
        yield _problem("reload-needed", [f"systemd has not read {ours}"], RELOAD)
        return
    suspects = [path for path in paths if not path.startswith(facts.GENERATED)]
    emptied = re.compile(r"^\s*(BindPaths|ExecStartPre|ExecStartPost|ExecStopPost)\s*=\s*$", re.MULTILINE)
    guilty = [path for path in suspects if path.endswith(f"/{DROP_IN}") or emptied.search(facts.read(path))]
    evidence = guilty or suspects or [f"systemctl show {name} has no {missing}"]
    yield _problem("override-in-the-way", evidence, f"{_remove(guilty[0])} && {RELOAD}" if guilty else None)


def _remove(path: str) -> str:
    """Make the command that removes a mere link; what somebody has written is for an editor."""
    return f"sudo rm {shlex.quote(path)}" if os.path.islink(path) else edit(path)


def _systemd_binfmt(seen: facts.Facts, service: dict[str, str]) -> Iterator[Problem]:
    """Check how systemd-binfmt.service fares with binfmt.d."""
    rules = list(formats.rules_of_binfmt_d())
    for file, line, rule in rules:
        if formats.name_in(rule) == interop.NAME.encode():
            fix = edit(file, line)
            if not file.startswith(("/etc/", "/run/")):  # a package would bring it back
                fix = f"sudo ln -s /dev/null {shlex.quote(f'/etc/binfmt.d/{os.path.basename(file)}')}"
            yield _problem("rule-redefines-wslinterop", [f"{file}:{line}"], fix)
    state = service.get("ActiveState")
    if service.get("ConditionResult") == "no" and state == "inactive" and rules and _can_change(seen):
        conditions = [path for path in service.get("DropInPaths", "").split() if "Condition" in facts.read(path)]
        conditions = [path for path in conditions if not path.endswith(f"/{DROP_IN}")]
        yield _problem("unit-skipped", conditions or [f"systemctl status {formats.SERVICES[0]}"])
    if state != "failed":
        return
    said = [each.text for each in seen.messages or [] if each.source == formats.SERVICES[0]]
    refused = list(dict.fromkeys(f"{found[1]}: {found[2]}" for found in map(REFUSED_RULE.search, said) if found))
    present = {each.name for each in seen.entries or []}
    if not seen.messages:
        names = [(f"{file}:{line}", os.fsdecode(formats.name_in(rule))) for file, line, rule in rules]
        refused = [f"{where}: {name} is not in the table" for where, name in names if name not in present]
    if refused:
        path, _, at = refused[0].split(": ")[0].partition(":")
        yield _problem("unit-failed", refused, edit(path, at))
    elif seen.over_status and "hook starting" not in service.get("ExecStartPre", ""):
        yield _problem(
            "unit-failed",
            [f"{table.DIRECTORY}/status is read-only", *said[-1:]],
            None,
            "systemd-binfmt.service has failed, as WSL refused it to empty the table. This is harmless.",
            NOTE,
        )
    else:
        yield _problem("unit-failed", said[-3:] or [f"systemctl status {formats.SERVICES[0]}"])


def _session() -> Iterator[Problem]:
    """Check this terminal: what fails here, and not in another one."""
    named = os.environ.get("WSL_INTEROP", "")
    path = interop_socket()
    is_gone = bool(named) and path != named
    if is_gone or (path and is_listening(path) is False):
        alive = next((other for other in _sockets_of_ancestors() if is_listening(other)), None)
        if is_gone:
            found = f"newer WSL turns to {path}" if path else "a new terminal has one, and so has a new tmux"
            evidence = f"WSL_INTEROP={named}, which is gone; {found}"
        else:
            evidence = f"{path}, which refuses connections; a new terminal has another one, and so has a new tmux"
        fix = f"export WSL_INTEROP={shlex.quote(alive)}" if alive else None
        yield _problem("interop-socket-dead", [evidence], fix, "", WARNING if is_gone and alive else ERROR)
    try:
        directory = os.getcwdb()
        wrong = "it is not below this root" if directory.startswith(b"(unreachable)") else ""
        directory.decode()
    except OSError as e:
        wrong = f"it is gone ({e.strerror})"
    except UnicodeDecodeError:
        wrong = "its path is not UTF-8"
    if wrong:
        yield _problem("cwd-untranslatable", [f"the current directory: {wrong}"], "cd")


def interop_socket() -> str | None:
    """Name the socket that WSL takes, UtilConnectToInteropServer() in its source; None if there is none."""
    named = os.environ.get("WSL_INTEROP", "")
    if named and os.path.exists(named):
        return named
    return next(_sockets_of_ancestors(), None)


def is_listening(path: str) -> bool | None:
    """Whether somebody listens at a Unix socket; None if that could not be told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(0.2)
        try:
            channel.connect(path)
        except OSError as e:
            if e.errno in (errno.ECONNREFUSED, errno.ENOENT, errno.ENOTSOCK):
                return False
            # Of another kind, or too busy.
            return True if e.errno in (errno.EPROTOTYPE, errno.EAGAIN) else None
        return True


def _sockets_of_ancestors() -> Iterator[str]:
    """List the sockets of the processes that this one descends from, the nearest first."""
    paths = (f"{INTEROP_SOCKETS}/{pid}_interop" for pid in _ancestors())
    return (path for path in paths if os.path.exists(path))


def _ancestors() -> Iterator[int]:
    pid = os.getppid()
    while pid > 0:
        yield pid
        # The name may have blanks and parentheses.
        fields = facts.read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        pid = int(fields[1]) if len(fields) > 1 else 0


CHECKS: list[Callable[[facts.Facts], Iterator[Problem]]] = [_table, _conf, _generator, _units]
