# SPDX-License-Identifier: MIT
"""`wsl-binfmt status` names what is wrong, and only that, and its fixes work: each state is made on a real systemd."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import bed
import record
from checks import eventually, foreign_program, quiet, right

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bed import Distro, Vm

    Boot = Callable[..., Distro]
    Make = Callable[[Vm, Distro], object]

pytestmark = pytest.mark.system

SERVICE = "systemd-binfmt.service"
WATCH = "wsl-binfmt-watch.service"
GUARD = "proc-sys-fs-binfmt_misc-status.mount"
ENTRY = f"{bed.TABLE}/WSLInterop"
USERS = {"root": [], "a user": ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]}
WORKS, FAILS, USAGE, ELSEWHERE, UNKNOWN = range(5)
# For the fixes, which root runs here.
SUDO = {"/usr/local/bin/sudo": '#!/bin/sh\nexec "$@"\n'}


class Answer(NamedTuple):
    """What status says."""

    code: int
    said: dict[str, Any]

    @property
    def ids(self) -> list[str]:
        """Ids of the problems."""
        return [problem["id"] for problem in self.said["problems"]]

    @property
    def evidence(self) -> str:
        """All evidence."""
        return "\n".join(line for problem in self.said["problems"] for line in problem["evidence"])


def run(distro: Distro, *args: str, user: str = "root", around: str = '"$@"') -> tuple[int, str]:
    """Run a command; returns its exit status, and what it said.

    around: a shell script that runs "$@"; as root if it begins with "# root".
    """
    outside, inside = ([], USERS[user]) if around.startswith("# root") else (USERS[user], [])
    script = f"{around}; echo exit $?"
    said = distro.run(*outside, "sh", "-c", script, "sh", *inside, *args)
    text, _, code = said.rstrip("\n").rpartition("exit ")
    assert "Traceback" not in text
    return int(code), text


def status(distro: Distro, *args: str, user: str = "root", around: str = '"$@"') -> Answer:
    """Ask for the status; as run()."""
    code, text = run(distro, "wsl-binfmt", "status", "--json", *args, user=user, around=around)
    return Answer(code, json.loads(text[text.index("{\n") :]))


def apply(distro: Distro, fix: str, args: tuple[str, ...], *, user: str, around: str) -> Answer:
    """Run a fix in the shell that has asked, and ask again."""
    command = f"{{ {fix}\n}} >/dev/null || echo FIX FAILED\nwsl-binfmt status --json {shlex.join(args)}"
    code, text = run(distro, "sh", "-c", command, user=user, around=around)
    assert "FIX FAILED" not in text, text
    return Answer(code, json.loads(text[text.index("{\n") :]))


class Case(NamedTuple):
    """A state that is made, and what status says of it."""

    id: str
    code: int = WORKS
    evidence: str = ""
    files: Mapping[str, str] = {}
    options: Mapping[str, Any] = {}
    make: Make = lambda _vm, _distro: None
    around: str = '"$@"'  # as of run()
    args: tuple[str, ...] = ()
    also: tuple[str, ...] = ()  # ids of what is wrong as well
    after: tuple[str, ...] = ()  # ids of the problems that are there after the fix
    has_fix: bool = True  # whether there is a command that mends it here
    generation: str = "none"


def shell(script: str) -> Make:
    """Run a script in the distro."""
    return lambda _vm, distro: distro.shell(script)


STOP = f"systemctl kill --signal=STOP {WATCH}"


def unwatched(script: str) -> Make:
    """Run a script in the distro while the watch hangs, which would undo what the script does."""
    return shell(f"{STOP}; {script}")


def anew(rule: str) -> Make:
    """Register WSLInterop by another rule."""

    def make(vm: Vm, distro: Distro) -> None:
        distro.shell(STOP)
        vm.write("WSLInterop", "-1")
        vm.register(rule)

    return make


def init_not_executable(vm: Vm, distro: Distro) -> None:
    """Have another file in the place of /init, of which the kernel knows only the name."""
    anew(":WSLInterop:M::MZ::/init:P")(vm, distro)
    distro.shell("umount /init; chmod 644 /init")


def back(vm: Vm, _distro: Distro) -> None:
    """Register WSLInterop as WSL does: nothing has protected it at boot."""
    vm.register(bed.WSL_INTEROP)


def register(rule: str, *, watched: bool = False) -> Make:
    """Register one more entry."""

    def make(vm: Vm, distro: Distro) -> None:
        if not watched:
            distro.shell(STOP)
        vm.register(rule)

    return make


def wine_again(vm: Vm, distro: Distro) -> None:
    """Have the rule of /etc/binfmt.d win."""
    unwatched(f"echo -1 >{bed.TABLE}/wine")(vm, distro)
    vm.register(":wine:M::MZ::/bin/true:")


def reload_is_due(vm: Vm, distro: Distro) -> None:
    """Switch it on in /etc/wsl.conf, and do not reload systemd."""
    distro.path(WSL_CONF).unlink()
    back(vm, distro)


def generator_had_failed(vm: Vm, distro: Distro) -> None:
    """Let a generator that is run now do its work."""
    back(vm, distro)
    distro.path("/etc/systemd/system-generators/a").unlink()


def native_rule(_vm: Vm, distro: Distro) -> None:
    """Put a rule into binfmt.d that nothing registers: no program would run on the machine."""
    distro.write("/etc/binfmt.d/native.conf", f"# all\n:native:M::\\x7fELF::{bed.EMULATOR}:\n")


def foreign(script: str = "true") -> Make:
    """Put a program for another processor there, and run a script."""
    return lambda _vm, distro: (foreign_program(distro), distro.shell(script))


WSL_CONF = "/etc/wsl.conf"
DROP_IN = f"/etc/systemd/system/{SERVICE}.d/zz.conf"
UBUNTUS = f"/usr/lib/systemd/system/{SERVICE}.d/wsl.conf"
SKIP = "[Unit]\nConditionVirtualization=!wsl\n"
RULE = {"/etc/binfmt.d/x.conf": ":x:M::xx::/bin/true:\n"}
WINE = "wine\nmagic\n0\nMZ\n\n/bin/true\n\n\n\n\n"
MASKED = {"/etc/systemd/system-generators/wsl-binfmt-generator": "-> /dev/null"}
PENDING = ("settings-pending",)
# As another generator may have left it; it is faster than a Python program.
IN_THE_WAY = f"""#!/bin/sh
>"$1/sysinit.target.wants"; >"$1/{SERVICE}.d"; >"$1/binfmt-support.service.d"
"""
STUCK = f"""
import ctypes, os, sys
r, w = os.pipe()
options = f"fd={{w}},pgrp={{os.getpgrp()}},minproto=5,maxproto=5,direct".encode()
assert ctypes.CDLL(None).mount(b"stuck", b"{bed.TABLE}", b"autofs", 0, options) == 0
print("mounted", flush=True)
os.set_inheritable(r, True)
os.execvp("sleep", ["sleep", "60"])
"""
PREPARE_STUCK = f"""
cat >/run/stuck.py <<'END'
{STUCK}
END
setsid python3 /run/stuck.py >/run/stuck.out 2>&1 &
until grep -q mounted /run/stuck.out; do sleep 0.01; done
"""
HIDDEN = """# root
unshare --mount sh -c 'mount -t proc proc /proc && exec "$@"' sh "$@" """
NO_SYSTEMD = """# root
echo init >/run/comm
unshare --mount sh -c 'mount --bind /run/comm /proc/1/comm; mount -t tmpfs tmpfs /run/systemd; exec "$@"' sh "$@" """
CHROOT = """# root
unshare --mount sh -c 'mount --bind / /mnt; mount --rbind /proc /mnt/proc; exec chroot /mnt "$@"' sh "$@" """
# A kernel that has binfmt_misc as a module, if at all, which is not loaded.
WITHOUT_BINFMT_MISC = f"""
umount -l {bed.TABLE}/status; umount -l {bed.TABLE}
grep -v binfmt_misc /proc/filesystems >/run/filesystems; mount --bind /run/filesystems /proc/filesystems
"""
MODULE = """
mkdir -p /lib/modules/$(uname -r); echo kernel/fs/binfmt_misc.ko.xz: >/lib/modules/$(uname -r)/modules.dep
printf '#!/bin/sh\\nexec umount /proc/filesystems' >/usr/local/bin/modprobe; chmod 755 /usr/local/bin/modprobe
"""
# Of binfmt-support's, imported as by a package, and then disabled.
FOREIGN = "package emulator\ninterpreter /usr/bin/emulator\noffset 18\nmagic \\xb7\\x00\n"
# Does what the text says that a person is to do in the editor, called as EDITOR +LINE FILE.
EDITOR = 'EDITOR=/usr/local/bin/editor; export EDITOR; "$@"'
WSL_KERNEL = {"kernel": "6.6.87.2-microsoft-standard-WSL2"}
DEFAULT_USER = {"/etc/passwd": "root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/:/bin/sh\nyou:x:65534:65534::/:/bin/sh\n"}
CASES = [
    Case("not-wsl", ELSEWHERE, options={"environment": {}}, has_fix=False),
    Case("wsl1", ELSEWHERE, options={"environment": {}, "kernel": "4.4.0-19041-Microsoft"}, has_fix=False),
    Case("container", ELSEWHERE, "docker", options={"environment": {"container": "docker"}}, has_fix=False),
    Case(
        "no-systemd",
        evidence="has no systemd=true",
        options=WSL_KERNEL,
        around=NO_SYSTEMD,
        after=("no-systemd", *PENDING),
    ),
    Case(
        "no-systemd",
        evidence="systemd=false",
        files={WSL_CONF: "[boot]\nsystemd=false\n"},
        options=WSL_KERNEL,
        around=NO_SYSTEMD,
        after=("no-systemd", *PENDING),
    ),
    Case("no-systemd", evidence="PID 1 is systemd", options=WSL_KERNEL, around=CHROOT, has_fix=False),
    Case(
        "container",
        ELSEWHERE,
        "WSL has given this session its variables",
        {"/.dockerenv": ""},
        {"environment": {}, **WSL_KERNEL},
        back,
        around='WSL_DISTRO_NAME=Debian "$@"',
        after=("reload-needed",),
    ),
    Case("kernel-without-binfmt-misc", FAILS, "no module", make=shell(WITHOUT_BINFMT_MISC), has_fix=False),
    Case(
        "kernel-without-binfmt-misc",
        FAILS,
        make=shell(WITHOUT_BINFMT_MISC + MODULE),
        after=("guard-inactive",),
    ),
    Case("other-user-namespace", UNKNOWN, around='unshare --user --map-root-user "$@"', has_fix=False),
    Case(
        "table-not-mounted",
        UNKNOWN,
        make=shell(f"umount -l {bed.TABLE}/status; umount -l {bed.TABLE}"),
        after=("guard-inactive",),
    ),
    Case("table-hidden", UNKNOWN, around=HIDDEN),
    Case("autofs-stuck", UNKNOWN, make=shell(PREPARE_STUCK)),
    Case("not-registered", FAILS, make=unwatched(f"echo -1 >{ENTRY}")),
    Case(
        "not-registered",
        ELSEWHERE,
        files={WSL_CONF: "[interop]\nenabled=false\n"},
        make=lambda vm, _: vm.write("WSLInterop", "-1"),
        also=("interop-off",),
        has_fix=False,
    ),
    Case("disabled-by-hand", FAILS, ENTRY, make=shell(f"echo 0 >{ENTRY}")),
    Case(
        "disabled-by-hand",
        FAILS,
        "option ro",
        make=lambda vm, _: vm.write("WSLInterop", "0"),
        also=("table-read-only",),
        has_fix=False,
        generation="read-only",
    ),
    Case("foreign-interpreter", FAILS, "/bin/true", make=anew(":WSLInterop:M::MZ::/bin/true:")),
    Case("wrong-flags", FAILS, make=anew(":WSLInterop:M::MZ::/init:F")),
    Case("missing-fix-binary", make=anew(":WSLInterop:M::MZ::/init:P")),
    Case("missing-fix-binary", FAILS, "may not execute it", make=init_not_executable, has_fix=False),
    Case("shadowed", FAILS, "/bin/true", make=register(":wine:M::MZ::/bin/true:")),
    Case(
        "shadowed",
        FAILS,
        "/etc/binfmt.d/w.conf:2",
        {"/etc/binfmt.d/w.conf": "# wine\n:wine:M::MZ::/bin/true:\n"},
        make=wine_again,
        after=("rule-without-effect",),
    ),
    Case(
        "rule-without-effect",
        evidence="/etc/binfmt.d/w.conf:2",
        files={"/etc/binfmt.d/w.conf": "# wine\n:wine:M::MZ::/bin/true:\n"},
        has_fix=False,
    ),
    Case(
        "shadowed", FAILS, "of the package wine", {"/var/lib/binfmts/mz": WINE}, make=register(":mz:M::MZ::/bin/true:")
    ),
    Case("shadowed", FAILS, "a detector for each", make=register(":cli:M::MZ::/usr/lib/binfmt-support/run-detectors:")),
    Case("shadowed", FAILS, "/bin/true", make=register(":dotnet:E::exe::/bin/true:")),
    Case("temporary-entry-left", make=register(":WSLInterop-temporary:M::MZ::/init:FP")),
    Case("second-name", make=register(":winexe:M::MZ::/init:FP", watched=True)),
    Case("interop-off", ELSEWHERE, f"{WSL_CONF}:2", {WSL_CONF: "[interop]\nenabled=false\n"}, after=PENDING),
    Case(
        "protection-off",
        evidence=f"{WSL_CONF}:3",
        files={WSL_CONF: "# off\n[boot]\nprotectBinfmt = false\n"},
        make=back,
        after=PENDING,
    ),
    Case(
        "settings-pending",
        evidence="will not start",
        make=shell(f"printf '[interop]\\nenabled=false\\n' >{WSL_CONF}; touch -d '+5 seconds' {WSL_CONF}"),
        has_fix=False,
    ),
    Case(
        "config-error",
        evidence=f"{WSL_CONF}:5: user.default is ignored",
        files={WSL_CONF: "[boot]\nsystemd=true\nnonsense\n[user]\ndefault=me\n"},
        after=PENDING,
    ),
    Case(
        "config-error",
        evidence=f"{WSL_CONF}:1: begins with a byte order mark",
        files={
            WSL_CONF: "\ufeff[boot]\nsystemd=true\n",
            "/usr/local/bin/editor": "#!/bin/sh\nsed -i '1s/^\\xef\\xbb\\xbf//' \"$1\"\n",
        },
        around=EDITOR,
        after=PENDING,
    ),
    Case(
        "config-unused",
        evidence="boot.protectbinfmt may be meant",
        files={WSL_CONF: "[boot]\nprotectBinfmts=true\n"},
        after=PENDING,
    ),
    Case("config-unused", evidence=".wslconfig", files={WSL_CONF: "[wsl2]\nmemory=4GB\n"}, after=PENDING),
    Case(
        "config-unused",
        evidence="neither true nor false",
        files={WSL_CONF: "[boot]\nsystemd=yes\n"},
        after=PENDING,
    ),
    Case(
        "config-unused",
        evidence="neither true nor false but 'tru'",
        files={
            WSL_CONF: "[boot]\nsystemd=tru\n",
            "/usr/local/bin/editor": '#!/bin/sh\nsed -i "${1#+}s/tru/true/" "$2"\n',
        },
        around=EDITOR,
        after=PENDING,
    ),
    Case(
        "config-unused",
        evidence="interop.enabled may be meant",
        files={
            WSL_CONF: "[interopt]\nenabled=true\n",
            "/usr/local/bin/editor": '#!/bin/sh\n[ "$1" = +2 ] && sed -i s/interopt/interop/ "$2"\n',
        },
        around=EDITOR,
        after=PENDING,
    ),
    Case("reload-needed", files={WSL_CONF: "[boot]\nprotectBinfmt=false\n"}, make=reload_is_due),
    Case("generator-masked", files=MASKED, make=back),
    Case(
        "generator-missing-output",
        files={"/etc/systemd/system-generators/a": IN_THE_WAY, WSL_CONF: "#\n"},
        make=generator_had_failed,
    ),
    Case(
        "generator-missing-output",
        evidence="has not the right to be executed",
        files={WSL_CONF: "#\n"},
        make=shell(f"chmod -x {bed.GENERATOR}; systemctl daemon-reload"),
    ),
    Case("unit-masked", evidence=WATCH, make=shell(f"systemctl mask --now {WATCH}")),
    Case("unit-masked", evidence=GUARD, make=shell(f"systemctl mask --now {GUARD}")),
    Case("unit-masked", evidence=SERVICE, make=shell(f"systemctl mask --now {SERVICE}")),
    Case("unit-skipped", evidence=DROP_IN, files={**RULE, DROP_IN: SKIP}),
    Case("unit-skipped", evidence=UBUNTUS, files={**RULE, UBUNTUS: SKIP}),
    Case("unit-failed", evidence="/etc/binfmt.d/bad.conf:2", files={"/etc/binfmt.d/bad.conf": "#\n:bad:M::\n"}),
    Case("unit-failed", evidence="/usr/lib/binfmt.d/bad.conf:2", files={"/usr/lib/binfmt.d/bad.conf": "#\n:bad:M::\n"}),
    Case(
        "unit-failed",
        evidence="read-only, by WSL's guard",
        files={**RULE, **MASKED},
        also=("generator-masked",),
        generation="3.0",
    ),
    Case(
        "unit-failed",
        evidence="systemctl status",
        files=RULE,
        make=shell(f"for i in 1 2 3 4 5 6 7 8; do systemctl restart {SERVICE} || true; done 2>/dev/null"),
    ),
    Case("override-in-the-way", evidence=DROP_IN, files={**RULE, DROP_IN: "[Service]\nBindPaths=\n"}),
    Case(
        "override-in-the-way", evidence="50-wsl", files={f"/etc/systemd/system/{SERVICE}.d/50-wsl-binfmt.conf": "#\n"}
    ),
    Case("guard-inactive", make=shell(f"systemctl stop {GUARD}")),
    Case("watch-inactive", make=shell(f"systemctl stop {WATCH}")),
    Case(
        "watch-inactive",
        evidence="not of this package",
        files={f"/etc/systemd/system/{WATCH}": "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=true\n"},
    ),
    Case(
        "rule-redefines-wslinterop",
        evidence="/etc/binfmt.d/w.conf:1",
        files={"/etc/binfmt.d/w.conf": ":WSLInterop:M::MZ::/init:FP\n"},
    ),
    Case("rule-matches-native", evidence="/etc/binfmt.d/native.conf:2", make=native_rule),
    Case(
        "drop-in-set-aside",
        evidence=DROP_IN,
        files={DROP_IN: f"[Service]\nExecStartPost=/bin/sh -c 'echo {bed.WSL_INTEROP} >{bed.TABLE}/register'\n"},
        has_fix=False,
    ),
    # What depends on the file.
    Case(
        "exe-not-executable",
        FAILS,
        "-rw-",
        args=("/tmp/x.exe",),
        make=shell("printf MZ >/tmp/x.exe; chown 65534 /tmp/x.exe"),
    ),
    Case(
        "exe-not-executable",
        FAILS,
        "noexec",
        args=("/mnt/x.exe",),
        make=shell("mount -t tmpfs -o noexec tmpfs /mnt; printf MZ >/mnt/x.exe; chmod 755 /mnt/x.exe"),
    ),
    Case(
        "exe-not-for-default-user",
        FAILS,
        "may not enter /srv/closed",
        files=DEFAULT_USER,
        args=("/srv/closed/x.exe",),
        make=shell("mkdir -p /srv/closed; cd /srv/closed; printf MZ >x.exe; chmod 700 . x.exe; chown 65534 . x.exe"),
        has_fix=False,
    ),
    Case(
        "not-in-path",
        FAILS,
        "/mnt/c/Windows/explorer.exe",
        args=("explorer.exe",),
        make=shell("mkdir -p /mnt/c/Windows; printf MZ >/mnt/c/Windows/explorer.exe; chmod 755 /mnt/c/Windows/*"),
    ),
    Case(
        "rule-not-registered",
        FAILS,
        "was skipped, by",
        files={UBUNTUS: SKIP},
        make=foreign(),
        args=("/tmp/foreign",),
        also=("unit-skipped",),
    ),
    Case(
        "rule-not-registered",
        FAILS,
        "/var/lib/binfmts/emulator",
        {"/usr/share/binfmts/emulator": FOREIGN, **bed.BINFMT_SUPPORT},
        {"emulators": 0},
        foreign("update-binfmts --import emulator; update-binfmts --disable emulator"),
        args=("/tmp/foreign",),
    ),
    Case(
        "rule-not-registered",
        FAILS,
        "systemd does not run here",
        options=WSL_KERNEL,
        make=foreign(f"echo -1 >{bed.TABLE}/qemu-aarch64"),
        around=NO_SYSTEMD,
        args=("/tmp/foreign",),
        also=("no-systemd",),
        after=("no-systemd",),
    ),
    Case(
        "rule-not-registered",
        FAILS,
        "its interpreter is /nowhere: it is not there",
        {"/etc/binfmt.d/x.conf": ":x:M::xxxx::/nowhere:F\n"},
        make=shell("echo xxxx >/tmp/x; chmod 755 /tmp/x"),
        args=("/tmp/x",),
        also=("unit-failed",),
        has_fix=False,
    ),
    Case(
        "rule-not-registered",
        FAILS,
        "/etc/binfmt.d/qemu-aarch64.conf hides that file",
        {"/etc/binfmt.d/qemu-aarch64.conf": "-> /dev/null"},
        make=foreign(),
        args=("/tmp/foreign",),
    ),
    Case(
        "rule-not-registered",
        FAILS,
        f"{SERVICE} is active",
        make=foreign(f"echo -1 >{bed.TABLE}/qemu-aarch64"),
        args=("/tmp/foreign",),
    ),
    Case(
        "rule-not-registered",
        FAILS,
        f"{SERVICE} is masked",
        make=foreign(f"systemctl mask --now {SERVICE}; while [ -e {bed.TABLE}/qemu-aarch64 ]; do sleep 0.1; done"),
        args=("/tmp/foreign",),
        also=("unit-masked",),
    ),
    Case("entry-disabled", FAILS, make=foreign(f"echo 0 >{bed.TABLE}/qemu-aarch64"), args=("/tmp/foreign",)),
    Case(
        "nothing-runs-it",
        FAILS,
        "aarch64",
        options={"emulators": 0},
        make=foreign(),
        args=("/tmp/foreign",),
        has_fix=False,
    ),
    Case(
        "interpreter-missing",
        FAILS,
        "/nowhere",
        args=("/tmp/x",),
        make=shell("echo '#!/nowhere' >/tmp/x; chmod 755 /tmp/x"),
        has_fix=False,
    ),
    Case(
        "interpreter-missing",
        FAILS,
        "as on Windows",
        args=("/tmp/d/x",),
        make=shell("mkdir -m 777 /tmp/d; cd /tmp/d; printf '#!/bin/sh\\r\\n' >x; chmod 777 x; chown 65534 x"),
    ),
    # What depends on the session.
    Case(
        "interop-socket-dead",
        FAILS,
        "WSL_INTEROP=/run/WSL/9_interop",
        around='WSL_INTEROP=/run/WSL/9_interop "$@"',
        has_fix=False,
    ),
    Case("cwd-untranslatable", FAILS, around='mkdir -p /tmp/gone; cd /tmp/gone; rmdir /tmp/gone; "$@"'),
    Case(
        "cwd-not-for-default-user",
        FAILS,
        "may not enter /srv/closed",
        files=DEFAULT_USER,
        make=shell("mkdir -p /srv/closed/below; chmod 700 /srv/closed; chown 65534 /srv/closed /srv/closed/below"),
        around='cd /srv/closed/below; "$@"',
    ),
    # As after su(1): neither this user nor the default user may look there.
    Case(
        "cwd-not-for-default-user",
        FAILS,
        "may not enter /srv/roots",
        files=DEFAULT_USER,
        make=shell("mkdir -p /srv/roots/below; chmod 700 /srv/roots"),
        around='# root\ncd /srv/roots/below; "$@"',
    ),
]


def case_name(case: Case) -> str:
    return case.id + (f" {case.evidence}" if [each.id for each in CASES].count(case.id) > 1 else "")


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_it_names_what_is_wrong(case: Case) -> None:
    """To a user and to root. The fix mends it, if the user may run the fix."""
    with bed.Vm(case.generation) as vm, vm.distro(files={**SUDO, **case.files}, **case.options) as distro:
        distro.shell("chmod +x /usr/local/bin/sudo")
        case.make(vm, distro)
        for user in USERS:
            answer = status(distro, *case.args, user=user, around=case.around)
            assert set(answer.ids) == {case.id, *case.also}, user
            assert answer.code == case.code, user
            expected = {WORKS: True, FAILS: False, UNKNOWN: None, ELSEWHERE: answer.said["works"]}
            assert answer.said["works"] is expected[case.code]
            assert case.evidence in answer.evidence
            assert "\033" not in run(distro, "wsl-binfmt", "status", *case.args, user=user, around=case.around)[1]
        (problem,) = (each for each in answer.said["problems"] if each["id"] == case.id)
        fix = problem["fix"] or ""
        assert bool(fix) is case.has_fix, problem
        # What needs no root, root need not do: it is the user's shell, or the user's file.
        user = "root" if "sudo " in fix else "a user"
        if fix:
            after = apply(distro, fix, case.args, user=user, around=case.around)
            assert set(after.ids) == set(case.after), after.said["problems"]


@pytest.mark.parametrize("user", USERS)
def test_a_healthy_distro(any_vm: Vm, boot: Boot, user: str) -> None:
    """Whatever WSL has of its own there."""
    distro = boot(any_vm, files=RULE)
    eventually(lambda: right(any_vm) and quiet(distro))
    answer = status(distro, "--fail-on=warning", user=user)
    assert (answer.ids, answer.code, answer.said["works"]) == ([], WORKS, True)
    assert answer.said["handler"]["interpreter"] == "/init"
    assert answer.said["protection"]["watch"]["active"]
    assert answer.said["protection"]["guard"] == ("wsl" if any_vm.generation == "3.0" else "ours")
    assert answer.said["protection"]["drop_ins"] == {SERVICE: True, "binfmt-support.service": True}
    # What was not looked at is never said to be right.
    assert bool(answer.said["not_checked"]) == (user != "root")


@pytest.mark.parametrize("files", [bed.OWN_UNIT, bed.DANGLING_UNIT, bed.APE], ids=["own unit", "dangling unit", "APE"])
def test_what_people_have(vm: Vm, boot: Boot, files: Mapping[str, str]) -> None:
    """It is no problem."""
    distro = boot(vm, files={**RULE, **files})
    eventually(lambda: right(vm) and quiet(distro))
    answer = status(distro, "--fail-on=warning")
    assert (answer.ids, answer.code) == ([], WORKS)
    if files is bed.APE:
        distro.shell("chmod +x /usr/bin/ape")
        program = distro.windows_program("/tmp/x.llamafile", bed.APE_MAGIC)
        answer = status(distro, program)
        assert answer.said["handler"]
        assert (answer.code, answer.said["handler"]["entry"]) == (WORKS, "APE")


@pytest.mark.parametrize("user", USERS)
def test_a_read_only_table(read_only_vm: Vm, boot: Boot, user: str) -> None:
    distro = boot(read_only_vm, files=RULE)
    answer = status(distro, "--fail-on=warning", user=user)
    assert (answer.ids, answer.code) == (["table-read-only"], WORKS)


def test_a_table_that_is_switched_off(vm: Vm, boot: Boot) -> None:
    """Root looks behind the guard. For another user, the answer says that this was not checked."""
    distro = boot(vm)
    vm.write("status", "0")
    try:
        answer = status(distro)
        assert (answer.ids, answer.code) == (["table-disabled"], FAILS)
        answer = status(distro, user="a user")
        assert answer.ids == []
        assert any("switched off" in each for each in answer.said["not_checked"])
        assert "would be switched on" in distro.run("wsl-binfmt", "restore", "--dry-run")
        assert status(distro).ids == ["table-disabled"]
        assert "switched on" in distro.run("wsl-binfmt", "restore")
        assert status(distro).ids == []
    finally:
        vm.write("status", "1")


def test_second_name_of_wsl_itself() -> None:
    """WSL up to 2.6.1 has WSLInterop-late, which counts only when WSLInterop is disabled."""
    with bed.Vm("2.0.9") as vm, vm.distro() as distro:
        eventually(lambda: quiet(distro))
        assert vm.entry("WSLInterop-late")
        assert status(distro).ids == []
        distro.shell(f"echo 0 >{ENTRY}")
        answer = status(distro)
        assert set(answer.ids) == {"disabled-by-hand", "second-name"}
        assert answer.said["works"]


def test_a_launch(vm: Vm, boot: Boot) -> None:
    distro = boot(vm)
    program = distro.windows_program()
    for user in USERS:
        answer = status(distro, "--launch", program, user=user)
        assert (answer.code, answer.said["launch"]["started"]) == (WORKS, True)
    assert "exit status 0" in distro.run("wsl-binfmt", "status", "--launch", program)
    answer = status(distro, "--launch")
    assert (answer.code, answer.said["launch"]["layer"]) == (UNKNOWN, "file")
    distro.shell(f"mkdir -p /mnt/c/Windows/System32; cp {program} /mnt/c/Windows/System32/cmd.exe")
    answer = status(distro, "--launch")
    assert (answer.code, answer.said["launch"]["started"]) == (WORKS, True)
    vm.write("status", "0")
    try:
        answer = status(distro, "--launch", program, user="a user")
        assert (answer.code, answer.said["launch"]["layer"]) == (FAILS, "table")
    finally:
        vm.write("status", "1")
    unwatched(f"echo -1 >{ENTRY}; echo :x:M::MZ::/nowhere: >{bed.TABLE}/register")(vm, distro)
    answer = status(distro, "--launch", program)
    assert (answer.code, answer.said["launch"]["layer"]) == (FAILS, "interpreter")


def test_how_init_answers(vm: Vm, boot: Boot) -> None:
    """A start is a start, whatever is said beside it; anything else is none, and explained."""
    distro = boot(vm)
    cmd = "/mnt/c/Windows/System32/cmd.exe"
    distro.shell("mkdir -p /mnt/c/Windows/System32")
    distro.windows_program(cmd)
    for how, (code, _, said) in bed.INIT_ANSWERS.items():
        distro.init_answers(how, seconds=0)
        for args in (), (cmd,):
            answer = status(distro, "--launch", *args)
            launched = answer.said["launch"]
            if code == 0:
                assert (answer.code, launched["started"]) == (WORKS, True), how
            elif how == "silence" and args:
                # So does a program that ends with 1; there is no socket here to tell.
                assert (answer.code, launched["started"]) == (UNKNOWN, None)
            else:
                assert (answer.code, launched["started"], launched["layer"]) == (FAILS, False, "windows"), how
                assert launched["meaning"]
                assert said.partition("ERROR: ")[2].strip() in launched["detail"]
                assert answer.ids == ["launch-failed"]


def test_a_launch_waits_longer_than_init(vm: Vm, boot: Boot) -> None:
    """Ten seconds, and it is explained."""
    distro = boot(vm)
    program = distro.windows_program()
    distro.init_answers("timeout")
    answer = status(distro, "--launch", program)
    assert (answer.code, answer.said["launch"]["started"]) == (FAILS, False)
    assert "did not call back" in answer.said["launch"]["meaning"]


def test_sockets(vm: Vm, boot: Boot) -> None:
    """As /init takes them. The fix mends it, for a user as well."""
    distro = boot(vm)
    program = distro.windows_program()

    def launched(around: str) -> bool:
        return "/init" in run(distro, program, user="a user", around=around)[1]

    with distro.interop_socket("7_interop") as other:
        for named in "", "/run/WSL/9_interop":
            around = f'export WSL_INTEROP={named}; "$@"'
            answer = status(distro, user="a user", around=around)
            assert (answer.code, answer.ids) == (FAILS, ["no-interop-socket"])
            assert not launched(around)
            (problem,) = answer.said["problems"]
            assert problem["fix"] == f"export WSL_INTEROP={other}"
            fixed = f'{problem["fix"]}; "$@"'
            assert launched(fixed)
            assert status(distro, user="a user", around=fixed).ids == []
        with distro.interop_socket():
            around = 'export WSL_INTEROP=/run/WSL/9_interop; "$@"'
            assert launched(around)
            answer = status(distro, user="a user", around=around)
            assert (answer.code, answer.ids) == (WORKS, ["interop-socket-dead"])
        sandbox = "systemd-run --quiet --wait --pipe --property=RestrictAddressFamilies=AF_INET "
        answer = status(distro, around=f'{sandbox} --setenv=WSL_INTEROP={other} "$@"')
        assert (answer.code, answer.ids, len(answer.said["not_checked"])) == (FAILS, ["sandboxed"], 2)
        distro.shell(f"chmod 700 {other}")
        around = f'export WSL_INTEROP={other}; "$@"'
        assert status(distro, around=around).ids == []
        answer = status(distro, user="a user", around=around)
        assert (answer.code, answer.ids) == (FAILS, ["interop-socket-dead"])
        assert "permission denied" in answer.evidence
        assert not launched(around)
        distro.shell(f"chmod 777 {other}")
        distro.write("/run/WSL/8_interop", "")
        around = 'export WSL_INTEROP=/run/WSL/8_interop; "$@"'
        answer = status(distro, around=around)
        assert (answer.code, answer.ids) == (FAILS, ["interop-socket-dead"])
        assert launched(f'{answer.said["problems"][0]["fix"]}; "$@"')


def test_a_foreign_program(vm: Vm, boot: Boot) -> None:
    """Which entry handles it is said, to any user."""
    distro = boot(vm)
    program = foreign_program(distro)
    for user in USERS:
        answer = status(distro, program, user=user)
        assert (answer.code, answer.ids) == (WORKS, [])
        assert answer.said["handler"]["entry"] == "qemu-aarch64"
        assert answer.said["program"]["kind"] == "elf"
    assert "starts here" in distro.run("wsl-binfmt", program)


def test_a_report(vm: Vm, boot: Boot) -> None:
    """It gives the answer of the machine that it is of, elsewhere, and has no name of a user or host."""
    files = {
        "/etc/passwd": "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n",
        "/etc/hostname": "wonderland\n",
        "/home/alice/x.exe": "MZ",
    }
    distro = boot(vm, files=files)
    distro.shell("hostname wonderland")
    unwatched(f"echo -1 >{ENTRY}")(vm, distro)
    around = 'cd /home/alice; USER=alice HOME=/home/alice "$@"'
    run(distro, "wsl-binfmt", "report", "--program", "./x.exe", "/tmp/report.json", around=around)
    text = distro.path("/tmp/report.json").read_text()
    assert "alice" not in text
    assert "wonderland" not in text
    other = boot(vm)
    other.write("/tmp/report.json", text)
    answer = status(other, "--from", "/tmp/report.json")
    assert (answer.code, answer.ids) == (FAILS, ["exe-not-executable", "not-registered"])


@pytest.mark.parametrize("name", record.RECORDED)
def test_recorded_machines_are_as_they_are_today(name: str) -> None:
    """If not, `python -B tests/system/record.py` records them anew."""
    recorded = json.loads((record.MACHINES / name / "machine.json").read_text())
    assert record.record(name) == recorded


def test_names_that_would_paint_the_terminal(vm: Vm, boot: Boot) -> None:
    """Who is root in another distro chooses them."""
    distro = boot(vm)
    register(":wine\033[31m:M::MZ::/tmp/\033]0;x\a:")(vm, distro)
    code, text = run(distro, "wsl-binfmt", "status", "-v")
    assert code == FAILS
    assert "wine\\x1b[31m" in text
    assert not {"\033", "\a"} & set(text)
    assert "\033" in status(distro).said["handler"]["entry"]


def test_last_repairs(vm: Vm, boot: Boot) -> None:
    distro = boot(vm)
    eventually(lambda: quiet(distro))
    distro.shell(f"echo -1 >{ENTRY}")
    eventually(lambda: right(vm))
    distro.run("journalctl", "--sync")
    answer = status(distro)
    assert answer.said["protection"]["watch"]["repairs"] == ["WSLInterop is missing: restored"]
    assert answer.ids == []


def test_a_hung_systemctl(vm: Vm, boot: Boot) -> None:
    """It is waited for with a bound, and said not to have answered."""
    distro = boot(vm)
    distro.shell(
        "mkdir /run/hung; printf '#!/bin/sh\\nexec sleep 100' >/run/hung/systemctl; chmod +x /run/hung/systemctl"
    )
    answer = status(distro, around='PATH=/run/hung:$PATH "$@"')
    assert answer.code == WORKS
    assert any("systemctl" in each for each in answer.said["not_checked"])


@pytest.mark.parametrize(
    "args", [["x"], ["status", "--no"], ["status", "/nowhere"], ["restore", "x"], ["/nowhere"], ["explain", "x"]]
)
def test_wrong_arguments(vm: Vm, boot: Boot, args: list[str]) -> None:
    distro = boot(vm)
    code, text = run(distro, "wsl-binfmt", *args)
    assert code == USAGE
    assert text.splitlines()[-1].startswith("wsl-binfmt")


def test_what_a_user_may_not_read(vm: Vm, boot: Boot) -> None:
    """Is not taken for what it is by default."""
    distro = boot(vm, files={WSL_CONF: "[user]\ndefault=me\n"})
    program = distro.windows_program()
    distro.shell(f"chmod 600 {WSL_CONF}; chmod 711 {program}")
    answer = status(distro, user="a user")
    assert answer.ids == []
    assert answer.said["protection"]["protect_binfmt"] is None
    assert any(WSL_CONF in each for each in answer.said["not_checked"])
    answer = status(distro, program, user="a user")
    assert (answer.code, answer.said["works"]) == (UNKNOWN, None)
    distro.shell(f"chmod 600 {program}")
    answer = status(distro, program, user="a user")
    assert (answer.code, answer.ids) == (FAILS, ["exe-not-executable"])
    distro.shell(f"mkdir -m 700 /tmp/closed; mv {program} /tmp/closed")
    answer = status(distro, "/tmp/closed/program.exe", user="a user")
    assert (answer.code, answer.ids) == (FAILS, ["exe-not-executable"])
    assert "/tmp/closed" in answer.evidence


def test_restore_where_systemd_does_not_run(vm: Vm, boot: Boot) -> None:
    """As status says there."""
    distro = boot(vm, **WSL_KERNEL)
    unwatched(f"echo -1 >{ENTRY}")(vm, distro)
    answer = status(distro, around=NO_SYSTEMD)
    assert answer.ids == ["not-registered", "no-systemd"]
    restored = run(distro, "wsl-binfmt", "restore", around=NO_SYSTEMD)
    assert restored == (0, "WSLInterop is missing: restored\n")
    assert status(distro, around=NO_SYSTEMD).ids == ["no-systemd"]
