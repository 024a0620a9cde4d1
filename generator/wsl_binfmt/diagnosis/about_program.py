# SPDX-License-Identifier: MIT
"""Problems of what is to run the file that was asked about."""

from __future__ import annotations

import os
import stat
from typing import Iterator, List, Optional

from wsl_binfmt import table
from wsl_binfmt.diagnosis import launch, subject
from wsl_binfmt.diagnosis import machine as m
from wsl_binfmt.diagnosis.about_file import is_alias
from wsl_binfmt.diagnosis.about_protection import unit
from wsl_binfmt.diagnosis.about_rules import guilty_conditions, lift
from wsl_binfmt.diagnosis.about_session import is_of_windows
from wsl_binfmt.diagnosis.problems import (
    ERROR,
    FILE,
    NOTE,
    RESTART,
    SERVICE,
    START_MAX,
    WARNING,
    Found,
    as_owner,
    can_change,
    entry_path,
    handles_windows,
    is_nixos,
    matches,
    problem,
    quote,
    said_of,
    write_to,
)  # fmt: skip

# Debian's packages of loaders that a distro for 64 bits may lack.
LOADERS = {"ld-linux.so.2": "libc6-i386", "ld-musl-x86_64.so.1": "musl"}
OF_NODE = "npm", "npx", "yarn", "pnpm", "corepack"
BYTE_ORDER_MARK = "efbbbf"
# How files begin that are often taken for programs: what they are, and what to do.
TAKEN_FOR_PROGRAMS = (
    (b"\xcf\xfa\xed\xfe", "a program for macOS", "Get the one for Linux."),
    (b"\xce\xfa\xed\xfe", "a program for macOS", "Get the one for Linux."),
    (b"\xca\xfe\xba\xbe\0\0\0", "a program for macOS", "Get the one for Linux."),
    (b"\x1f\x8b", "an archive, of gzip", "Unpack it: the program is in it."),
    (b"PK\3\4", "an archive, of zip", "Unpack it, or start it by what it is for, as `java -jar`."),
    (b"\xfd7zXZ", "an archive, of xz", "Unpack it: the program is in it."),
    (b"(\xb5/\xfd", "an archive, of zstd", "Unpack it: the program is in it."),
    (b"<", "a page, in place of a download", "Get it anew, from the address of the file itself."),
    (b"Not Found", "a page, in place of a download", "Get it anew, from the address of the file itself."),
    (b"\xff\xfe", "a text in UTF-16, as Windows writes one", "`iconv -f UTF-16 -t UTF-8` makes one that Linux reads."),
    (b"\0\0\0\0\0\0\0\0", "nothing but zeros, as after a crash", "Install it anew."),
)
EMULATORS = (
    "qemu-user-binfmt of Debian from 13 and of Ubuntu from 25.10 on, qemu-user-static of older ones and of Fedora, "
    "qemu-user-static-binfmt of Arch, qemu-linux-user of openSUSE; on NixOS, boot.binfmt.emulatedSystems"
)
NIX_LD = (
    "Set `programs.nix-ld.enable = true;` in configuration.nix, and run `sudo nixos-rebuild switch`: programs for "
    "other distributions need it."
)
# What Windows opens, and the program there that does.
OPENERS = {
    ".bat": "cmd.exe /c",
    ".cmd": "cmd.exe /c",
    ".lnk": "explorer.exe",
    ".msi": "msiexec.exe /i",
    ".ps1": "powershell.exe -File",
    ".vbs": "explorer.exe",
}


