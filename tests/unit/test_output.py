# SPDX-License-Identifier: MIT
"""What the generator writes, where, and what it leaves when it cannot."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

import support

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "wsl-binfmt-generator: "
# What a unit of ours may say; a typing error is something that systemd only warns of.
KEYS = {
    "Unit": {
        "ConditionPathExists",
        "ConditionPathIsReadWrite",
        "Documentation",
        "PropagatesReloadTo",
        "Wants",
    },
    "Service": {"BindPaths", "ExecReload", "ExecStop", "RestartMaxDelaySec", "RestartSec", "RestartSteps"},
}
EARLY = "systemd-binfmt.service.d/override.conf"


def complaints(stderr: str) -> set[str]:
    """The lines of stderr; each is a message of ours that is there once."""
    lines = stderr.splitlines()
    assert all(line.startswith(NAME) for line in lines)
    assert len(set(lines)) == len(lines)
    return {line[len(NAME) :] for line in lines}


def assert_nothing_hidden(directory: Path) -> None:
    """Assert that no temporary file is left."""
    assert [path for path in directory.rglob("*") if path.name.startswith(".")] == []


def test_units(distro: support.Machine) -> None:
    """Drop-ins are proper unit files, links lead to units that the package has, and all may be read."""
    distro.conf.touch()
    assert distro.run().returncode == 0
    support.assert_modes(distro.out)
    assert_nothing_hidden(distro.out)
    for name, text in distro.output().items():
        if text.startswith("-> "):
            folder, unit = name.split("/")
            assert folder.endswith((".wants", ".requires"))
            assert text == f"-> /usr/lib/systemd/system/{unit}"
            assert (support.TREE / "units" / unit).is_file()
        else:
            assert name.endswith(".d/50-wsl-binfmt.conf")
            for section, settings in support.parse_unit(text).items():
                assert {key for key, _ in settings} <= KEYS[section]


REGISTERS = "[Service]\nExecStartPost=/bin/sh -c 'echo :WSLInterop:M::MZ::/init:PF >/proc/sys/fs/binfmt_misc/register'"


@pytest.mark.parametrize("directory", ["etc", "run", "usr/local/lib", "usr/lib"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (REGISTERS, True),  # and no newline
        (REGISTERS + "\n", True),
        (REGISTERS.replace("Post=", "Post = -"), True),
        (REGISTERS.replace("Post", ""), True),
        (REGISTERS.replace("echo ", "echo \\\n"), True),
        (REGISTERS.replace("WSL", "WSL\\\n"), False),  # the backslash becomes a blank
        (REGISTERS.replace("Exec", "#Exec"), False),
        ("# see :WSLInterop: and /proc/sys/fs/binfmt_misc/register\n[Unit]\n", False),
        (REGISTERS.replace("echo", "echo -1 >WSLInterop; echo"), True),
        ("[Service]\nExecStartPost=/bin/sh -c 'echo 1 >/proc/sys/fs/binfmt_misc/WSLInterop'\n", False),
        ("[Service]\nExecStopPost=/bin/echo :WSLInterop:\n", False),
        (REGISTERS.replace("echo", "[ -e /proc/sys/fs/binfmt_misc/WSLInterop ] || echo"), False),
        (REGISTERS.replace("echo", "test -f /proc/sys/fs/binfmt_misc/WSLInterop || echo"), False),
        (REGISTERS.replace("echo", "[ -e /init ] && echo"), True),
        (REGISTERS.replace("echo", "[ -e /proc/sys/fs/binfmt_misc/register ] && echo"), True),
        (REGISTERS.replace("echo", "[ -f /proc/sys/fs/binfmt_misc/register ] && echo"), True),
        (REGISTERS.replace("WSLInterop", "APE"), False),
        (REGISTERS.replace("echo", "PATH=/bin:/usr/bin; echo"), True),
    ],
)
def test_registers_interop(distro: support.Machine, directory: str, text: str, expected: bool) -> None:
    """A drop-in that registers WSLInterop, and would fail as it is there, is masked; no other one is."""
    drop_ins = f"{directory}/systemd/system/systemd-binfmt.service.d"
    distro.write(f"{drop_ins}/a.conf", "[Service]\n")
    distro.write(f"{drop_ins}/wsl.conf", text)
    masked = {EARLY, "binfmt-support.service.d/override.conf"}
    assert masks(distro) == masked | ({"systemd-binfmt.service.d/wsl.conf"} if expected else set())


def test_an_administrators_override(distro: support.Machine) -> None:
    """It hides WSL's of that name, and is masked only if it registers WSLInterop; a link to nothing does not."""
    path = "etc/systemd/system/systemd-binfmt.service.d/override.conf"
    distro.write(path, "[Service]\n")
    assert EARLY not in masks(distro)
    distro.write(path, REGISTERS)
    assert EARLY in masks(distro)
    (distro.root / path).unlink()
    (distro.root / path).symlink_to("nowhere")
    assert EARLY in masks(distro)


