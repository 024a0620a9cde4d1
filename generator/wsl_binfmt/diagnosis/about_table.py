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
    can_change,
    entry_path,
    handles_windows,
    is_rival,
    problem,
    write_to,
    wsl,
)  # fmt: skip

MOUNT = f"sudo mount -t binfmt_misc binfmt_misc {table.DIRECTORY}"
# WSL's own second entry, of 2.0.9 to 2.6.1.
LATE = "WSLInterop-late"
OF_ALL = m.Message()


@problem(NOTE, ELSEWHERE)
def wsl1(machine: m.Machine) -> Iterator[Found]:
    """This is WSL 1, which has no binfmt_misc table of its own.

    There, Windows programs start by other means, which this package has nothing
    to do with.
    """
    if re.match(r"4\.4\.0-\d+-Microsoft", machine.system.release):
        evidence = [f"the kernel calls itself {machine.system.release}"]
        yield Found(evidence, advice="`wsl.exe --set-version DISTRO 2` on Windows makes it WSL 2.")


@problem(NOTE, ELSEWHERE)
def container(machine: m.Machine) -> Iterator[Found]:
    """This is a container, not a WSL distro.

    Containers use the table of the distro or the machine that they are on: run
    this there. A distro that was made from the files of a container, as by
    `docker export`, may still have the file by which this is told, such as
    /.dockerenv. WSL before 2.5 does not say that it is a distro all the same.
    Remove the file then.
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

    The kernel does not call itself one of WSL's, and systemd has not been told
    that it runs there. There is no table of WSL's to look at.
    """
    if machine.system.elsewhere == "not WSL" and not list(wsl1(machine)):
        yield Found([f"the kernel calls itself {machine.system.release}, and there is no container=wsl"])


@problem(ERROR)
def kernel_without_binfmt_misc(machine: m.Machine) -> Iterator[Found]:
    """This kernel has no binfmt_misc, or has not loaded its module.

    Without it, the kernel runs nothing but its own programs. WSL's own kernel
    has it built in. A kernel of your own, by `kernel=` in .wslconfig on Windows,
    needs CONFIG_BINFMT_MISC; as a module, it has to be there as well.
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
    file `status`. The kernel then asks no entry.

    `sudo wsl-binfmt restore` switches the table on.
    """
    if machine.table.is_switched_on is False:
        yield Found([f"{table.DIRECTORY}/status says disabled"], RESTORE if can_change(machine) else None)


@problem(ERROR, WINDOWS)
def not_registered(machine: m.Machine) -> Iterator[Found]:
    """WSLInterop is missing.

    The table was emptied, as by the shutdown of a distro without this package,
    or an administrator has removed the entry; and the watch has not repaired
    that.

    `sudo wsl-binfmt restore` registers it.
    """
    if machine.table.entries is None or wsl(machine):
        return
    evidence = [f"{entry_path(interop.NAME)} does not exist"]
    others = [entry for entry in machine.table.entries if handles_windows(entry)]
    fix = RESTORE if can_change(machine) else None
    if others:
        evidence.append(f"{entry_path(others[0].name)} handles Windows programs in its place")
    yield Found(evidence, fix, severity=WARNING if others else ERROR)


@problem(ERROR, WINDOWS)
def disabled_by_hand(machine: m.Machine) -> Iterator[Found]:
    """An administrator has disabled WSLInterop.

    Somebody with root's rights wrote 0 to the entry's file, here or in another
    distro. Everything in this package respects that.

    `echo 1` to the same file enables it.
    """
    entry = wsl(machine)
    if entry and not entry.enabled:
        evidence = [f"{entry_path(entry.name)} says: disabled"]
        others = [entry for entry in machine.table.entries or [] if handles_windows(entry)]
        yield Found(evidence, write_to(entry.name, "1"), severity=WARNING if others else ERROR)


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
    yield Found(evidence, RESTORE if can_change(machine) else None, summary=summary, severity=severity)


def _pattern(entry: m.Entry) -> str:
    if entry.extension is not None:
        return f"files whose names end in .{entry.extension}"
    return f"the bytes {entry.magic} at {entry.offset}" if entry.magic is not None else "what is not known here"