@problem(ERROR, FILE)
def interpreter_missing(machine: m.Machine) -> Iterator[Found]:
    """The interpreter of the file is missing.

    A script names its interpreter in its first line, an entry of the table names
    one, and an ELF file names a loader. If the interpreter is missing, the kernel
    says "No such file or directory", although the file is there.

    Install the interpreter, or correct the line that names it.
    """
    program = machine.program
    if program is None:
        return
    about = subject.of(machine)
    handler = about.handler
    line = bytes.fromhex(program.start or "")[2:].partition(b"\n")[0]
    if handler and not handles_windows(handler):
        if "F" not in handler.flags and handler.interpreter_state != m.THERE:
            evidence = [f"{entry_path(handler.name)} has the interpreter {handler.interpreter}"]
            yield _without(evidence, handler.interpreter, handler.interpreter_state, ", or remove that entry")
        elif about.kind == subject.ELF and program.interpreter and program.interpreter_state == m.GONE:
            evidence = [f"it needs the loader {program.interpreter}, which is not here"]
            advice = f"Install the C library for {about.processor}, unless the emulator is told where to find it."
            if "F" in handler.flags:
                advice += " If it belongs to a root file system of its own, it starts there, by chroot."
            else:
                evidence.append(f"{entry_path(handler.name)} lacks the flag F, without which it starts in no chroot")
            yield Found(evidence, None, advice, works=None)
    elif about.is_native or about.kind == subject.SCRIPT:
        if about.kind == subject.SCRIPT and line.endswith(b"\r"):
            evidence = [f"its first line ends as on Windows: {(b'#!' + line).decode(errors='replace')!r}"]
            yield Found(evidence, as_owner(machine, f"sed -i 's/\\r$//' -- {quote(program.place.path)}"))
        elif about.kind == subject.SCRIPT and not line.strip():
            yield Found(["its first line names nothing"])
        elif program.has_stub_loader:
            evidence = [f"{program.interpreter} is NixOS' stub, which runs no program"]
            yield Found(evidence, None, NIX_LD, summary="The loader that the program needs is not there.")
        elif about.kind == subject.ELF and program.interpreter_state == m.GONE and is_nixos(machine):
            yield Found([f"it needs the loader {program.interpreter}: it is not there"], None, NIX_LD)
        elif program.interpreter and program.interpreter_state != m.THERE:
            what = "its first line names" if about.kind == subject.SCRIPT else "it needs the loader"
            evidence = [f"{what} {program.interpreter}"]
            distro = machine.system.distro if about.kind == subject.ELF else ""
            yield _without(evidence, program.interpreter, program.interpreter_state, distro=distro)


def _without(evidence: List[str], interpreter: str, state: str, otherwise: str = "", distro: str = "") -> Found:
    """Tell of an interpreter that is not there, or may not be executed; its name is at the end of the evidence."""
    evidence = [*evidence[:-1], f"{evidence[-1]}: {said_of(state)}"]
    if state == m.NOT_EXECUTABLE:
        advice = f"Make {interpreter} executable, or name another program."
        return Found(evidence, advice=advice, summary="The interpreter of the file may not be executed.")
    if " " in interpreter:
        return Found(evidence, advice="env takes the rest of the line for one name; `env -S` splits it.")
    package = LOADERS.get(os.path.basename(interpreter))
    if distro.startswith("Alpine") and "ld-linux" in interpreter:
        return Found(evidence, "sudo apk add gcompat", "Alpine has musl; this gives it the loader of glibc.")
    debian = f"; Debian's package is {package}" if package else ""
    return Found(evidence, advice=f"Install {interpreter}{otherwise}{debian}.")


@problem(ERROR, FILE)
def entry_disabled(machine: m.Machine) -> Iterator[Found]:
    """The entry for such files is disabled.

    An administrator, here or in another distro, wrote 0 to the entry's file.
    Writing 1 to it enables it.
    """
    for entry in _candidates(machine):
        if not entry.enabled and not _is_interop(entry):
            yield Found([f"{entry_path(entry.name)} says: disabled"], write_to(machine, entry.name, "1"))
            return


def _is_interop(entry: m.Entry) -> bool:
    return handles_windows(entry._replace(enabled=True))


def _is_asked(machine: m.Machine) -> bool:
    """Whether a file was asked about that nothing runs."""
    about = subject.of(machine)
    return (
        machine.program is not None
        and machine.table.entries is not None
        and about.kind in (subject.ELF, subject.OTHER)
        and about.handler is None
        and not about.is_native
    )


def _candidates(machine: m.Machine) -> List[m.Entry]:
    """List the entries for such files, disabled ones as well."""
    entries = (machine.table.entries or []) if _is_asked(machine) else []
    return [entry for entry in entries if _is_for(machine, entry.kernel())]