def test_a_drop_in_of_the_name_of_ours(distro: support.Machine) -> None:
    """An administrator's that registers WSLInterop gives way to ours, and is not masked."""
    distro.write(f"etc/systemd/system/{support.GUARD}", REGISTERS)
    assert support.GUARD not in masks(distro)
    early = distro.out.parent / "early" / support.GUARD
    assert early.read_text() == distro.output()[support.GUARD]


def test_units_that_register_it(distro: support.Machine) -> None:
    """A unit that only registers an entry is not started where it is there, and one that does more does not fail."""
    units = "etc/systemd/system"
    distro.write(f"{units}/wsl-binfmt.service", REGISTERS)
    ape = "ExecStart=/bin/sh -c \"echo ':APE:M::MZqFpD::/usr/bin/ape:' >/proc/sys/fs/binfmt_misc/register\"\n"
    distro.write(f"{units}/cosmo-binfmt.service", f"[Unit]\nAfter=wsl-binfmt.service\n[Service]\nType=oneshot\n{ape}")
    distro.write(f"{units}/both.service", f"{REGISTERS}\n{ape}")
    distro.write(f"{units}/twice.service", f"[Service]\n{ape}{ape}")
    distro.write(f"{units}/daemon.service", f"[Service]\n{ape}ExecStart=/usr/bin/aped\n")
    start = ape.partition("=")[2].strip()
    distro.write(f"{units}/line.service", f'[Service]\nExecStart=+{start[:-1]}; exec aped"\n')
    distro.write(f"{units}/careful.service", f"[Service]\nExecStartPre=+-{start}\nExecStart=/usr/bin/aped\n")
    distro.write(
        f"{units}/qemu.service", "[Service]\n" + ape.replace("APE", "qemu-x86_64").replace("/bin/sh", ":/bin/sh")
    )
    distro.write(
        f"{units}/tests.service", "[Service]\n" + ape.replace("echo", '[ -e "/proc/sys/fs/binfmt_misc/APE" ] || echo')
    )
    distro.write(f"{units}/listens.service", "[Service]\nExecStart=/usr/bin/listen 127.0.0.1:8080:register\n")
    distro.write(f"{units}/other.service", "[Service]\nExecStart=/bin/true\n")
    for name in "wsl.timer", "wsl.conf", "systemd-binfmt.service.d/x.service":
        distro.write(f"{units}/{name}", REGISTERS)
    # Links that lead nowhere keep no other file from being read.
    for number, target in enumerate(["nowhere", "/etc/passwd/x", "loop-2.service", "/dev/null"]):
        (distro.root / units / f"loop-{number}.service").symlink_to(target)
    assert distro.run().returncode == 0
    expected = {
        "wsl-binfmt": ["Unit: ConditionPathExists=!/proc/sys/fs/binfmt_misc/WSLInterop"],
        "cosmo-binfmt": ["Unit: ConditionPathExists=!/proc/sys/fs/binfmt_misc/APE"],
        "both": [
            "Service: ExecStartPost=",
            "Service: ExecStart=",
            f"Service: ExecStartPost=-{REGISTERS.partition('=')[2]}",
            f"Service: ExecStart=-{start}",
        ],
        "daemon": ["Service: ExecStart=", f"Service: ExecStart=-{start}", "Service: ExecStart=/usr/bin/aped"],
        "twice": ["Service: ExecStart=", *[f"Service: ExecStart=-{start}"] * 2],
        "line": ["Service: ExecStart=", f'Service: ExecStart=-+{start[:-1]}; exec aped"'],
        "careful": ["Service: ExecStartPre=", f"Service: ExecStartPre=+-{start}"],
        "qemu": ["Unit: ConditionPathExists=!/proc/sys/fs/binfmt_misc/qemu-x86_64"],
    }
    written = [path for path in distro.output() if not path.startswith(("sysinit", "systemd-", "binfmt-"))]
    assert sorted(written) == sorted(f"{name}.service.d/50-wsl-binfmt.conf" for name in expected)
    for name, lines in expected.items():
        sections = support.parse_unit(distro.output()[f"{name}.service.d/50-wsl-binfmt.conf"]).items()
        found = [f"{section}: {key}={value}" for section, settings in sections for key, value in settings]
        assert [line for line in found if "Documentation" not in line] == lines