@problem(ERROR, WINDOWS)
def wrong_flags(machine: m.Machine) -> Iterator[Found]:
    """WSLInterop lacks the flag P: Windows programs do not get their first argument.

    With P the kernel hands /init the name by which a program was called, too.
    Without it, /init takes the first argument for that name. WSL registers
    WSLInterop with P. A script or a service has registered it anew without.

    `sudo wsl-binfmt restore` registers it as WSL does; remove that script.
    """
    entry = next((each for each in machine.table.entries or [] if handles_windows(each)), None)
    if entry and "P" not in entry.flags:
        evidence = [f"{entry_path(entry.name)} has the flags {entry.flags or 'none'}", *_where_from(machine, entry)]
        fix = RESTORE if can_change(machine) else None
        summary = f"{entry.name} lacks the flag P: Windows programs do not get their first argument."
        yield Found(evidence, fix, summary=summary)


@problem(ERROR, WINDOWS)
def shadowed(machine: m.Machine) -> Iterator[Found]:
    """An entry that takes Windows programs was registered later than WSLInterop.

    The newest entry that matches a file handles it. wine, mono and dotnet bring
    such entries. If a file of binfmt.d or of binfmt-support has the entry's
    name, it is named. The interpreter "run-detectors" is binfmt-support's choice
    between several.
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
                RESTORE if can_change(machine) else None,
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

    So it cannot be looked at. The kernel needs no mount: programs may start all
    the same.

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
    one that the table is in. So the table cannot be looked at here. The kernel
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

    systemd was to mount the table when a program looks at it, and does not.
    The kernel needs no mount: programs may start all the same.

    Mount it by hand: `sudo mount -t binfmt_misc binfmt_misc
    /proc/sys/fs/binfmt_misc`.
    """
    if _is_stuck(machine):
        evidence = [f"{table.DIRECTORY} is an autofs mount, and looking at it does not mount the table"]
        yield Found(evidence, MOUNT, works=None)


@problem(WARNING, ANY)
def other_user_namespace(machine: m.Machine) -> Iterator[Found]:
    """This is a user namespace of its own, which may have a table of its own.

    Since Linux 6.7 a user namespace may have its own table, which the kernel
    then asks in place of WSL's. Run this outside of the namespace.
    """
    if machine.system.own_user_namespace:
        yield Found(["/proc/self/uid_map"], works=None)


@problem(WARNING, WINDOWS)
def missing_fix_binary(machine: m.Machine) -> Iterator[Found]:
    """WSLInterop lacks the flag F: Windows programs do not start where /init is not seen.

    With F the kernel has opened /init at the registration. Without it, a Windows
    program does not start in a chroot or a container that has no /init. WSL's
    own override of 2.5.7 to 2.8.8 registers it like that.

    `sudo wsl-binfmt restore` registers it with both flags.
    """
    entry = wsl(machine)
    if not entry or not handles_windows(entry) or "F" in entry.flags:
        return
    evidence = [f"{entry_path(entry.name)} has the flags {entry.flags or 'none'}"]
    is_lost = entry.interpreter_state == m.GONE
    if is_lost:
        evidence.append("there is no /init here")
    yield Found(evidence, RESTORE if can_change(machine) else None, severity=ERROR if is_lost else WARNING)


@problem(WARNING, WINDOWS)
def second_name(machine: m.Machine) -> Iterator[Found]:
    """A second entry with the interpreter /init: disabling WSLInterop has no effect.

    Writing 0 to WSLInterop then does not switch Windows programs off. WSL 2.0.9
    to 2.6.1 registers WSLInterop-late itself, which is named here only if
    WSLInterop is disabled.

    Remove the second entry, by writing -1 to its file, and what registers it.
    """
    entry = wsl(machine)
    for each in (machine.table.entries or []) if entry else ():
        if not handles_windows(each) or each.name in (interop.NAME, interop.TEMPORARY):
            continue
        if each.name != LATE or (entry and not entry.enabled):
            yield Found([f"the entry {entry_path(each.name)}"], write_to(each.name, "-1"))


@problem(WARNING, WINDOWS)
def temporary_entry_left(machine: m.Machine) -> Iterator[Found]:
    """A temporary entry was left behind: disabling WSLInterop has no effect.

    The watch registers a second entry while it replaces WSLInterop, so that a
    program finds one of the two. Its watch was killed in that moment. Another
    watch, or `wsl-binfmt restore`, removes it.
    """
    for name in machine.table.left:
        yield Found([f"the entry {entry_path(name)}"], RESTORE if can_change(machine) else None)


@problem(NOTE)
def table_read_only(machine: m.Machine) -> Iterator[Found]:
    """The table is read-only: nothing in this distro can change it.

    So nothing can be repaired or broken from here. A later WSL may mount it like
    that, and some distros do.
    """
    mount = machine.table.mount
    if mount and "ro" in mount.options:
        yield Found([f"{table.DIRECTORY} is mounted with the option ro"])