def _rule(machine: m.Machine) -> Optional[m.Rule]:
    """Find the rule for such files."""
    rules = ((rule, rule.entry()) for rule in [*machine.protection.rules, *machine.protection.hidden])
    return next((rule for rule, entry in rules if entry and _is_for(machine, entry)), None)


def _is_for(machine: m.Machine, entry: table.Entry) -> bool:
    """Whether an entry is for the file that was asked about, were it enabled."""
    program = machine.program
    start = bytes.fromhex((program and program.start) or "").ljust(START_MAX, b"\0")[:START_MAX]
    return program is not None and matches(entry, start, program.place.path)


@problem(ERROR, FILE)
def rule_not_registered(machine: m.Machine) -> Iterator[Found]:
    """There is a rule for such files, and it is not registered.

    systemd-binfmt.service registers the rules of binfmt.d when it starts. It may
    be masked, or skipped by a condition, or have failed; or an administrator or
    a container has removed the entry since.

    Mend what keeps the service from registering the rule, and restart the
    service.
    """
    rule = _rule(machine) if _is_asked(machine) and not _candidates(machine) else None
    if rule is None:
        return
    evidence = [f"{rule.path}:{rule.line}: {rule.name}" if rule.line else rule.path]
    fix: Optional[str]
    if rule.hidden_by:
        evidence.append(f"{rule.hidden_by} hides that file")
        fix = f"sudo mv {quote(rule.hidden_by)} {quote(f'{rule.hidden_by}.off')} && {RESTART}"
        yield Found(evidence, fix, "An administrator may have wanted that.")
        return
    if rule.interpreter_state != m.THERE:
        evidence.append(f"its interpreter is {rule.interpreter}")
        yield _without(
            evidence, rule.interpreter, rule.interpreter_state, ", and restart the service that has the rule"
        )
        return
    if rule.line and not machine.system.has_systemd:
        register = f"sed -n {rule.line}p {quote(rule.path)} | sudo tee {table.DIRECTORY}/register >/dev/null"
        yield Found([*evidence, "systemd does not run here"], register, "It counts until WSL restarts.")
        return
    service = unit(machine, SERVICE)
    guilty = guilty_conditions(machine)
    fix = RESTART if rule.line else f"sudo update-binfmts --enable {quote(rule.name)}"
    if rule.line and service.load == "masked":
        evidence.append(f"{SERVICE} is masked")
        fix = f"sudo systemctl unmask {SERVICE} && {RESTART}"
    elif rule.line and guilty:
        evidence.append(f"{SERVICE} was skipped, by {guilty[0].path}")
        fix = lift(guilty)
    elif rule.line and service.active == "failed":
        evidence.append(f"{SERVICE} has failed, see unit-failed")
        fix = None
    elif rule.line:
        evidence.append(f"{SERVICE} is {service.active or 'unknown'}")
    yield Found(evidence, fix if can_change(machine) else None)


