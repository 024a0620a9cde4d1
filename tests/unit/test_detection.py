# SPDX-License-Identifier: MIT
"""Which machine is a WSL distro, and which is not; files in memory."""

from __future__ import annotations

from typing import Any

import pytest

import support

MICROSOFT = "6.6.87.2-microsoft-standard-WSL2\n"
DISTRO = ""
NOT_WSL = "not WSL"
# container=, SYSTEMD_VIRTUALIZATION=, kernel's release (None: no such file), a file that is there; what follows
CASES = [
    ("wsl", "container:wsl", MICROSOFT, "", DISTRO),
    ("wsl", "", None, "", DISTRO),
    ("wsl", "container:wsl", "6.18.0-custom\n", "", DISTRO),
    ("wsl", "container:wsl", MICROSOFT, "/.dockerenv", DISTRO),
    ("wsl", "container:wsl", MICROSOFT, "/run/.containerenv", DISTRO),
    ("wsl", "container:docker", MICROSOFT, "", DISTRO),
    ("", "", MICROSOFT, "", DISTRO),
    ("", "container:wsl", MICROSOFT, "", DISTRO),
    ("", "vm:microsoft", "5.15.90.1-Microsoft\n", "", DISTRO),
    ("", "", "6.1.0-WSL\n", "", DISTRO),
    ("", "", "MICROSOFT" + "x" * 5000, "", DISTRO),
    ("", "", None, "", NOT_WSL),
    ("", "", "", "", NOT_WSL),
    ("", "", "6.12.9-amd64\n", "", NOT_WSL),
    ("", "vm:microsoft", "6.8.0-1021-azure\n", "", NOT_WSL),
    ("", "container:wsl", "6.18.0-custom\n", "", NOT_WSL),
    ("", "", "6.1.0-wsl\n", "", NOT_WSL),
    ("", "", "6.12.9-amd64\n", "/.dockerenv", NOT_WSL),
    ("", "container:wsl", MICROSOFT, "/.dockerenv", "a container on WSL, as it has /.dockerenv"),
    ("", "", MICROSOFT, "/run/.containerenv", "a container on WSL, as it has /run/.containerenv"),
    (
        *("", "container:wsl", MICROSOFT, "/run/host/container-manager"),
        "a container on WSL, as it has /run/host/container-manager",
    ),
    ("docker", "container:wsl", MICROSOFT, "", "a container, docker"),
    ("podman", "container:wsl", MICROSOFT, "/run/.containerenv", "a container, podman"),
    ("lxc", "container:wsl", MICROSOFT, "", "a container, lxc"),
    ("systemd-nspawn", "container:wsl", MICROSOFT, "", "a container, systemd-nspawn"),
    ("WSL", "", MICROSOFT, "", "a container, WSL"),
    ("wsl2", "", MICROSOFT, "", "a container, wsl2"),
    ("oci", "", "6.12.9-amd64\n", "", "a container, oci"),
    ("", "container:docker", MICROSOFT, "", "a container, docker"),
    ("", "container:podman", "6.12.9-amd64\n", "", "a container, podman"),
]


@pytest.mark.parametrize(("container", "virtualization", "release", "mark", "reason"), CASES)
@pytest.mark.parametrize("root", ["", "/root/of/tests"])
def test_decision(
    generator: Any, container: str, virtualization: str, release: str | None, mark: str, reason: str, root: str
) -> None:
    """Every way in which a machine says what it is."""
    files = support.give_fake_files(generator)
    generator.ROOT, generator.CONTAINER, generator.VIRTUALIZATION = root, container, virtualization
    if release is not None:
        files.create_file(root + "/proc/sys/kernel/osrelease", contents=release)
    if mark:
        files.create_file(root + mark)
    assert generator.not_a_distro() == reason


def test_environment(distro: support.Machine) -> None:
    """Variables that are not UTF-8, or are set to nothing, count for what they are."""
    distro.environment = {"container": "\udcff"}
    assert distro.run("--dry-run").stderr == "wsl-binfmt-generator: a container, \udcff: nothing to do\n"
    distro.environment = {"SYSTEMD_VIRTUALIZATION": "container:podman"}
    assert distro.run("--dry-run").stderr == "wsl-binfmt-generator: a container, podman: nothing to do\n"
    distro.environment = {"container": "", "SYSTEMD_VIRTUALIZATION": ""}
    assert distro.run().returncode == 0
    assert support.GUARD in distro.output()


@pytest.mark.parametrize("protect", ["true", "false"])
@pytest.mark.parametrize("interop", ["true", "false"])
def test_settings_decide(generator: Any, protect: str, interop: str) -> None:
    """The table of what is written, on files in memory."""
    files = support.give_fake_files(generator)
    generator.CONTAINER = "wsl"
    files.create_file("/etc/wsl.conf", contents=f"[boot]\nprotectBinfmt={protect}\n[interop]\nenabled={interop}\n")
    files.create_dir("/out")
    assert generator.main(["/out"]) == 0
    found = set()
    for directory, _, names in generator.posix.walk("/out"):
        found |= {f"{directory}/{name}" for name in names}
    if protect == "false":
        assert found == set()
        return
    drop_ins = {name for name in found if name.endswith(".conf")}
    links = found - drop_ins
    assert f"/out/{support.GUARD}" in drop_ins
    texts = [support.fake_text(files, name) for name in drop_ins]
    targets = [generator.posix.readlink(name) for name in links]
    assert all(target.startswith("/usr/lib/systemd/system/") for target in targets)
    # What registers anything is not for a distro that switched interop off.
    assert any("wsl-binfmt-boot.service" in text for text in texts) == (interop == "true")
    assert any("wsl-binfmt-watch.service" in target for target in targets) == (interop == "true")
    assert any(target.endswith("-status.mount") for target in targets)


def test_files_that_are_not_utf8(distro: support.Machine) -> None:
    """What systemd has written down counts, whatever its bytes are."""
    distro.environment = {}
    distro.write("run/systemd/container")
    (distro.root / "run/systemd/container").write_bytes(b"\xff\n")
    assert distro.run("--dry-run").stderr == "wsl-binfmt-generator: a container, \udcff: nothing to do\n"
