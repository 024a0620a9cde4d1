# SPDX-License-Identifier: MIT
"""`wsl-binfmt status` names what is wrong, and only that: each state is really made, on a real systemd."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import bed
from checks import eventually, quiet, right

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bed import Distro, Vm

    Boot = Callable[..., Distro]
    Make = Callable[[Vm, Distro], object]

pytestmark = pytest.mark.system

SERVICE = "systemd-binfmt.service"
ENTRY = f"{bed.TABLE}/WSLInterop"
USERS = {"root": [], "a user": ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]}
WORKS, FAILS, USAGE, ELSEWHERE, UNKNOWN = range(5)


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
    """Run the command; returns its exit status, and what it said.

    around: a shell script that runs "$@"; as root if it begins with "# root".
    """
    outside, inside = ([], USERS[user]) if around.startswith("# root") else (USERS[user], [])
    script = f"{around}; echo exit $?"
    said = distro.run(*outside, "sh", "-c", script, "sh", *inside, "wsl-binfmt", *args)
    text, _, code = said.rstrip("\n").rpartition("exit ")
    assert "Traceback" not in text
    return int(code), text


def ask(distro: Distro, *args: str, user: str = "root", around: str = '"$@"') -> Answer:
    """Ask for the status; as run()."""
    code, text = run(distro, "status", "--json", *args, user=user, around=around)
    return Answer(code, json.loads(text[text.index("{") :]))


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


def shell(script: str) -> Make:
    """Run a script in the distro."""
    return lambda _vm, distro: distro.shell(script)


def unwatched(script: str) -> Make:
    """Run a script in the distro while the watch hangs, which would undo what the script does."""
    return shell(f"systemctl kill --signal=STOP wsl-binfmt.service; {script}")


def anew(rule: str) -> Make:
    """Register WSLInterop by another rule."""

    def make(vm: Vm, distro: Distro) -> None:
        distro.systemctl("kill", "--signal=STOP", "wsl-binfmt.service")
        vm.write("WSLInterop", "-1")
        vm.register(rule)

    return make


def back(vm: Vm, _distro: Distro) -> None:
    """Register WSLInterop as WSL does: nothing has protected it at boot."""
    vm.register(bed.WSL_INTEROP)


def reload_is_due(vm: Vm, distro: Distro) -> None:
    """Switch it on in /etc/wsl.conf, and have nobody reload."""
    distro.path(WSL_CONF).unlink()
    back(vm, distro)


def wine_again(vm: Vm, distro: Distro) -> None:
    """Have the rule of /etc/binfmt.d win."""
    unwatched(f"echo -1 >{bed.TABLE}/wine")(vm, distro)
    vm.register(":wine:M::MZ::/bin/true:")


def register(rule: str, *, watched: bool = False) -> Make:
    """Register one more entry."""

    def make(vm: Vm, distro: Distro) -> None:
        if not watched:
            distro.systemctl("kill", "--signal=STOP", "wsl-binfmt.service")
        vm.register(rule)

    return make


WSL_CONF = "/etc/wsl.conf"
DROP_IN = f"/etc/systemd/system/{SERVICE}.d/zz.conf"
RULE = {"/etc/binfmt.d/x.conf": ":x:M::xx::/bin/true:\n"}
WINE = "wine\nmagic\n0\nMZ\n\n/bin/true\n\n\n\n\n"
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
cat >/run/stuck.py <<'EOF'
{STUCK}
EOF
setsid python3 /run/stuck.py >/run/stuck.out 2>&1 &
until grep -q mounted /run/stuck.out; do sleep 0.01; done
"""
CASES = [
    Case("not-wsl", ELSEWHERE, options={"environment": {}}),
    Case("wsl1", ELSEWHERE, options={"environment": {}, "kernel": "4.4.0-19041-Microsoft"}),
    Case("container", ELSEWHERE, "docker", options={"environment": {"container": "docker"}}),
    Case(
        "no-systemd",
        options={"kernel": "6.6.87.2-microsoft-standard-WSL2"},
        around="""# root
        unshare --mount sh -c 'mount -t tmpfs tmpfs /run/systemd && exec "$@"' sh "$@" """,
    ),
    Case("other-user-namespace", UNKNOWN, around='unshare --user --map-root-user "$@"'),
    Case("table-not-mounted", UNKNOWN, make=shell(f"umount -l {bed.TABLE}/status; umount -l {bed.TABLE}")),
    Case("not-registered", FAILS, make=unwatched(f"echo -1 >{ENTRY}")),
    Case("disabled-by-hand", FAILS, ENTRY, make=shell(f"echo 0 >{ENTRY}")),
    Case("foreign-interpreter", FAILS, "/bin/true", make=anew(":WSLInterop:M::MZ::/bin/true:")),
    Case("missing-fix-binary", make=anew(":WSLInterop:M::MZ::/init:P")),
    Case("shadowed", FAILS, "/bin/true", make=register(":wine:M::MZ::/bin/true:")),
    Case(
        "shadowed",
        FAILS,
        "/etc/binfmt.d/w.conf:2",
        {"/etc/binfmt.d/w.conf": "# wine\n:wine:M::MZ::/bin/true:\n"},
        make=wine_again,
    ),
    Case(
        "shadowed", FAILS, "of the package wine", {"/var/lib/binfmts/mz": WINE}, make=register(":mz:M::MZ::/bin/true:")
    ),
    Case("shadowed", FAILS, "a detector for each", make=register(":cli:M::MZ::/usr/lib/binfmt-support/run-detectors:")),
    Case("shadowed", FAILS, "/bin/true", make=register(":dotnet:E::exe::/bin/true:")),
    Case("stale-stand-in", make=register(":WSLInterop-held-by-7:M::MZ::/init:FP")),
    Case("second-name", make=register(":WSLInterop-late:M::MZ::/init:FP", watched=True)),
    Case("interop-off", ELSEWHERE, f"{WSL_CONF}:2", {WSL_CONF: "[interop]\nenabled=false\n"}),
    Case(
        "protection-off",
        evidence=f"{WSL_CONF}:3",
        files={WSL_CONF: "# off\n[boot]\nprotectBinfmt = false\n"},
        make=back,
    ),
    Case(
        "config-error",
        evidence=f"{WSL_CONF}:5: user.default is ignored",
        files={WSL_CONF: "[boot]\nsystemd=true\nnonsense\n[user]\ndefault=me\n"},
    ),
    Case(
        "config-unused", evidence="boot.protectbinfmt may be meant", files={WSL_CONF: "[boot]\nprotectBinfmts=false\n"}
    ),
    Case("config-unused", evidence=".wslconfig", files={WSL_CONF: "[wsl2]\nmemory=4GB\n"}),
    Case("config-unused", evidence="neither true nor false", files={WSL_CONF: "[boot]\nsystemd=yes\n"}),
    Case("reload-needed", files={WSL_CONF: "[boot]\nprotectBinfmt=false\n"}, make=reload_is_due),
    Case("generator-masked", files={"/etc/systemd/system-generators/wsl-binfmt-generator": "-> /dev/null"}, make=back),
    Case(
        "generator-missing-output",
        evidence="wsl-binfmt-generator",
        files={"/etc/systemd/system-generators/a": IN_THE_WAY, WSL_CONF: "#\n"},
        make=back,
    ),
    Case("unit-masked", evidence="wsl-binfmt.service", make=shell("systemctl mask --now wsl-binfmt.service")),
    Case(
        "unit-masked", evidence="status.mount", make=shell("systemctl mask --now proc-sys-fs-binfmt_misc-status.mount")
    ),
    Case("unit-masked", evidence=SERVICE, make=shell(f"systemctl mask --now {SERVICE}")),
    Case("unit-skipped", evidence=DROP_IN, files={**RULE, DROP_IN: "[Unit]\nConditionVirtualization=!wsl\n"}),
    Case("unit-failed", evidence="/etc/binfmt.d/bad.conf:2", files={"/etc/binfmt.d/bad.conf": "#\n:bad:M::\n"}),
    Case("override-in-the-way", evidence=DROP_IN, files={**RULE, DROP_IN: "[Service]\nExecStartPost=\n"}),
    Case(
        "override-in-the-way", evidence="50-wsl", files={f"/etc/systemd/system/{SERVICE}.d/50-wsl-binfmt.conf": "#\n"}
    ),
    Case("guard-inactive", make=shell("systemctl stop proc-sys-fs-binfmt_misc-status.mount")),
    Case("watch-inactive", make=shell("systemctl stop wsl-binfmt.service")),
    Case(
        "rule-redefines-wslinterop",
        evidence="/etc/binfmt.d/w.conf:1",
        files={"/etc/binfmt.d/w.conf": ":WSLInterop:M::MZ::/bin/true:\n"},
    ),
    Case("exe-not-executable", FAILS, "-rw-", args=("/tmp/x.exe",), make=shell("printf MZ >/tmp/x.exe")),
    Case(
        "exe-not-executable",
        FAILS,
        "noexec",
        args=("/mnt/x.exe",),
        make=shell("mount -t tmpfs -o noexec tmpfs /mnt; printf MZ >/mnt/x.exe; chmod 755 /mnt/x.exe"),
    ),
    Case("interop-socket-dead", FAILS, "WSL_INTEROP=/run/WSL/9_interop", around='WSL_INTEROP=/run/WSL/9_interop "$@"'),
    Case("cwd-untranslatable", around='mkdir /tmp/gone; cd /tmp/gone; rmdir /tmp/gone; "$@"'),
    Case("autofs-stuck", UNKNOWN, make=shell(PREPARE_STUCK)),
]


