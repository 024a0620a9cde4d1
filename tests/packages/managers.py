# SPDX-License-Identifier: MIT
"""The package managers, and what all packages have in common once they are installed."""

from __future__ import annotations

from typing import NamedTuple

import bed
from checks import eventually

MODULES = "/usr/lib/wsl-binfmt-generator/wsl_binfmt"


class Manager(NamedTuple):
    """How a package manager is used where it has installed nothing else."""

    packages: str
    install: tuple[str, ...]
    remove: tuple[str, ...]
    # How the lines begin that it prints itself.
    says: tuple[str, ...]

    def beside_its_own(self, printed: str) -> str:
        """The lines of what was printed that are not its own."""
        return "".join(line for line in printed.splitlines(keepends=True) if not line.startswith((*self.says, "\n")))


DPKG_SAYS = (
    "Selecting previously", "(Reading database", "Preparing to unpack", "Unpacking ", "Setting up ", "Removing ",
    "Purging configuration", "Processing triggers for man-db", "dpkg: warning: downgrading",
    # See the fixture `boot`.
    "Not building database;",
    # systemd of Debian 12 has its own in /lib/systemd/system-generators, which is the same.
    "dpkg: warning: while removing wsl-binfmt-generator, directory '/usr/lib/systemd/system-generators' not empty",
)  # fmt: skip
PACMAN_SAYS = (
    "loading packages...", "looking for conflicting packages...", "Packages (1) ", "Total Installed Size: ",
    ":: Proceed with installation? ", "checking ", "loading package files...", ":: Processing package changes...",
    "installing wsl-binfmt-generator...", ":: Running post-transaction hooks...",
)  # fmt: skip
RPM = "rpm", "--force-debian", "--nodeps"
PACMAN = "pacman", "--noconfirm", "--nodeps", "--nodeps"
MANAGERS = {
    "dpkg": Manager("*.deb", ("dpkg", "--install"), ("dpkg", "--purge"), DPKG_SAYS),
    "rpm": Manager("*.noarch.rpm", (*RPM, "--upgrade"), (*RPM, "--erase"), ()),
    "pacman": Manager("*.pkg.tar.*", (*PACMAN, "--upgrade", "--overwrite=*"), (*PACMAN, "--remove"), PACMAN_SAYS),
}


# The watch of version 0.2.0.
PREVIOUS_WATCH = "wsl-binfmt.service"
# Leaves the temporary entry and the state file of version 0.2.0, as its binfmt-support.service did when it was killed.
KILLED = "INVOCATION_ID=1 /usr/lib/wsl-binfmt-generator/service-hook starting binfmt-support.service yes"


def assert_that_the_previous_release_is_gone(distro: bed.Distro) -> None:
    """Its watch has been stopped, and neither its files in /run nor its temporary entries are left."""
    units = distro.systemctl("list-units", "--all", "--plain", "--no-legend", "wsl-binfmt*")
    assert {line.split()[0] for line in units.splitlines()} <= {"wsl-binfmt-watch.service", "wsl-binfmt-boot.service"}
    assert distro.systemctl("is-active", "wsl-binfmt-watch.service").strip() == "active"
    assert distro.shell("pgrep --count --full '[w]sl-binfmt watch'").strip() == "1"
    # The watch writes its file when the table has settled.
    eventually(lambda: distro.run("ls", "-A", "/run/wsl-binfmt").split() == ["state"])
    assert "-held-by-" not in distro.run("ls", bed.TABLE)


def compiled_for(distro: bed.Distro) -> str:
    """The Python that all modules are compiled for, which takes them, and for which nothing else is."""
    modules = {path.with_suffix("") for path in distro.path(MODULES).rglob("*.py")}
    compiled = [(path.parent.parent, path.name.split(".")) for path in distro.path(MODULES).rglob("__pycache__/*")]
    assert sorted(directory / parts[0] for directory, parts in compiled) == sorted(modules)
    (tag,) = {parts[1] for _, parts in compiled}
    said = distro.run("/usr/bin/python3", "-v", "-BIS", "/usr/bin/wsl-binfmt", "--version")
    assert f"code object from '{MODULES}/__pycache__/command.{tag}.pyc'" in said
    assert f"code object from {MODULES}/" not in said
    return tag