def test_a_copy_of_the_service(distro: support.Machine) -> None:
    """An administrator's own service that registers WSLInterop keeps our drop-in, and registers it no more."""
    distro.write("etc/systemd/system/systemd-binfmt.service", REGISTERS)
    distro.run()
    lines = support.parse_unit(distro.output()[support.GUARD])
    assert ("ConditionPathExists", "!/proc/sys/fs/binfmt_misc/WSLInterop") not in lines["Unit"]
    assert ("BindPaths", "/dev/null:/proc/sys/fs/binfmt_misc/status") in lines["Service"]
    starts = [value for key, value in lines["Service"] if key == "ExecStart"]
    assert starts == ["", "/usr/lib/systemd/systemd-binfmt"]
    assert ("ExecStartPost", "") in lines["Service"]
    assert "ExecStart=" not in distro.output()[support.SUPPORT]


def masks(distro: support.Machine) -> set[str]:
    """What is masked in the second directory."""
    for name in "early", "late":
        (distro.out.parent / name).mkdir(exist_ok=True)
    for path in (distro.out.parent / "early").rglob("*.conf"):
        path.unlink()
    done = distro.run(distro.out, distro.out.parent / "early", distro.out.parent / "late")
    assert (done.returncode, done.stderr) == (0, "")
    found = support.tree(distro.out.parent / "early")
    return {path for path, text in found.items() if text == "-> /dev/null"}


def test_drop_ins_that_are_no_files(distro: support.Machine) -> None:
    """A FIFO, a directory, a device without an end, and a link to nothing are passed over."""
    drop_ins = distro.root / "etc/systemd/system/systemd-binfmt.service.d"
    drop_ins.mkdir(parents=True)
    os.mkfifo(drop_ins / "a.conf")
    (drop_ins / "b.conf").mkdir()
    (drop_ins / "c.conf").symlink_to("/dev/zero")
    (drop_ins / "d.conf").symlink_to("nowhere")
    (drop_ins / "f.conf").symlink_to("/etc/passwd/x")
    (drop_ins / "g.conf").symlink_to("g.conf")
    for number in range(5):
        distro.write(f"etc/systemd/system/systemd-binfmt.service.d/{number}.conf", REGISTERS)
    (drop_ins / "e.conf").write_bytes(b"\xff\0")
    (distro.root / "run/systemd").mkdir(parents=True)
    (distro.root / "run/systemd/system").write_text("")
    registering = {f"systemd-binfmt.service.d/{number}.conf" for number in range(5)}
    assert masks(distro) == {EARLY, "binfmt-support.service.d/override.conf"} | registering


def test_what_is_emptied(distro: support.Machine) -> None:
    """Nothing but ExecStop=, which would wipe the table: emptying a setting undoes what others have set."""
    distro.run()
    for text in distro.output().values():
        if not text.startswith("-> "):
            assert {name for lines in support.parse_unit(text).values() for name, value in lines if not value} <= {
                "ExecStop"
            }


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_umask(distro: support.Machine, umask: int) -> None:
    """Modes do not depend on the umask."""
    done = distro.run(command=["sh", "-c", f'umask {umask:o}; exec "$@"', "sh", *support.COMMAND])
    assert (done.returncode, done.stderr) == (0, "")
    support.assert_modes(distro.out)


def test_missing_directory(distro: support.Machine) -> None:
    """The output directory is systemd's to make."""
    missing = distro.out / "missing"
    done = distro.run(missing)
    assert done.returncode == 1
    assert f"cannot write {missing}/{support.GUARD}: No such file or directory" in complaints(done.stderr)
    assert distro.output() == {}


