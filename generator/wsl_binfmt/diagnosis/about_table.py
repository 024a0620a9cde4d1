# SPDX-License-Identifier: MIT
"""Problems of the kernel's table, and of the entries that are about Windows programs."""

from __future__ import annotations

import re
from typing import Iterator

from wsl_binfmt import interop, table
from wsl_binfmt.diagnosis import machine as m
from wsl_binfmt.diagnosis import subject
from wsl_binfmt.diagnosis.problems import (
    ANY,
    ELSEWHERE,
    ERROR,
    NOTE,
    RESTORE,
    WARNING,
    WINDOWS,
    Found,
    binfmt_d,
    comment_out,
    entry_path,
    handles_windows,
    is_rival,
    problem,
    restoring,
    said_of,
    write_to,
    wsl,
)  # fmt: skip

MOUNT = f"sudo mount -t binfmt_misc binfmt_misc {table.DIRECTORY}"
# WSL's own second entry, of 2.0.9 to 2.6.1.
LATE = "WSLInterop-late"
OF_ALL = m.Message()


@problem(NOTE, ELSEWHERE)
def wsl1(machine: m.Machine) -> Iterator[Found]:
    """This is WSL 1, which has no Linux kernel.

    On WSL 1, each distro has a table of its own, which WSL makes up. This package
    does nothing there.
    """
    if re.match(r"4\.4\.0-\d+-Microsoft", machine.system.release):
        evidence = [f"the kernel calls itself {machine.system.release}"]
        yield Found(evidence, advice="`wsl.exe --set-version DISTRO 2` on Windows makes it WSL 2.")


@problem(NOTE, ELSEWHERE)
def container(machine: m.Machine) -> Iterator[Found]:
    """This is a container, not a WSL distro.

    A container uses the table of the distro or the machine that runs it. Run
    wsl-binfmt there.

    A distro that was made from the files of a container, as by `docker export`,
    may have a file that tells a container, such as /.dockerenv. If WSL does not
    set `container=wsl`, this package takes the distro for a container. Remove the
    file.
    """
    reason = machine.system.elsewhere
    if reason and reason != "not WSL":
        mark = reason.rpartition(" ")[2]
        if machine.system.looks_like_wsl and mark.startswith("/."):
            yield Found(
                [reason, "but WSL has given this session its variables or sockets, as it does in a distro"],
                f"sudo rm {mark}",
                f"If this is a distro that was made from a container, remove {mark}.",
                needs_restart=True,
            )
        else:
            yield Found([reason])


@problem(NOTE, ELSEWHERE)
def not_wsl(machine: m.Machine) -> Iterator[Found]:
    """This is not WSL.

    The release of the kernel contains neither "microsoft" nor "WSL", and the
    environment of systemd has no `container=wsl`.
    """
    if machine.system.elsewhere == "not WSL" and not list(wsl1(machine)):
        yield Found([f"the kernel calls itself {machine.system.release}, and there is no container=wsl"])


@problem(ERROR)
def kernel_without_binfmt_misc(machine: m.Machine) -> Iterator[Found]:
    """This kernel has no binfmt_misc, or has not loaded its module.

    Without binfmt_misc, the kernel runs only Linux programs and scripts. WSL's
    own kernel has it built in. A kernel that `kernel=` in .wslconfig on Windows
    names needs CONFIG_BINFMT_MISC. If binfmt_misc is a module of that kernel, the
    module has to be installed here.
    """
    if machine.system.knows_binfmt_misc is not False:
        return
    evidence = ["binfmt_misc is not in /proc/filesystems"]
    if machine.system.has_module:
        yield Found(evidence, f"sudo modprobe binfmt_misc && {MOUNT} && {RESTORE}")
    else:
        yield Found(
            [*evidence, f"there is no module of that name for {machine.system.release}"],
            advice="Remove `kernel=` from %UserProfile%\\.wslconfig on Windows, or have it name a kernel with "
            "CONFIG_BINFMT_MISC=y; then run `wsl.exe --shutdown`.",
        )


