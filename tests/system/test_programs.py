# SPDX-License-Identifier: MIT
"""What `wsl-binfmt PROGRAM` says of a file, on drives of Windows and elsewhere; and its fixes work."""

from __future__ import annotations

import os
import re
import struct
from typing import TYPE_CHECKING, NamedTuple

import pytest

import bed
from test_status import (
    DEFAULT_USER,
    ENTRY,
    FAILS,
    SUDO,
    UNKNOWN,
    USERS,
    WORKS,
    WSL_CONF,
    Answer,
    run,
    status,
    unwatched,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from bed import Distro, Vm

    Boot = Callable[..., Distro]

pytestmark = pytest.mark.system

WINDOWS = "Windows/System32"
SYSTEM32 = f"/mnt/c/{WINDOWS}"
NOTEPAD = f"{SYSTEM32}/notepad.exe"
APPS = "/mnt/c/Users/me/AppData/Local/Microsoft/WindowsApps"
# The kernel here has no 9p: mountinfo says so of a tmpfs, to the program that is run.
DRIVE = r"""# root
unshare --mount sh -c '
        sed "s/- tmpfs drive .*/- 9p C: rw,aname=drvfs;path=C:\\\\;%s,trans=fd/" /proc/self/mountinfo >/run/mountinfo
        mount --bind /run/mountinfo /proc/$$/mountinfo
        exec "$@"
' sh "$@" """


def drive(distro: Distro, options: str, mode: int = 0o777, at: str = "/mnt/c") -> str:
    """Mount a stand-in for the drive C:, on which files have a mode; returns what run() is to have around a program."""
    files = f"{at}/{WINDOWS}/notepad.exe {at}/{WINDOWS}/cmd.exe"
    distro.shell(
        f"umount {at} 2>/dev/null || true; mkdir -p {at}; mount -t tmpfs drive {at}; mkdir -p {at}/{WINDOWS} {APPS}\n"
        f"printf MZ | tee {files}; : >{APPS}/python.exe\n"
        f"find {at} -type f -exec chown 65534 {{}} + -exec chmod {mode:o} {{}} +"
    )
    return DRIVE % options.replace(",", ";")


def settle(distro: Distro, answer: Answer) -> None:
    """Run the fix of the only problem."""
    (problem,) = answer.said["problems"]
    user = "root" if "sudo " in problem["fix"] else "a user"
    assert run(distro, "sh", "-c", problem["fix"], user=user)[0] == 0


@pytest.mark.parametrize("options", ["metadata,umask=22,fmask=111", "umask=133", "fmask=0111,dmask=0022"])
def test_a_drive_with_a_mask(vm: Vm, boot: Boot, options: str) -> None:
    """The line of /etc/wsl.conf is named and mended, and counts when the distro has started again."""
    distro = boot(vm, files={**SUDO, WSL_CONF: f'[automount]\noptions = "{options}"\n'})
    around = drive(distro, options, 0o644)
    for user in USERS:
        answer = status(distro, NOTEPAD, user=user, around=around)
        assert (answer.code, answer.ids) == (FAILS, ["exe-not-executable"])
        assert f"{WSL_CONF}:2: options={options}" in answer.evidence
        assert answer.said["problems"][0]["needs_restart"]
    settle(distro, answer)
    for user in USERS:
        answer = status(distro, NOTEPAD, user=user, around=around)
        assert (answer.code, answer.ids) == (FAILS, ["exe-not-executable", "settings-pending"])
        assert "takes effect after" in answer.said["problems"][0]["advice"]
    # The distro starts again.
    distro.shell(f"touch -d '1 hour ago' {WSL_CONF}")
    options = distro.path(WSL_CONF).read_text().split('"')[1]
    masks = [int(each, 8) for each in re.findall("[uf]mask=([0-7]+)", options)]
    around = drive(distro, options, 0o777 & ~(masks[0] | masks[-1]))
    for user in USERS:
        assert status(distro, NOTEPAD, user=user, around=around).ids == []


def test_a_drive_without_a_mask(vm: Vm, boot: Boot) -> None:
    """With metadata, the file's own mode refuses; without, Windows does, which no command here changes."""
    distro = boot(vm)
    around = drive(distro, "metadata,umask=22", 0o644)
    for user in USERS:
        answer = status(distro, NOTEPAD, user=user, around=around)
        assert (answer.code, answer.ids) == (FAILS, ["exe-not-executable"])
    settle(distro, answer)
    assert status(distro, NOTEPAD, around=around).ids == []
    around = drive(distro, "uid=1000,gid=1000", 0o444)
    for user in USERS:
        answer = status(distro, NOTEPAD, user=user, around=around)
        assert (answer.code, answer.ids, answer.said["problems"][0]["fix"]) == (FAILS, ["exe-not-executable"], None)
        assert "Windows does not let you" in answer.said["problems"][0]["advice"]


def test_an_app_execution_alias(vm: Vm, boot: Boot) -> None:
    """Only Windows understands it, whatever its mode says."""
    distro = boot(vm)
    around = drive(distro, "uid=1000", 0o444)
    distro.shell(f"chmod 755 {SYSTEM32}/cmd.exe; ln -s '/mnt/c/Program Files/WindowsApps/wt.exe' {APPS}")
    assert status(distro, f"{APPS}/wt.exe", around=around).ids == ["app-execution-alias"]
    for user in USERS:
        for place, name in ("/", f"{APPS}/python.exe"), (APPS, "./python.exe"):
            here = around.replace("exec", f"cd {place}; exec")
            answer = status(distro, name, user=user, around=here)
            assert (answer.code, answer.ids) == (FAILS, ["app-execution-alias"])
            fix = answer.said["problems"][0]["fix"]
            assert run(distro, "sh", "-c", fix, user=user)[1].endswith("cmd.exe /c python.exe\n")
            answer = status(distro, name, user=user, around=here.replace("exec", f"PATH=$PATH:{SYSTEM32} exec"))
            assert answer.said["problems"][0]["fix"] == "cmd.exe /c python.exe"


@pytest.mark.parametrize(
    ("conf", "at", "evidence"),
    [
        ("", "/mnt/c", "PATH has no folder of Windows"),
        ("[interop]\nappendWindowsPath=false\n", "/mnt/c", f"{WSL_CONF}:2: appendWindowsPath=false"),
        ("[automount]\nroot=/windows\n", "/windows/c", "PATH has no folder of Windows"),
        # A drive of the user's own, as by mount(8).
        ("", "/srv/disk", "PATH has no folder of Windows"),
    ],
)
def test_not_in_path(vm: Vm, boot: Boot, conf: str, at: str, evidence: str) -> None:
    """Windows has it: where, and why it is not found."""
    distro = boot(vm, files={WSL_CONF: conf})
    around = drive(distro, "uid=1000", at=at)
    for user in USERS:
        for name in "notepad.exe", "notepad":
            answer = status(distro, name, user=user, around=around)
            assert (answer.code, answer.ids) == (FAILS, ["not-in-path"])
            assert f"it is at {at}/{WINDOWS}/notepad.exe" in answer.evidence
            assert evidence in answer.evidence
        here = around.replace("exec", f"PATH=$PATH:{at}/{WINDOWS}; exec")
        named = status(distro, "notepad", user=user, around=here)
        assert (named.code, named.said["problems"][0]["summary"]) == (FAILS, "The program is called notepad.exe.")
        here = around.replace("exec", f"{answer.said['problems'][0]['fix']}; exec")
        assert status(distro, "notepad.exe", user=user, around=here).ids == []


def test_in_the_current_directory(vm: Vm, boot: Boot) -> None:
    """Where Windows would find it."""
    distro = boot(vm)
    distro.windows_program("/srv/x.exe")
    for user in USERS:
        answer = status(distro, "x.exe", user=user, around='cd /srv; "$@"')
        assert (answer.code, answer.ids) == (FAILS, ["not-in-path"])
        assert "./x.exe" in answer.said["problems"][0]["advice"]
        assert status(distro, "./x.exe", user=user, around='cd /srv; "$@"').ids == []


def test_below_program_files(vm: Vm, boot: Boot) -> None:
    """Where Docker has its programs; of what is elsewhere, it is not said that Windows has no such program."""
    distro = boot(vm, files={WSL_CONF: "[interop]\nappendWindowsPath=false\n"})
    around = drive(distro, "uid=1000")
    folder = "/mnt/c/Program Files/Docker/Docker/resources/bin"
    distro.shell(f"mkdir -p '{folder}'; cp -p {NOTEPAD} '{folder}/docker-credential-desktop.exe'")
    for user in USERS:
        answer = status(distro, "docker-credential-desktop.exe", user=user, around=around)
        assert (answer.code, answer.ids) == (FAILS, ["not-in-path"])
        assert f"it is at {folder}/docker-credential-desktop.exe" in answer.evidence
        assert answer.said["problems"][0]["fix"] == f"""export PATH="$PATH":'{folder}'"""
        here = around.replace("exec", f'export PATH="$PATH":"{folder}"; exec')
        assert status(distro, "docker-credential-desktop.exe", user=user, around=here).ids == []
        answer = status(distro, "nonesuch.exe", user=user, around=around)
        assert (answer.code, answer.ids) == (FAILS, ["not-in-path"])
        assert "in which this command looks" in answer.said["problems"][0]["summary"]
        assert f"{WSL_CONF}:2: appendWindowsPath=false" in answer.evidence


def test_a_drive_that_is_not_mounted(vm: Vm, boot: Boot) -> None:
    """A path on it is told from a program that is not there on one that is mounted."""
    distro = boot(vm, files={"/mnt/d/.keep": ""})
    around = drive(distro, "uid=1000")
    for user in USERS:
        for path in "/mnt/d/x.exe", "/mnt/z/x.exe":
            answer = status(distro, path, user=user, around=around)
            assert (answer.code, answer.ids) == (FAILS, ["drive-not-mounted"])
            fix = f"sudo mkdir -p {path[:6]} && sudo mount -t drvfs {path[5].upper()}: {path[:6]}"
            assert answer.said["problems"][0]["fix"] == (fix if user == "a user" else fix.replace("sudo ", ""))
        for path in "/mnt/c/x.exe", "/mnt/x.exe", "/srv/x.exe":
            assert "there is no program" in run(distro, "wsl-binfmt", path, user=user, around=around)[1]


def test_a_script_that_starts_a_windows_program(vm: Vm, boot: Boot) -> None:
    """What keeps that from starting is an error on a drive of Windows, and a warning elsewhere."""
    distro = boot(vm)
    around = drive(distro, "uid=1000")
    code, view, first_line = f"{SYSTEM32}/code", "/usr/local/bin/view", "/srv/x"
    distro.shell(
        f"printf '#!/bin/sh\nexec {NOTEPAD} \"$@\"\n' | tee {code} >{view}\n"
        f"echo '#!{NOTEPAD}' >{first_line}; chmod 755 {code} {view} {first_line} {NOTEPAD}"
    )
    paths = code, view, first_line, "/usr/bin/env"
    assert [status(distro, path, around=around).ids for path in paths] == [[]] * 4
    unwatched(f"echo -1 >{ENTRY}")(vm, distro)
    for user in USERS:
        answers = [status(distro, path, user=user, around=around) for path in paths]
        assert [answer.code for answer in answers] == [FAILS, WORKS, FAILS, WORKS]
        assert [answer.ids for answer in answers] == [["not-registered"]] * 3 + [[]]
    launched = status(distro, "--launch", view, around=around)
    assert (launched.code, launched.ids) == (UNKNOWN, ["not-registered"])


def test_a_link_to_init(vm: Vm, boot: Boot) -> None:
    """As NixOS registers WSLInterop: it starts Windows programs, and is registered as WSL does all the same."""
    distro = boot(vm)
    distro.shell("mkdir /run/binfmt; ln -s /init /run/binfmt/WSLInterop; ln -s /bin/true /run/binfmt/true")
    for name, expected in ("WSLInterop", (WORKS, [])), ("true", (FAILS, ["foreign-interpreter"])):
        rule = f":WSLInterop:M::MZ::/run/binfmt/{name}:FP"
        unwatched(f"echo -1 >{ENTRY}; echo {rule} >{bed.TABLE}/register")(vm, distro)
        answer = status(distro)
        assert (answer.code, answer.ids) == expected
        assert distro.interop() is (name == "WSLInterop")


def test_no_drive(vm: Vm, boot: Boot) -> None:
    """It is said why none is there, or that none can be looked at, as far as that is known."""
    distro = boot(vm, files={**SUDO, WSL_CONF: "[automount]\nenabled=false\n"})
    for user in USERS:
        answer = status(distro, "notepad.exe", user=user)
        assert (answer.code, answer.ids) == (FAILS, ["not-in-path"])
        assert f"{WSL_CONF}:2: enabled=false" in answer.evidence
        assert "neither in PATH nor on a drive" in run(distro, "wsl-binfmt", "status", "notepad", user=user)[1]
    settle(distro, answer)
    assert "enabled=true" in distro.path(WSL_CONF).read_text()
    distro.shell(
        f"mkdir -m 700 /closed; cd /run; ln -s one two; ln -s two one; "
        f"echo '[automount]' >{WSL_CONF}; echo root=/run/one/ >>{WSL_CONF}; touch -d '1 hour ago' {WSL_CONF}"
    )
    for user in USERS:
        answer = status(distro, "notepad.exe", user=user)
        assert (answer.code, answer.ids) == (FAILS, ["not-in-path"])
        assert "Too many levels of symbolic links" in answer.evidence
        assert status(distro, user=user).ids == []
    distro.shell(f"sed -i s:/run/one/:/closed: {WSL_CONF}; touch -d '1 hour ago' {WSL_CONF}")
    answer = status(distro, "notepad.exe", user="a user")
    assert (answer.code, answer.ids) == (FAILS, ["not-in-path"])
    assert "/closed: this user may not look there" in answer.evidence


class File(NamedTuple):
    """A file x that does not start, and what is said of it."""

    make: str  # a shell script that makes it in the current directory
    id: str
    said: str
    has_fix: bool = False


FILES = [
    File(r"printf '#!/bin/sh\r\n' >x", "interpreter-missing", "as on Windows", has_fix=True),
    File(r"printf '#!/usr/bin/env python3\r\n' >x", "interpreter-missing", "as on Windows", has_fix=True),
    File(r"printf '\357\273\277#!/bin/sh\n' >x", "nothing-runs-it", "byte order mark", has_fix=True),
    File("echo '#!/usr/bin/env nonesuch' >x", "interpreter-missing", "nonesuch: it is not there"),
    File("echo '#!/usr/bin/env -S nonesuch -u' >x", "interpreter-missing", "nonesuch: it is not there"),
    File("echo '#!/usr/bin/env sh -e' >x", "interpreter-missing", "`env -S` splits it"),
    File("echo '#!' >x", "interpreter-missing", "names nothing"),
    File("echo '#!/etc/passwd' >x", "interpreter-missing", "may not execute it"),
    File("echo '#!/etc' >x", "interpreter-missing", "may not execute it"),
    File(": >x", "nothing-runs-it", "empty"),
    File("echo echo >x", "nothing-runs-it", "A shell may run it"),
    File("mkdir x", "exe-not-executable", "directory"),
    File("mkfifo x", "exe-not-executable", "is not a file"),
    File("ln -s nowhere x", "exe-not-executable", "a link to nothing"),
    File("ln -s x x", "exe-not-executable", "Too many levels"),
    File("printf MZ >x; chmod 0 x", "exe-not-executable", "----------", has_fix=True),
    File("cp /bin/true x; chmod 600 x", "exe-not-executable", "-rw-------", has_fix=True),
]


def test_files(vm: Vm, boot: Boot) -> None:
    """Of any kind, to any user; its owner can run the fix."""
    distro = boot(vm)
    for number, each in enumerate(FILES):
        here = f"/srv/{number}"
        distro.shell(
            f"umask 0; mkdir {here}; cd {here}; umask 022; {each.make}\n"
            '[ -L x ] || { chown 65534 . x; [ -n "$(find x -perm 644)" ] && chmod 755 x || :; }'
        )
        for user in USERS:
            answer = status(distro, "./x", user=user, around=f'cd {here}; "$@"')
            assert (answer.code, answer.ids) == (FAILS, [each.id]), each.make
            (problem,) = answer.said["problems"]
            assert each.said in f"{problem['summary']}\n{answer.evidence}\n{problem['advice']}", each.make
        assert bool(problem["fix"]) is each.has_fix, each.make
        if each.has_fix:
            assert "sudo" not in problem["fix"]
            run(distro, "sh", "-c", problem["fix"], user="a user", around=f'cd {here}; "$@"')
            assert status(distro, "./x", user="a user", around=f'cd {here}; "$@"').ids == [], each.make


def test_what_windows_opens(vm: Vm, boot: Boot) -> None:
    """What is no program is for a program of Windows to open, whether or not it is in PATH here."""
    tools = {
        f"/usr/local/bin/{name}.exe": f'#!/bin/sh\necho {name} "$@"\n' for name in ("cmd", "explorer", "powershell")
    }
    distro = boot(vm, files={**tools, "/usr/local/bin/wslpath": '#!/bin/sh\necho "UNC${2}"\n'})
    distro.shell("mkdir '/srv/a b'; cd '/srv/a b'; echo '<html>' | tee x.bat x.ps1 x.lnk x.exe; chmod 755 *")
    for ending, said in {"bat": "cmd /c", "ps1": "powershell -File", "lnk": "explorer"}.items():
        answer = status(distro, f"/srv/a b/x.{ending}")
        assert (answer.code, answer.ids) == (FAILS, ["nothing-runs-it"])
        fix = answer.said["problems"][0]["fix"]
        assert run(distro, "sh", "-c", fix, user="a user") == (0, f"{said} UNC/srv/a b/x.{ending}\n")
    answer = status(distro, "/srv/a b/x.exe")
    assert (answer.code, answer.ids) == (FAILS, ["nothing-runs-it"])
    assert "it is a page" in answer.evidence
    distro.shell("echo text >'/srv/a b/x.exe'")
    assert "does not begin with MZ" in status(distro, "/srv/a b/x.exe").evidence
    assert "wslpath -u" in run(distro, "wsl-binfmt", r"C:\Windows\notepad.exe")[1]


def test_what_the_default_user_may_not_read(vm: Vm, boot: Boot) -> None:
    """By the part of the mode that counts: what is advised settles it."""
    distro = boot(vm, files=DEFAULT_USER)
    distro.shell("mkdir -p /srv/a/b")
    distro.windows_program("/srv/a/b/x.exe")
    for mode, group, advised in ("700", 0, "o+x"), ("705", 1000, "g+x"), ("711", 0, ""):
        distro.shell(f"chown 0:{group} /srv/a; chmod {mode} /srv/a")
        answer = status(distro, "/srv/a/b/x.exe")
        assert answer.ids == (["exe-not-for-default-user"] if advised else [])
        for problem in answer.said["problems"]:
            assert f"chmod {advised} /srv/a`" in problem["advice"]
            distro.shell(problem["advice"].split("`")[1].replace("sudo ", ""))
            assert status(distro, "/srv/a/b/x.exe").ids == []
    assert "there is no program" in run(distro, "wsl-binfmt", "/srv/a/b/x.exe/")[1]


def test_an_access_control_list(vm: Vm, boot: Boot) -> None:
    """Where the mode allows all, another mode is no help."""
    distro = boot(vm)
    program = distro.windows_program("/srv/x.exe")
    distro.shell("mount -t tmpfs tmpfs /mnt; cp -p /srv/x.exe /mnt")
    # acl(5): owner, user 65534, group, mask, others; <linux/posix_acl_xattr.h>.
    entries = (1, 7, -1), (2, 0, 65534), (4, 5, -1), (16, 5, -1), (32, 5, -1)
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *each) for each in entries)
    os.setxattr(distro.path("/mnt/x.exe"), "system.posix_acl_access", acl)
    assert status(distro, "/mnt/x.exe").ids == []
    answer = status(distro, "/mnt/x.exe", user="a user")
    assert (answer.code, answer.ids, answer.said["problems"][0]["fix"]) == (FAILS, ["exe-not-executable"], None)
    assert "getfacl" in answer.said["problems"][0]["advice"]
    assert status(distro, program, user="a user").code == WORKS


def test_an_interpreter_that_may_not_be_executed(vm: Vm, boot: Boot) -> None:
    """Of an entry without F: the kernel opens it at each start."""
    distro = boot(vm)
    distro.shell("echo yyyy >/srv/x; chmod 755 /srv/x; : >/srv/interpreter")
    vm.register(":y:M::yyyy::/srv/interpreter:")
    for user in USERS:
        answer = status(distro, "/srv/x", user=user)
        assert (answer.code, answer.ids) == (FAILS, ["interpreter-missing"])
        assert "may not execute it" in answer.evidence
    distro.shell("chmod 755 /srv/interpreter")
    assert status(distro, "/srv/x").code == WORKS