def test_file_for_directory(distro: support.Machine) -> None:
    """A file in its place is not touched."""
    file = distro.out / "file"
    file.write_text("precious")
    done = distro.run(file)
    assert done.returncode == 1
    assert f"cannot write {file}/{support.GUARD}: Not a directory" in complaints(done.stderr)
    assert distro.output() == {"file": "precious"}


def test_file_for_folder(distro: support.Machine) -> None:
    """Nor is one in the place of a drop-in's folder; the other drop-ins are written."""
    folder = distro.out / support.GUARD.partition("/")[0]
    folder.write_text("precious")
    done = distro.run()
    assert done.returncode == 1
    assert complaints(done.stderr) == {f"cannot write {distro.out}/{support.GUARD}: Not a directory"}
    assert folder.read_text() == "precious"
    assert support.SUPPORT in distro.output()


@pytest.mark.parametrize("target", ["elsewhere", "/nowhere", "."])
def test_link_for_folder(distro: support.Machine, tmp_path: Path, target: str) -> None:
    """A link in the place of a drop-in's folder is not followed: it could lead anywhere."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder = distro.out / support.GUARD.partition("/")[0]
    folder.symlink_to(elsewhere if target == "elsewhere" else target)
    done = distro.run()
    assert done.returncode == 1
    assert complaints(done.stderr) == {f"cannot write {distro.out}/{support.GUARD}: Not a directory"}
    assert support.tree(elsewhere) == {}
    assert folder.is_symlink()
    assert support.SUPPORT in distro.output()


def test_link_for_file(distro: support.Machine, tmp_path: Path) -> None:
    """A link in the place of a file is replaced, and what it leads to stays as it was."""
    precious = tmp_path / "precious"
    precious.write_text("precious")
    link = distro.out / support.GUARD
    link.parent.mkdir()
    link.symlink_to(precious)
    assert distro.run().returncode == 0
    assert not link.is_symlink()
    assert precious.read_text() == "precious"


def test_directory_for_file(distro: support.Machine) -> None:
    """A directory in the place of a file stays, and no temporary file is left beside it."""
    (distro.out / support.GUARD).mkdir(parents=True)
    done = distro.run()
    assert done.returncode == 1
    assert complaints(done.stderr) == {f"cannot write {distro.out}/{support.GUARD}: Is a directory"}
    assert_nothing_hidden(distro.out)
    assert support.SUPPORT in distro.output()


def test_replaced(distro: support.Machine) -> None:
    """An older file is replaced in one step: who has it open goes on reading the older one."""
    path = distro.out / support.GUARD
    path.parent.mkdir()
    path.write_text("older\n" * 1000)
    path.chmod(0o600)
    with path.open() as older:
        assert distro.run().returncode == 0
        assert older.read() == "older\n" * 1000
    support.parse_unit(path.read_text())
    support.assert_modes(distro.out)
    assert_nothing_hidden(distro.out)


def test_again(distro: support.Machine) -> None:
    """A second run, into what the first has written, changes nothing, links included."""
    distro.run()
    first = distro.output()
    done = distro.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert distro.output() == first
    assert_nothing_hidden(distro.out)


def test_two_at_once(distro: support.Machine) -> None:
    """Several that run at once do not meet, and what is there meanwhile is whole."""
    distro.run()
    whole = distro.output()
    environment = {"WSL_BINFMT_ROOT": str(distro.root), **distro.environment}
    running = [subprocess.Popen([*support.COMMAND, distro.out], env=environment) for _ in range(8)]
    until = time.monotonic() + support.TIMEOUT
    while any(process.poll() is None for process in running) and time.monotonic() < until:
        for name, text in whole.items():
            path = distro.out / name
            assert text == (f"-> {os.readlink(path)}" if path.is_symlink() else path.read_text())
    assert [process.wait(support.TIMEOUT) for process in running] == [0] * 8
    assert distro.output() == whole
    assert_nothing_hidden(distro.out)


@pytest.fixture
def full_disk(distro: support.Machine) -> Iterator[Path]:
    """An output directory on a disk without a free byte."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a tiny tmpfs")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tiny", distro.out], check=False, capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"cannot mount a tiny tmpfs: {done.stderr}")
    try:
        yield distro.out
    finally:
        subprocess.run(["umount", distro.out], check=True)