@problem(ERROR)
def table_disabled(machine: m.Machine) -> Iterator[Found]:
    """The whole table is switched off, although each entry says that it is enabled.

    An administrator, another distro or a container has written 0 to the table's
    file `status`. The kernel then uses no entry.

    `sudo wsl-binfmt restore` switches the table on.
    """
    if machine.table.is_switched_on is False:
        advice = "" if machine.conf.interop else f"`{RESTORE}` does so in a distro that has Windows programs."
        yield Found([f"{table.DIRECTORY}/status says disabled"], restoring(machine), advice)


@problem(ERROR, WINDOWS)
def not_registered(machine: m.Machine) -> Iterator[Found]:
    """WSLInterop is missing.

    A container, or a distro without this package, has emptied the table, or an
    administrator has removed the entry. The watch has not repaired that.

    `sudo wsl-binfmt restore` registers it.
    """
    if machine.table.entries is None or wsl(machine):
        return
    evidence = [f"{entry_path(interop.NAME)} does not exist"]
    others = [entry for entry in machine.table.entries if handles_windows(entry)]
    fix = restoring(machine)
    if others:
        evidence.append(f"{entry_path(others[0].name)} handles Windows programs in its place")
    yield Found(evidence, fix, severity=WARNING if others else ERROR)


@problem(ERROR, WINDOWS)
def disabled_by_hand(machine: m.Machine) -> Iterator[Found]:
    """An administrator has disabled WSLInterop.

    An administrator, here or in another distro, has written 0 to the entry's
    file. This package leaves the entry disabled.

    Writing 1 to the same file enables it.
    """
    entry = wsl(machine)
    if entry and not entry.enabled:
        evidence = [f"{entry_path(entry.name)} says: disabled"]
        others = [entry for entry in machine.table.entries or [] if handles_windows(entry)]
        yield Found(evidence, write_to(machine, entry.name, "1"), severity=WARNING if others else ERROR)


@problem(ERROR, WINDOWS)
def foreign_interpreter(machine: m.Machine) -> Iterator[Found]:
    """WSLInterop is not the entry that WSL registers.

    Another program than /init was registered by that name, or /init for other
    files than Windows programs.

    `sudo wsl-binfmt restore` registers it as WSL does.
    """
    entry = wsl(machine)
    if not entry or not entry.enabled or interop.handles_windows(entry.kernel()):
        return
    if entry.interpreter == interop.INIT:
        evidence = [f"{entry_path(entry.name)} matches {_pattern(entry)}"]
        summary = "WSLInterop does not match every Windows program."
    else:
        evidence = [f"{entry_path(entry.name)} has the interpreter {entry.interpreter}", *_where_from(machine, entry)]
        summary = "The interpreter of WSLInterop is not /init."
    severity = WARNING if handles_windows(subject.of(machine).handler) else ERROR
    yield Found(evidence, restoring(machine), summary=summary, severity=severity)


def _pattern(entry: m.Entry) -> str:
    if entry.extension is not None:
        return f"files whose names end in .{entry.extension}"
    return f"the bytes {entry.magic} at {entry.offset}" if entry.magic is not None else "what is not known here"


@problem(ERROR, WINDOWS)
def wrong_flags(machine: m.Machine) -> Iterator[Found]:
    """WSLInterop lacks the flag P: Windows programs do not get their first argument.

    With P, the kernel also hands /init the name by which a program was called.
    Without P, /init takes the first argument for that name. WSL registers
    WSLInterop with P. A script or a service has registered it without P.

    `sudo wsl-binfmt restore` registers it as WSL does. Remove the script or
    service.
    """
    entry = next((each for each in machine.table.entries or [] if handles_windows(each)), None)
    if entry and "P" not in entry.flags:
        evidence = [f"{entry_path(entry.name)} has the flags {entry.flags or 'none'}", *_where_from(machine, entry)]
        fix = restoring(machine)
        summary = f"{entry.name} lacks the flag P: Windows programs do not get their first argument."
        yield Found(evidence, fix, summary=summary)


