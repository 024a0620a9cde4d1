# SPDX-License-Identifier: MIT
"""Problems of /etc/wsl.conf: what it says, and what it said when the distro started."""

from __future__ import annotations

from typing import Iterator, Optional, Tuple

from wsl_binfmt.diagnosis import machine as m
from wsl_binfmt.diagnosis import subject
from wsl_binfmt.diagnosis.about_session import is_of_windows
from wsl_binfmt.diagnosis.problems import (
    NOTE,
    SHOWN_MAX,
    TERMINATE,
    WARNING,
    WINDOWS,
    WSL_CONF,
    Found,
    at_line,
    edit,
    is_pending,
    problem,
    said_of,
    set_to,
    setting,
)  # fmt: skip

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
# Where each of these is false, WSL serves no file of the distro to Windows, src/linux/init/config.cpp in its source.
SERVERS = ("fileserver.enabled",), ("automount.enabled", "automount.mountfstab")
MEANT = {"yes": "true", "on": "true", "no": "false", "off": "false"}
NAME_MAX = 50  # characters
# Sections of %UserProfile%\.wslconfig on Windows.
WSLCONFIG = "wsl2.", "experimental."
# What a change of these means, once the distro has started again; by their values.
CHANGES = {
    "interop.enabled": {False: "Windows programs will not start"},
    "boot.protectbinfmt": {False: "nothing will protect the table in this distro"},
    "interop.appendwindowspath": {False: "the folders of Windows will not be in PATH"},
    "boot.systemd": {True: "systemd will run", False: "systemd will not run"},
    "automount.enabled": {False: "the drives of Windows will not be mounted"},
}


@problem(NOTE, WINDOWS)
def interop_off(machine: m.Machine) -> Iterator[Found]:
    """/etc/wsl.conf switches Windows programs off.

    `enabled=false` under [interop] does so, from the next start of the distro on.
    This package then registers nothing, and leaves the table as other distros
    need it.

    To have Windows programs, remove that line and restart the distro.
    """
    if not machine.conf.interop and not is_pending(machine):
        found = setting(machine, "interop.enabled")
        line = found.line if found else 0
        yield Found([f"{at_line(line)}: enabled=false in [interop]"], set_to(line, "true"), needs_restart=True)


@problem(NOTE)
def protection_off(machine: m.Machine) -> Iterator[Found]:
    """/etc/wsl.conf switches this package off.

    `protectBinfmt=false` under [boot] does so, from the next start of the distro
    on. It switches off WSL's own protection as well.

    To have the protection, remove that line and restart the distro.
    """
    if not machine.conf.protect and not is_pending(machine):
        found = setting(machine, "boot.protectbinfmt")
        line = found.line if found else 0
        yield Found([f"{at_line(line)}: protectBinfmt=false in [boot]"], set_to(line, "true"), needs_restart=True)


@problem(NOTE)
def settings_pending(machine: m.Machine) -> Iterator[Found]:
    """/etc/wsl.conf has changed since this distro started.

    WSL reads the file when a distro starts. The change takes effect after
    `wsl.exe --terminate DISTRO` on Windows.
    """
    if not is_pending(machine):
        return
    evidence = []
    for name, meanings in CHANGES.items():
        found = setting(machine, name)
        if found and found.boolean in meanings:
            evidence.append(f"{at_line(found.line)}: {name}={found.value}: {meanings[found.boolean]}")
    yield Found(evidence or [WSL_CONF], advice=f"The change takes effect after {TERMINATE}.")


@problem(WARNING, WINDOWS)
def no_file_server(machine: m.Machine) -> Iterator[Found]:
    r"""Windows may not reach the files of this distro: "Invalid argument".

    Windows opens the program and the current directory by \\wsl.localhost. WSL
    serves these files, unless `enabled=false` is under [fileServer] in
    /etc/wsl.conf. Many versions of WSL do not serve them either where both
    `enabled=false` and `mountFsTab=false` are under [automount].

    Programs on a drive of Windows start from a directory on such a drive.
    """
    if machine.launch and machine.launch.status == 0:
        return
    place = machine.program.place if machine.program and subject.of(machine).kind == subject.WINDOWS else None
    if is_pending(machine) or (is_of_windows(machine.session.cwd) and (place is None or is_of_windows(place))):
        return
    for names in SERVERS:
        off = [each for each in (setting(machine, name) for name in names) if each and each.boolean is False]
        if len(off) == len(names):
            evidence = [f"{at_line(each.line)}: {each.name}={each.value}" for each in off]
            yield Found(evidence, set_to(off[-1].line, "true"), needs_restart=True)
            return


@problem(WARNING)
def config_error(machine: m.Machine) -> Iterator[Found]:
    """/etc/wsl.conf is malformed: WSL reads no further.

    WSL reads /etc/wsl.conf up to the first line that it does not understand, and
    ignores all lines below it.

    Correct the line, or make it a comment.
    """
    conf = machine.conf
    if conf.stopped_at:
        ignored = [f"{at_line(each.line)}: {each.name} is ignored" for each in conf.ignored]
        evidence = [f"{at_line(conf.stopped_at)}: not a [section], name=value or # comment", *ignored]
        if conf.has_mark and conf.stopped_at == 1:
            evidence[0] = f"{at_line(1)}: begins with a byte order mark, as editors on Windows write one"
            advice = "Save it as UTF-8 without that mark."
            yield Found(evidence, edit(WSL_CONF), advice, needs_restart=True)
        else:
            yield Found(evidence, f"sudo sed -i '{conf.stopped_at}s/^/# /' {WSL_CONF}", needs_restart=True)