def case_name(case: Case) -> str:
    return case.id + (f" {case.evidence}" if [each.id for each in CASES].count(case.id) > 1 else "")


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_it_names_what_is_wrong(case: Case, vm: Vm, boot: Boot) -> None:
    distro = boot(vm, files=case.files, **case.options)
    case.make(vm, distro)
    for user in USERS:
        answer = ask(distro, *case.args, user=user, around=case.around)
        assert answer.ids == [case.id], user
        assert answer.code == case.code, user
        assert (
            answer.said["works"]
            is {WORKS: True, FAILS: False, UNKNOWN: None, ELSEWHERE: answer.said["works"]}[case.code]
        )
        assert case.evidence in answer.evidence
        assert "\033" not in run(distro, *case.args, user=user, around=case.around)[1]
    if case.id in ("not-registered", "foreign-interpreter", "shadowed", "missing-fix-binary", "stale-stand-in"):
        # What it says that settles it does so.
        assert answer.said["problems"][0]["fix"] == "sudo wsl-binfmt restore"
        assert "restored" in run(distro, "restore")[1] or case.id == "stale-stand-in"
        assert ask(distro).ids == []


@pytest.mark.parametrize("user", USERS)
def test_a_healthy_distro(any_vm: Vm, boot: Boot, user: str) -> None:
    """Whatever WSL has of its own there."""
    distro = boot(any_vm, files=RULE)
    eventually(lambda: right(any_vm) and quiet(distro))
    answer = ask(distro, "--fail-on=warning", user=user)
    assert (answer.ids, answer.code, answer.said["works"]) == ([], WORKS, True)
    assert answer.said["handler"]["interpreter"] == "/init"
    assert answer.said["protection"]["watch"]["active"]
    assert answer.said["protection"]["guard"] == ("wsl" if any_vm.generation == "3.0" else "ours")
    assert answer.said["protection"]["drop_ins"] == {SERVICE: True, "binfmt-support.service": True}
    # What was not looked at is never said to be right.
    assert bool(answer.said["not_checked"]) == (user != "root")