@problem(ERROR, WINDOWS)
def shadowed(machine: m.Machine) -> Iterator[Found]:
    """An entry that takes Windows programs was registered later than WSLInterop.

    The newest entry that matches a file handles it. wine, mono and dotnet bring
    such entries. If a rule of binfmt.d or of binfmt-support has the name of the
    entry, the evidence has its file. The interpreter "run-detectors" means that
    binfmt-support chooses between several rules.

    An entry that is more specific, such as that of APE (llamafile), takes no
    ordinary Windows program, and is no problem.

    `sudo wsl-binfmt restore` puts WSLInterop first, and the watch keeps it there.
    """
    entries = machine.table.entries or []
    entry, about = wsl(machine), subject.of(machine)
    if (entry and not entry.enabled) or not any(map(handles_windows, entries)):
        return
    for each in entries:
        if handles_windows(each):
            return
        if each != entry and is_rival(each):
            evidence = [f"{entry_path(each.name)} has the interpreter {each.interpreter}", *_where_from(machine, each)]
            kernel = each.kernel()
            takes_this = each in (about.handler, *about.outranked)
            if machine.program is None:
                takes_this = kernel.extension is not None or kernel.may_match(interop.HEADERS[0])
            what = "Windows programs" if takes_this else "some Windows programs"
            yield Found(
                evidence,
                restoring(machine),
                summary=f"The entry {each.name} was registered later than WSLInterop, and takes {what}.",
                severity=ERROR if takes_this else WARNING,
            )


def _where_from(machine: m.Machine, entry: m.Entry) -> Iterator[str]:
    """Tell where an entry comes from, as far as that can be known."""
    if entry.interpreter == "/usr/lib/binfmt-support/run-detectors":
        yield "binfmt-support has several rules for such files, and a detector for each"
    for rule in machine.protection.rules:
        if rule.name == entry.name:
            where = f"{rule.path}:{rule.line}" if rule.line else rule.path
            yield where + (f", of the package {rule.package}" if rule.package else "")


@problem(ERROR)
def table_not_mounted(machine: m.Machine) -> Iterator[Found]:
    """The table is not mounted here.

    So this command cannot read the table. The kernel needs no mount: programs
    may start all the same.

    Mount it: `sudo mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc`.
    """
    if (
        machine.table.mount is None
        and machine.system.knows_binfmt_misc is not False
        and "mounts" not in machine.unknown
    ):
        yield Found([f"{table.DIRECTORY} is not in /proc/self/mountinfo"], MOUNT, works=None)


@problem(ERROR)
def table_hidden(machine: m.Machine) -> Iterator[Found]:
    """The table is mounted, but hidden by a newer /proc.

    systemd was started in namespaces of its own, or a /proc was mounted over the
    one that has the table. So this command cannot read the table. The kernel
    needs no mount: programs may start all the same.

    Mount it again: `sudo mount -t binfmt_misc binfmt_misc
    /proc/sys/fs/binfmt_misc`.
    """
    mount = machine.table.mount
    if mount is None or _is_stuck(machine) or (machine.table.is_visible and mount.kind == "binfmt_misc"):
        return
    evidence = [f"/proc/self/mountinfo has {table.DIRECTORY}, of the kind {mount.kind}"]
    if machine.table.state == m.THERE:
        evidence.append("that directory is not the one that is seen")
    else:
        evidence.append(f"looking into it says: {machine.table.state}")
    yield Found(evidence, MOUNT, works=None)


def _is_stuck(machine: m.Machine) -> bool:
    mount, state = machine.table.mount, machine.table.state
    is_autofs = mount is not None and mount.kind == "autofs" and machine.table.is_visible
    return is_autofs and state in (m.THERE, m.NO_ANSWER)


