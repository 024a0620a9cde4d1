# SPDX-License-Identifier: MIT
"""`make faults`: has every system call of ours fail, or the program killed at it, and says what came of it.

strace(1) counts the calls of one run that goes well, then tampers with each of
them in a run of its own. What Python does before it reads our own file is left
out: that is not ours.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import bed
from checks import eventually, quiet, right

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

GENERATOR = bed.TREE / "generator/wsl-binfmt-generator"
# What a kernel may say to calls like ours: no space, an error of the disk, read-only, no memory, no descriptors.
ERRORS = "ENOSPC", "EIO", "EROFS", "ENOMEM", "EMFILE", "EACCES"
SIGNALS = "SIGKILL", "SIGTERM"
# Calls of ours that may fail; others, as brk and rt_sigaction, are those of the interpreter.
CALLS = (
    "access", "close", "faccessat", "fcntl", "flock", "fstatfs", "getdents64", "lstat", "mkdir", "mkdirat", "open",
    "newfstatat", "openat", "read", "readlink", "rename", "renameat", "stat", "statfs", "symlink", "symlinkat",
    "unlink", "unlinkat", "write",
)  # fmt: skip


class Fault(NamedTuple):
    """What is done to a call."""

    call: str
    number: int  # of the calls of that name, from 1
    what: str  # an error or a signal

    @property
    def option(self) -> str:
        """As strace has it."""
        kind = "signal" if self.what.startswith("SIG") else "error"
        return f"inject={self.call}:{kind}={self.what}:when={self.number}"

    @property
    def options(self) -> list[str]:
        """As strace has them. A seccomp filter keeps other calls fast; strace 6.1 makes no signals with one."""
        fast = [] if self.what in SIGNALS else ["--seccomp-bpf"]
        return [*fast, f"--trace={self.call}", "-e", self.option]

    def was_made(self, trace: str, blocked: Sequence[str] = ()) -> bool:
        """Whether a trace has it; a program may come to an end before it. blocked: signals that the program blocks."""
        if self.what in blocked:
            # strace does not show it; that the call came is all that can be seen.
            return len(re.findall(rf"\b{self.call}\(", trace)) >= self.number
        if self.what in SIGNALS:
            return re.search(rf"--- {self.what} |killed by {self.what}", trace) is not None
        return "(INJECTED)" in trace


def calls(trace: str, begin: str) -> list[tuple[str, int]]:
    """List the calls in a trace, each with its number among those of its name, from the one that has `begin` in it."""
    counts: Counter[str] = Counter()
    found = []
    is_ours = False
    for line in trace.splitlines():
        match = re.match(r"(?:\[pid +\d+\] |\d+ +)?(\w+)\(", line)
        if not match or " resumed>" in line:
            continue
        counts[match[1]] += 1
        if is_ours and match[1] in CALLS:
            found.append((match[1], counts[match[1]]))
        is_ours = is_ours or begin in line
    return found


def faults(found: list[tuple[str, int]]) -> Iterator[Fault]:
    """Make every fault: each call with a signal, and with some of the errors in turn."""
    for index, (call, number) in enumerate(found):
        yield Fault(call, number, SIGNALS[index % len(SIGNALS)])
        yield Fault(call, number, SIGNALS[(index + 1) % len(SIGNALS)])
        for shift in range(3):
            yield Fault(call, number, ERRORS[(index + 2 * shift) % len(ERRORS)])


def machine(directory: Path) -> dict[str, str]:
    """Make the files of a distro; returns the environment in which the generator reads them."""
    (directory / "proc/sys/kernel").mkdir(parents=True)
    (directory / "proc/sys/kernel/osrelease").write_text("6.6.87.2-microsoft-standard-WSL2\n")
    (directory / "etc/systemd/system/systemd-binfmt.service.d").mkdir(parents=True)
    (directory / "etc/wsl.conf").write_text("[boot]\nsystemd=true\n# comment\nprotectBinfmt=maybe\n")
    (directory / "etc/systemd/system/systemd-binfmt.service.d/x.conf").write_text(
        "[Service]\nExecStartPost=/bin/true\n"
    )
    return {"container": "wsl", "WSL_BINFMT_ROOT": str(directory), "PATH": "/usr/bin:/bin"}


def tree(directory: Path) -> dict[str, str]:
    """What is in a directory, by path; links by their targets."""
    return {
        str(path.relative_to(directory)): str(path.readlink()) if path.is_symlink() else path.read_text()
        for path in directory.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def generator_faults(report: Callable[[str, Fault, str], None]) -> int:
    """Have each call of the generator fail; returns how many did.

    report: is told of each, with what was wrong; "" if nothing was.
    """
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        environment = machine(directory / "root")
        program = ["/usr/bin/python3", "-IS", str(GENERATOR)]

        def run(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
            out.mkdir()
            command = ["strace", "-f", "-o", str(directory / "trace"), *options, *program, str(out)]
            return subprocess.run(command, env=environment, capture_output=True, text=True)

        good = run(directory / "good")
        assert good.returncode == 0, good.stderr
        expected = tree(directory / "good")
        # Its first call; what comes before is the interpreter's.
        found = calls((directory / "trace").read_text(), "umask(")
        count = 0
        for count, fault in enumerate(faults(found), 1):
            out = directory / str(count)
            done = run(out, *fault.options)
            made = fault.was_made((directory / "trace").read_text())
            report("generator", fault, judge(done, tree(out), expected, fault) if made else "it was not made")
        return count


def judge(
    done: subprocess.CompletedProcess[str], written: dict[str, str], expected: dict[str, str], fault: Fault
) -> str:
    """Say what is wrong with a run of the generator; "" if nothing is."""
    if "Traceback" in done.stderr:
        return "a traceback"
    whole = {path: text for path, text in written.items() if not path.rpartition("/")[2].startswith(".")}
    if any(expected.get(path) != text for path, text in whole.items()):
        return "a file that is not as it should be"
    if fault.what in SIGNALS:
        return ""
    if whole != written:
        return "a temporary file is left"
    if (
        done.returncode == 0
        and whole != expected
        and fault.call not in ("openat", "read", "newfstatat", "stat", "getdents64")
    ):
        return "exit status 0, and not all is written"
    if done.returncode not in (0, 1):
        return f"exit status {done.returncode}"
    if done.returncode == 1 and not done.stderr:
        return "it failed without a word"
    return ""


# What a distro runs, and for how long if it does not end by itself.
COMMANDS = {
    "restore": ["wsl-binfmt", "restore"],
    "watch": ["timeout", "--signal=TERM", "0.2", "wsl-binfmt", "watch"],
    "leave": ["wsl-binfmt", "leave", "systemd-binfmt.service"],
}
BLOCKED = {"watch": ["SIGTERM"]}
STATE = "/run/wsl-binfmt/state"
PRINT_STATE = f"import marshal; print(marshal.load(open({STATE!r}, 'rb')))"


def make_wrong(vm: bed.Vm, distro: bed.Distro, name: str) -> None:
    """Have something to do for a command, while a spare entry has Windows programs start."""
    bed.wipe(vm.table)
    vm.register(":spare:M::MZ::/init:PF")
    vm.register(":WSLInterop:M::MZ::/init:P")
    if name == "leave":
        distro.systemd_binfmt("/etc/binfmt.d/x.conf")
    # The watch finds that all entries are gone that it knew.
    distro.shell(f"cp /run/state {STATE}")


def what_is_wrong(vm: bed.Vm, distro: bed.Distro, name: str, fault: Fault, said: str) -> str:
    """Say what is wrong after a run of a command with a fault, and after one without; "" if nothing is."""
    if "Traceback" in said:
        return "a traceback"
    if not distro.interop():
        return "no Windows program starts"
    said = distro.run(*COMMANDS[name], check=False)
    if "Traceback" in said:
        return "a traceback of the next one"
    if name == "leave":
        return "the own entry is left" if "x" in vm.names() else ""
    if not right(vm):
        return "the next one does not make it right"
    # A watch that cannot read the state file does not know the table, one that was killed does.
    if name == "watch" and fault.what in SIGNALS and "x" not in vm.names():
        return "the next one does not bring back the own entry"
    return ""


def command_faults(name: str, report: Callable[[str, Fault, str], None], every: int = 1) -> int:
    """Have each call of a command in a distro fail, or each one of so many; as generator_faults()."""
    rule = {"/etc/binfmt.d/x.conf": ":x:M::xx::/bin/true:\n"}
    with bed.Vm() as vm, vm.distro(files=rule) as distro:
        eventually(lambda: quiet(distro) and "'x'" in distro.run("python3", "-c", PRINT_STATE))
        distro.systemctl("stop", "wsl-binfmt-watch.service")
        distro.shell(f"cp {STATE} /run/state")

        def run(*options: str) -> str:
            make_wrong(vm, distro, name)
            strace = ["strace", "-f", "-o", "/run/trace", *options]
            # strace itself ends by the signal that its program ended by.
            return distro.run("sh", "-c", '"$@"; true', "sh", *strace, *COMMANDS[name])

        run()
        found = calls(distro.path("/run/trace").read_text(), bed.TABLE)
        count = 0
        for fault in list(faults(found))[::every]:
            said = run(*fault.options)
            made = fault.was_made(distro.path("/run/trace").read_text(), BLOCKED.get(name, ()))
            wrong = what_is_wrong(vm, distro, name, fault, said)
            # What a run calls depends on what the machine has done by then, and there may be a call less.
            if made or wrong:
                report(name, fault, wrong)
            count += made
        return count


def unavailable() -> str:
    """Say in a line why this cannot be done on this machine; "" if it can."""
    return bed.unavailable() or ("" if shutil.which("strace") else "needs strace")


def table(done: Counter[tuple[str, str]], wrong: Counter[str]) -> str:
    """Make the table. done: how often each fault was made to each program; wrong: how often that went wrong."""
    kinds = sorted(ERRORS) + sorted(SIGNALS)
    lines = [f"| program | {' | '.join(kinds)} | not as it should be |", "|---" * (len(kinds) + 2) + "|"]
    for program in ("generator", *COMMANDS):
        counts = " | ".join(str(done[program, kind]) for kind in kinds)
        lines.append(f"| {program} | {counts} | {wrong[program]} |")
    return "".join(f"{line}\n" for line in lines)


def main() -> int:
    """Make all faults, and print a table of them; returns the exit status."""
    done: Counter[tuple[str, str]] = Counter()
    failed: Counter[str] = Counter()

    def report(program: str, fault: Fault, wrong: str) -> None:
        done[program, fault.what] += 1
        if wrong:
            failed[program] += 1
            print(f"{program}: {fault.option}: {wrong}", file=sys.stderr)

    if not unavailable():
        generator_faults(report)
        for name in COMMANDS:
            command_faults(name, report)
    else:
        print(f"make faults {unavailable()}")
        return 1
    print(table(done, failed), end="")
    return failed.total() > 0


if __name__ == "__main__":
    sys.exit(main())