@pytest.mark.parametrize("user", USERS)
def test_a_read_only_table(read_only_vm: Vm, boot: Boot, user: str) -> None:
    distro = boot(read_only_vm, files=RULE)
    answer = ask(distro, "--fail-on=warning", user=user)
    assert (answer.ids, answer.code) == (["table-read-only"], WORKS)


def test_a_table_that_is_switched_off(vm: Vm, boot: Boot) -> None:
    """Root looks behind the guard; another user is told that nobody did."""
    distro = boot(vm)
    vm.write("status", "0")
    try:
        answer = ask(distro)
        assert (answer.ids, answer.code) == (["table-disabled"], FAILS)
        answer = ask(distro, user="a user")
        assert answer.ids == []
        assert "switched off" in answer.said["not_checked"][0]
        assert "would be switched on" in run(distro, "restore", "--dry-run")[1]
        assert ask(distro).ids == ["table-disabled"]
        assert "switched on" in run(distro, "restore")[1]
        assert ask(distro).ids == []
    finally:
        vm.write("status", "1")


def test_the_lock_of_wsl_makes_the_service_fail() -> None:
    """Which is harmless, and said to be."""
    with bed.Vm("3.0") as vm, vm.distro(
        files={**RULE, "/etc/systemd/system-generators/wsl-binfmt-generator": "-> /dev/null"}
    ) as distro:
        for user in USERS:
            answer = ask(distro, user=user)
            assert answer.code == WORKS
            assert answer.ids == ["generator-masked", "unit-failed"]
            assert answer.said["problems"][1]["severity"] == "note"


def test_second_name_of_wsl_itself() -> None:
    """WSL up to 2.6.1 has WSLInterop-late, which counts only when somebody disables WSLInterop."""
    with bed.Vm("2.6.1") as vm, vm.distro() as distro:
        eventually(lambda: quiet(distro))
        assert ask(distro).ids == []
        distro.shell(f"echo 0 >{ENTRY}")
        answer = ask(distro)
        assert answer.ids == ["disabled-by-hand", "second-name"]