@problem(NOTE)
def config_unused(machine: m.Machine) -> Iterator[Found]:
    r"""WSL ignores a setting of /etc/wsl.conf.

    Its name or its value is misspelt, or the setting belongs in
    %UserProfile%\.wslconfig on Windows. A name that resembles no known one may
    be a setting of a later WSL, and is not reported.
    """
    for each in machine.conf.settings[:SHOWN_MAX]:
        wrong, fix = unused(each)
        if wrong:
            yield Found([f"{at_line(each.line)}: {wrong}"], fix, needs_restart=fix is not None)


def unused(each: m.Setting) -> Tuple[str, Optional[str]]:
    """Tell what WSL does not know of a setting, and what mends it; "" if it knows it, or if a later one may."""
    if each.name.startswith(WSLCONFIG):
        comment = f"sudo sed -i '{each.line}s/^/# /' {WSL_CONF}"
        return f"{each.name} belongs in %UserProfile%\\.wslconfig on Windows", comment
    if each.name in KNOWN_SETTINGS:
        if not KNOWN_SETTINGS[each.name] or each.boolean is not None:
            return "", None
        meant = MEANT.get(each.value.lower())
        said = f"{each.name} is neither true nor false but {each.value!r}"
        return said, set_to(each.line, meant) if meant else edit(WSL_CONF, each.line)
    if len(each.name) > NAME_MAX:
        return "", None
    section, _, key = each.name.rpartition(".")
    for known in KNOWN_SETTINGS:
        known_key = known.partition(".")[2]
        # One more letter, one less, one other, or two swapped, in a name that is long enough to be recognized.
        is_near = distance(each.name, known) <= (1 if len(known_key) < 7 else 2)
        if is_near or (not section and key == known_key):
            said = f"WSL knows no {each.name}; {known} may be meant"
            is_in_section = known.startswith(f"{section}.")
            rename = f"sudo sed -i '{each.line}s/^[^=]*=/{known_key}=/' {WSL_CONF}"
            return said, rename if is_in_section else edit(WSL_CONF, each.line)
    return "", None


def distance(one: str, other: str) -> int:
    """Count the letters that are to be added, removed, replaced or swapped with the next to make one name the other."""
    before: "list[int]" = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        two_before, before, row = before, row, [i]
        for j, wanted in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                cost = min(cost, two_before[j - 2] + 1)
            row.append(cost)
    return row[-1]


@problem(WARNING)
def no_systemd(machine: m.Machine) -> Iterator[Found]:
    """systemd does not run here, so that nothing protects this distro.

    WSLInterop may be in the table and handle Windows programs, but nothing keeps
    it there. WSL 0.67.6 and later start systemd if /etc/wsl.conf has
    `systemd=true` under [boot] when the distro starts, and if there is a
    /sbin/init.
    """
    system = machine.system
    if system.has_systemd:
        return
    evidence = ["/run/systemd/system does not exist"]
    if system.init:
        evidence.append(f"PID 1 is {system.init}")
    found = setting(machine, "boot.systemd")
    is_wanted = found is not None and found.boolean is True
    if system.init == "systemd":
        yield Found(evidence, advice="It runs outside of this chroot or mount namespace: run this there.")
    elif machine.conf.state not in (m.THERE, m.GONE):
        yield Found(evidence, advice=f"{WSL_CONF} cannot be read by this user; run this with sudo.")
    elif system.systemd != m.THERE:
        yield Found(
            [*evidence, "there is no /usr/lib/systemd/systemd"],
            advice="Install systemd with its /sbin/init before you switch it on; Debian's package is systemd-sysv. "
            "A distro that has none, such as Alpine, is protected by another distro with this package while that runs.",
        )
    elif found is None and machine.conf.stopped_at:
        evidence.append(f"{at_line(machine.conf.stopped_at)}: WSL reads no further, see config-error")
        yield Found(evidence, advice="Mend that line first.")
    elif found is None:
        fix = f"printf '\\n[boot]\\nsystemd=true\\n' | sudo tee -a {WSL_CONF}"
        yield Found([*evidence, f"{WSL_CONF} has no systemd=true in [boot]"], fix, needs_restart=True)
    elif not is_wanted:
        evidence.append(f"{at_line(found.line)}: systemd={found.value}")
        yield Found(evidence, set_to(found.line, "true"), needs_restart=True)
    elif is_pending(machine):
        evidence.append(f"{at_line(found.line)}: systemd=true, changed since this distro started")
        yield Found(evidence, advice=f"Start the distro again: {TERMINATE}.")
    elif system.sbin_init != m.THERE:
        evidence += [f"{at_line(found.line)}: systemd=true", f"/sbin/init: {said_of(system.sbin_init)}"]
        yield Found(evidence, advice="Install systemd with its /sbin/init; Debian's package is systemd-sysv.")
    else:
        evidence += [f"{at_line(found.line)}: systemd=true", "/sbin/init is there"]
        yield Found(
            evidence,
            advice="Run `wsl.exe --version` on Windows: WSL before 0.67.6 cannot start systemd, and `wsl.exe --update` "
            "brings a later one. If it is later, `wsl.exe --shutdown` and look for what systemd said in `dmesg`.",
        )