@problem(ERROR)
def autofs_stuck(machine: m.Machine) -> Iterator[Found]:
    """The automount of the table does not answer.

    systemd should mount the table when a program looks at it, but does not. The
    kernel needs no mount: programs may start all the same.

    Mount it by hand: `sudo mount -t binfmt_misc binfmt_misc
    /proc/sys/fs/binfmt_misc`.
    """
    if _is_stuck(machine):
        evidence = [f"{table.DIRECTORY} is an autofs mount, and looking at it does not mount the table"]
        yield Found(evidence, MOUNT, works=None)


@problem(WARNING, ANY)
def other_user_namespace(machine: m.Machine) -> Iterator[Found]:
    """This user namespace may have a table of its own.

    In Linux 6.7 and later, a user namespace may have a table of its own, which
    the kernel then uses in place of WSL's. Run wsl-binfmt outside of the
    namespace.
    """
    if machine.system.own_user_namespace:
        yield Found(["/proc/self/uid_map"], works=None)


@problem(WARNING, WINDOWS)
def missing_fix_binary(machine: m.Machine) -> Iterator[Found]:
    """WSLInterop lacks the flag F: Windows programs do not start where there is no /init.

    With F, the kernel opens /init when the entry is registered. Without F, a
    Windows program does not start in a chroot or a container that has no /init.
    The drop-in of WSL 2.5.7 to 2.8.8 registers the entry without F.

    `sudo wsl-binfmt restore` registers it with both flags.
    """
    entry = wsl(machine)
    if not entry or not handles_windows(entry) or "F" in entry.flags:
        return
    evidence = [f"{entry_path(entry.name)} has the flags {entry.flags or 'none'}"]
    if entry.interpreter_state == m.THERE:
        yield Found(evidence, restoring(machine))
    else:
        evidence.append(f"/init: {said_of(entry.interpreter_state)}")
        advice = f"Run `{RESTORE}` where /init can be run: in the distro itself, not in a chroot or a container."
        yield Found(evidence, None, advice, severity=ERROR)


@problem(WARNING, WINDOWS)
def second_name(machine: m.Machine) -> Iterator[Found]:
    """A second entry with the interpreter /init: disabling WSLInterop has no effect.

    Writing 0 to WSLInterop then does not switch Windows programs off. WSL 2.0.9
    to 2.6.1 register WSLInterop-late themselves. That entry is a problem only if
    WSLInterop is disabled.

    Remove the second entry, by writing -1 to its file. Also remove the program or
    rule that registers it.
    """
    entry = wsl(machine)
    for each in (machine.table.entries or []) if entry else ():
        if not handles_windows(each) or each.name in (interop.NAME, interop.TEMPORARY):
            continue
        if each.name != LATE or (entry and not entry.enabled):
            commands = [comment_out(rule.path, rule.line) for rule in binfmt_d(machine) if rule.name == each.name]
            remove = write_to(machine, each.name, "-1")
            fix = remove and " && ".join([*commands, remove])
            yield Found([f"the entry {entry_path(each.name)}", *_where_from(machine, each)], fix)


@problem(WARNING, WINDOWS)
def temporary_entry_left(machine: m.Machine) -> Iterator[Found]:
    """A temporary entry was left behind: disabling WSLInterop has no effect.

    While the watch replaces WSLInterop, there is a temporary entry, so that one
    of the two handles Windows programs. A watch was killed in that moment.

    The watch, or `sudo wsl-binfmt restore`, removes the temporary entry.
    """
    for name in machine.table.left:
        yield Found([f"the entry {entry_path(name)}"], restoring(machine))


@problem(NOTE)
def table_read_only(machine: m.Machine) -> Iterator[Found]:
    """The table is read-only: nothing in this distro can change it.

    So this package can repair nothing here. A later WSL may mount the table
    read-only, and some distros do.
    """
    mount = machine.table.mount
    if mount and "ro" in mount.options:
        is_right = any(map(handles_windows, machine.table.entries or []))
        advice = "" if is_right else "`wsl.exe --shutdown` on Windows makes the table anew, for all distros."
        yield Found([f"{table.DIRECTORY} is mounted with the option ro"], advice=advice)