def test_a_launch(vm: Vm, boot: Boot) -> None:
    distro = boot(vm)
    program = distro.windows_program()
    for user in USERS:
        answer = ask(distro, "--launch", program, user=user)
        assert (answer.code, answer.said["launch"]["started"]) == (WORKS, True)
    assert "exit status 0" in run(distro, "status", "--launch", program)[1]
    answer = ask(distro, "--launch")
    assert (answer.code, answer.said["launch"]["layer"]) == (UNKNOWN, "file")
    distro.shell(f"mkdir -p /mnt/c/Windows/System32; cp {program} /mnt/c/Windows/System32/cmd.exe")
    answer = ask(distro, "--launch")
    assert (answer.code, answer.said["launch"]["started"]) == (WORKS, True)
    vm.write("status", "0")
    try:
        answer = ask(distro, "--launch", program, user="a user")
        assert (answer.code, answer.said["launch"]["layer"]) == (FAILS, "table")
    finally:
        vm.write("status", "1")
    unwatched(f"echo -1 >{ENTRY}; echo :x:M::MZ::/nowhere: >{bed.TABLE}/register")(vm, distro)
    answer = ask(distro, "--launch", program)
    assert (answer.code, answer.said["launch"]["layer"]) == (FAILS, "interpreter")


def test_names_that_would_paint_the_terminal(vm: Vm, boot: Boot) -> None:
    """Anybody who is root in another distro chooses them."""
    distro = boot(vm)
    register(":wine\033[31m:M::MZ::/tmp/\033]0;x\a:")(vm, distro)
    code, text = run(distro, "status", "-v")
    assert code == FAILS
    assert "wine\\x1b[31m" in text
    assert not {"\033", "\a"} & set(text)
    assert "\033" in ask(distro).said["handler"]["entry"]


def test_last_repairs(vm: Vm, boot: Boot) -> None:
    distro = boot(vm)
    eventually(lambda: quiet(distro))
    distro.shell(f"echo -1 >{ENTRY}")
    eventually(lambda: right(vm))
    distro.run("journalctl", "--sync")
    answer = ask(distro)
    assert answer.said["protection"]["watch"]["repairs"] == ["WSLInterop is missing: restored"]
    assert answer.ids == []


def test_a_hung_systemctl(vm: Vm, boot: Boot) -> None:
    """It is waited for with a bound, and said not to have answered."""
    distro = boot(vm)
    distro.shell(
        "mkdir /run/hung; printf '#!/bin/sh\\nexec sleep 100' >/run/hung/systemctl; chmod +x /run/hung/systemctl"
    )
    answer = ask(distro, around='PATH=/run/hung:$PATH "$@"')
    assert answer.code == WORKS
    assert any("systemctl" in each for each in answer.said["not_checked"])


@pytest.mark.parametrize(
    "args", [["x"], ["status", "--no"], ["status", "/nowhere"], ["restore", "x"], ["status", "/etc/passwd"]]
)
def test_wrong_arguments(vm: Vm, boot: Boot, args: list[str]) -> None:
    distro = boot(vm)
    distro.shell("chmod +x /etc/passwd")
    code, text = run(distro, *args)
    assert code == USAGE
    assert text.splitlines()[-1].startswith("wsl-binfmt")


def test_what_a_user_may_not_read(vm: Vm, boot: Boot) -> None:
    """Is not taken for what it is by default."""
    distro = boot(vm, files={"/etc/wsl.conf": "[user]\ndefault=me\n"})
    program = distro.windows_program()
    distro.shell(f"chmod 600 /etc/wsl.conf; chmod 711 {program}")
    answer = ask(distro, user="a user")
    assert answer.ids == []
    assert answer.said["protection"]["protect_binfmt"] is None
    assert any("/etc/wsl.conf" in each for each in answer.said["not_checked"])
    answer = ask(distro, program, user="a user")
    assert (answer.code, answer.said["works"]) == (UNKNOWN, None)
    distro.shell(f"chmod 600 {program}")
    answer = ask(distro, program, user="a user")
    assert (answer.code, answer.ids) == (FAILS, ["exe-not-executable"])


def test_restore_where_systemd_does_not_run(vm: Vm, boot: Boot) -> None:
    """As status says there."""
    distro = boot(vm, kernel="6.6.87.2-microsoft-standard-WSL2")
    unwatched(f"echo -1 >{ENTRY}")(vm, distro)
    around = """unshare --mount sh -c 'mount -t tmpfs tmpfs /run/systemd && exec "$@"' sh "$@" """
    answer = ask(distro, around=around)
    assert answer.ids == ["not-registered", "no-systemd"]
    assert run(distro, "restore", around=around) == (0, "WSLInterop is missing: restored\n")
    assert ask(distro, around=around).ids == ["no-systemd"]