def test_full_disk(distro: support.Machine, full_disk: Path) -> None:
    """A full disk: a line for each file that could not be written, older ones whole, nothing left half."""
    path = full_disk / support.GUARD
    path.parent.mkdir()
    path.write_text("older")
    subprocess.run(["dd", "if=/dev/zero", f"of={full_disk}/filler"], check=False, stderr=subprocess.DEVNULL)
    done = distro.run()
    assert done.returncode == 1
    assert f"cannot write {path}: No space left on device" in complaints(done.stderr)
    assert path.read_text() == "older"
    assert_nothing_hidden(full_disk)
    (full_disk / "filler").unlink()
    assert distro.run().returncode == 0
    support.parse_unit(path.read_text())


@pytest.mark.parametrize("free", [0, 1, 100])
def test_disk_in_memory(generator: Any, free: int) -> None:
    """The same for any user, on files in memory that have room for so many bytes."""
    files = support.give_fake_files(generator, total_size=free)
    files.create_dir("/out")
    generator.CONTAINER = "wsl"
    messages: list[str] = []
    generator.log = lambda _level, text: messages.append(text)
    assert generator.main(["/out"]) == 1
    assert f"cannot write /out/{support.GUARD}: No space left on device" in messages
    assert not files.exists(f"/out/{support.GUARD}")
    found = [name for _, _, names in generator.posix.walk("/out") for name in names]
    assert not [name for name in found if name.startswith(".")]


def test_fails_after_a_part(distro: support.Machine) -> None:
    """A write that takes a part, and then none: the part does not stay, and older files do."""
    (distro.out / support.GUARD).parent.mkdir()
    (distro.out / support.GUARD).write_text("older")
    done = distro.run(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)))
    assert done.returncode == 1
    assert complaints(done.stderr) == {
        f"cannot write {distro.out}/{name}: File too large" for name in (support.GUARD, support.SUPPORT)
    }
    assert (distro.out / support.GUARD).read_text() == "older"
    assert support.SUPPORT not in distro.output()
    assert_nothing_hidden(distro.out)


def test_touches_nothing_else(distro: support.Machine) -> None:
    """Nothing is opened for writing, made, renamed or removed but what is below the output directory."""
    # Python tells its audit hooks of each. A name without a slash is relative to an open folder,
    # which is among the events as well.
    program = f"""
import sys
events = []
def hook(event, args):
    if event == "open" and isinstance(args[0], str) and (args[2] or 0) & 0o103:
        events.append(args[0])
    elif event in ("os.mkdir", "os.remove", "os.rename", "os.symlink", "os.chmod", "os.link", "os.rmdir"):
        events.extend(arg for arg in args[-2 if event == "os.symlink" else 0:] if isinstance(arg, str))
    elif event in ("socket.connect", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "import"):
        if event != "import":
            events.append(event)
sys.addaudithook(hook)
sys.argv = ["wsl-binfmt-generator", {str(distro.out)!r}]
code = compile(open({str(support.GENERATOR)!r}).read(), "generator", "exec")
namespace = {{"__name__": "generator"}}
exec(code, namespace)
print(namespace["main"](sys.argv[1:]))
print("\\n".join(events))
"""
    distro.conf.write_text("[boot]\nsystemd=true\n")
    before = support.tree(distro.root)
    done = distro.run("-c", program, command=[sys.executable, "-IS"])
    status, *events = done.stdout.splitlines()
    assert (status, done.stderr) == ("0", "")
    assert any(event.startswith(str(distro.out)) for event in events), "the hook saw nothing"
    strangers = {event for event in events if not event.startswith(f"{distro.out}/") and "/" in event}
    assert {event for event in strangers if not event.startswith("/usr/lib/systemd/system/")} == set()
    assert support.tree(distro.root) == before
    assert sorted(path.name for path in distro.out.parent.iterdir()) == ["out", "root"]


def test_leaves_no_cache(distro: support.Machine) -> None:
    """Running it leaves no __pycache__ where it is installed."""
    distro.run()
    assert not (support.GENERATOR.parent / "__pycache__").exists()