@problem(ERROR, FILE)
def nothing_runs_it(machine: m.Machine) -> Iterator[Found]:
    """Nothing on this machine runs such a file.

    The kernel runs programs for its own processor, and scripts whose first line
    names an interpreter. Any other file needs an entry in the table. Emulators
    bring such entries.

    For a program for another processor, install an emulator.
    """
    program = machine.program
    about = subject.of(machine)
    if (
        program is None
        or about.handler
        or is_alias(machine)
        or program.place.state != m.THERE
        or program.kind != "file"
    ):
        return
    if about.kind == subject.EMPTY:
        yield Found(["it is empty"])
    if not _is_asked(machine) or _candidates(machine) or _rule(machine):
        return
    ending = os.path.splitext(program.place.path)[1].lower()
    start = bytes.fromhex(program.start or "")
    taken = [each for each in TAKEN_FOR_PROGRAMS if start.startswith(each[0])]
    if about.kind == subject.ELF:
        evidence = [f"it is a program for {about.processor}, and no entry or rule matches it"]
        yield Found(evidence, advice=f"Install an emulator: {EMULATORS}.")
    elif (program.start or "").startswith(BYTE_ORDER_MARK):
        fix = as_owner(machine, f"sed -i '1s/^\\xef\\xbb\\xbf//' -- {quote(program.place.path)}")
        yield Found(["it begins with a byte order mark, as editors on Windows write one: EF BB BF"], fix)
    elif ending in OPENERS:
        evidence = [f"it is opened by {OPENERS[ending].partition(' ')[0]}, and does not start by itself"]
        yield Found(evidence, f'{OPENERS[ending]} "$(wslpath -w {quote(program.place.path)})"')
    elif taken:
        yield Found([f"it is {taken[0][1]}"], advice=taken[0][2])
    elif ending == ".exe":
        evidence = ["it does not begin with MZ, as Windows programs do"]
        yield Found(evidence, advice="It may be a part of a download, or a page in its place: get it anew.")
    else:
        yield Found(
            ["it is neither a program nor a script that begins with #!, and no entry or rule matches it"],
            advice="A shell may run it as a script of its own; other programs cannot start it.",
        )


@problem(ERROR, FILE)
def exe_is_no_program(machine: m.Machine) -> Iterator[Found]:
    """The file begins as Windows programs do, and is none for this Windows.

    A DLL is a part of programs. A file without a PE header is a program for DOS or
    for Windows before Windows 95, which a Windows of 64 bits does not start.

    A DLL of .NET is started by `dotnet FILE`.
    """
    program, about = machine.program, subject.of(machine)
    if program and program.wrong_exe and about.kind == subject.WINDOWS and not about.is_taken_by_specific:
        yield Found([f"it {program.wrong_exe}"])


@problem(NOTE, FILE)
def script_of_windows(machine: m.Machine) -> Iterator[Found]:
    """PATH leads to a script of a program of Windows.

    WSL adds the folders of Windows to PATH. A name that no folder of Linux has is
    then found there. npm and others of Node.js start the Windows program, or fail.
    `docker` of Docker Desktop says that its WSL integration is off for this distro.
    """
    program, about = machine.program, subject.of(machine)
    if program is None or about.kind != subject.SCRIPT or not is_of_windows(program.place) or "/" in program.asked:
        return
    evidence = [f"it is {program.place.path}"]
    if program.asked == "docker":
        advice = "Switch the WSL integration on for this distro: Docker Desktop, Settings, Resources."
        summary = "This docker only says that the WSL integration of Docker Desktop is off for this distro."
        yield Found(evidence, None, advice, summary=summary, severity=WARNING)
    elif program.asked in OF_NODE:
        yield Found(evidence, None, "Install Node.js here, or put its folder before those of Windows in PATH.")


@problem(WARNING, FILE)
def setuid_ignored(machine: m.Machine) -> Iterator[Found]:
    """The program has the set-user-ID or set-group-ID bit, and its entry lacks the flag C.

    The kernel then runs the interpreter with the rights of the user who started
    the program: sudo says "effective uid is not 0". With the flag C, the program's
    own owner counts.

    Register the rule anew, with the flag C.
    """
    program, about = machine.program, subject.of(machine)
    if program is None or about.kind != subject.ELF or about.handler is None or not program.place.way:
        return
    if program.place.way[-1].mode & (stat.S_ISUID | stat.S_ISGID) and "C" not in about.handler.flags:
        evidence = [f"{entry_path(about.handler.name)} has the flags {about.handler.flags or 'none'}"]
        yield Found(evidence, advice="Add C to the flags of its rule, and restart the service that has the rule.")


@problem(ERROR, FILE)
def launch_failed(machine: m.Machine) -> Iterator[Found]:
    """The program was launched, and did not start.

    The evidence is the layer that failed, and the message. The layers are the
    file, the table, the interpreter, and Windows with /init.

    The sentence below the evidence says what the message means.
    """
    outcome = launch.outcome(machine)
    if outcome and outcome.started is False:
        evidence = [f"layer {outcome.layer}: {outcome.detail}"]
        yield Found(evidence, None, outcome.meaning)
