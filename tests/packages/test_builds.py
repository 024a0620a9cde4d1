# SPDX-License-Identifier: MIT
"""The three packages: the same every time, with the same files, and nothing to complain of."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import bed
import roots

if TYPE_CHECKING:
    from collections.abc import Callable

    Clone = Callable[[Path], Path]
    Make = Callable[..., None]

pytestmark = pytest.mark.packages

PACKAGING = bed.TREE / "packaging"
VERSION = re.findall('^VERSION = "(.*)"$', (bed.TREE / "generator/wsl-binfmt-generator").read_text(), re.MULTILINE)[0]


def run(*args: str | Path, **options: Any) -> str:
    """Run a command; returns what it printed, on both channels."""
    done = subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout
    return str(done.stdout)


def built(release: Path, pattern: str) -> Path:
    """The one file of that name in dist/."""
    (path,) = (release / "dist").glob(pattern)
    return path


def files(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and content of the files of a package, by path, but for what each has of its own.

    That is its documentation, what Debian has for lintian and dh_python3 and Arch for pacman, compiled
    modules (`make install` has them, packages compile at the installation) and compression.
    """
    result = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        own = re.match(r"\.|usr/share/(doc|libalpm|licenses|lintian|python3)/", name) or name.endswith(".pyc")
        if path.is_file() and not own:
            content = run("gzip", "-dc", path) if name.endswith(".gz") else path.read_text()
            # Debian's zsh has a directory for packages.
            name = name.replace("zsh/vendor-completions/", "zsh/site-functions/").removesuffix(".gz")
            result[name] = path.stat().st_mode, content.encode()
    return result


def unpacked(release: Path, target: Path, kind: str) -> Path:
    """Unpack a package; returns `target`."""
    target.mkdir()
    if kind == "deb":
        run("dpkg-deb", "--extract", built(release, "*.deb"), target)
    elif kind == "rpm":
        run("sh", "-ec", 'rpm2archive - <"$0" | tar -x -z', built(release, "*.rpm"), cwd=target)
    else:
        run("tar", "-x", "-f", built(release, "*.pkg.tar.*"), cwd=target)
    return target


def test_the_same_files_in_all(release: Path, tmp_path: Path, make: Make) -> None:
    make(release, "install", f"DESTDIR={tmp_path / 'installed'}")
    expected = files(tmp_path / "installed")
    assert "usr/lib/systemd/system-generators/wsl-binfmt-generator" in expected
    assert "usr/share/man/man8/wsl-binfmt-generator.8" in expected
    for kind in "deb", "rpm", "arch":
        assert files(unpacked(release, tmp_path / kind, kind)) == expected


def test_nothing_where_it_must_not_be(release: Path, tmp_path: Path) -> None:
    for kind in "deb", "rpm", "arch":
        directory = unpacked(release, tmp_path / kind, kind)
        assert [path.name for path in directory.iterdir() if not path.name.startswith(".")] == ["usr"]
        assert [path.name for path in (directory / "usr/lib/systemd/system-generators").iterdir()] == [
            "wsl-binfmt-generator"
        ]
        assert not [*directory.rglob("*.pyc")]


@pytest.mark.parametrize("asked", [False, True])
def test_no_debian_package_is_installed_unasked(tmp_path: Path, asked: bool) -> None:
    """On a machine where none is installed, `make deps` installs them, and nothing else does."""
    tools = {"dpkg-query": "exit 1", "apt-get": 'echo "apt-get $*"; [ "$1" = update ]', "id": "echo 0"}
    for name, script in tools.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["make", "--silent", "-C", bed.TREE, *["deps"] * asked, "deb", "demo"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    # This apt-get fails, and make ends there.
    assert done.returncode == 2
    said = re.findall(r"^ *apt-get (\w+)", done.stdout, re.MULTILINE)
    assert said == (["update", "install"] if asked else ["install"])
    assert {*re.findall("(debhelper|gcc|lintian)", done.stdout)} == {"debhelper", "gcc"}
    assert done.stdout.startswith("Installing " if asked else "Some Debian packages are missing. Run this as root:\n")


@pytest.mark.parametrize("tree", ["clone", "release"])
def test_built_elsewhere_they_are_the_same(release: Path, tmp_path: Path, clone: Clone, make: Make, tree: str) -> None:
    """From a clone and from an unpacked release: in another folder, time zone and locale, with another umask."""
    path = tmp_path / tree
    if tree == "clone":
        clone(path)
    else:
        path.mkdir()
        run("tar", "-x", "--strip-components=1", "-f", built(release, f"*-{VERSION}.tar.gz"), cwd=path)
    make(path, "deb", umask=0o077, env={**os.environ, "TZ": "Asia/Tokyo", "LC_ALL": "C.UTF-8"})
    for pattern in "*.deb", "*.dsc", f"*-{VERSION}.tar.gz":
        assert built(path, pattern).read_bytes() == built(release, pattern).read_bytes()


def test_built_on_another_day_they_are_the_same(release: Path, tmp_path: Path, clone: Clone) -> None:
    """Years later, all that the three packages install is the same, and so is all of the Debian one."""
    tree = clone(tmp_path / "tree")
    shared = Path("/dev/shm")
    there = set(shared.glob("*faketime*"))
    try:
        run("faketime", "2031-07-01 12:00:00", "make", "--silent", "-C", tree, "deb", "rpm", "arch")
    finally:
        # What a program with an environment of its own has made there stays.
        for path in set(shared.glob("*faketime*")) - there:
            path.unlink()
    for pattern in "*.deb", "*.dsc", f"*-{VERSION}.tar.gz":
        assert built(tree, pattern).read_bytes() == built(release, pattern).read_bytes()
    for kind in "rpm", "arch":
        later, before = unpacked(tree, tmp_path / f"{kind}-later", kind), unpacked(release, tmp_path / kind, kind)
        assert files(later) == files(before)


def test_the_source_package_alone_is_built_by_the_usual_command(release: Path, tmp_path: Path, make: Make) -> None:
    """As a distribution does it, and again in the same tree; of that, the release is the same."""
    tree = tmp_path / "tree"
    run("dpkg-source", "--extract", built(release, "*.dsc"), tree)
    shutil.copy(built(release, "*.orig.tar.gz"), tmp_path)
    for _ in range(2):
        run("dpkg-buildpackage", "--no-sign", cwd=tree)
        for pattern in "*.deb", "*.dsc":
            (path,) = tmp_path.glob(pattern)
            assert path.read_bytes() == built(release, pattern).read_bytes()
            path.unlink()
    make(tree, "dist")
    assert built(tree, "*.tar.gz").read_bytes() == built(release, "*.orig.tar.gz").read_bytes()


LINTIAN = "lintian", "--allow-root", "--pedantic", "--display-info"
# What is out of date in Debian 12's lintian: the Policy of today is newer, and has no init scripts. That of sid takes
# an override of the second for an error, as it does not know it.
OUTDATED = "newer-standards-version,package-supports-alternative-init-but-no-init.d-script"
# What sid's lintian advises to change and Debian 12 needs to build the package; and a file that would say nothing.
PEDANTIC = (
    "package-uses-old-debhelper-compat-version,redundant-priority-optional-field,redundant-rules-requires-root-no-field,"
    "upstream-metadata-file-is-missing"
)


def test_lintian_has_nothing_to_say(release: Path, tmp_path: Path) -> None:
    (changes,) = (release / "build/deb").glob("*.changes")
    # It leaves files behind.
    assert run(*LINTIAN, f"--suppress-tags={OUTDATED}", changes, env={**os.environ, "TMPDIR": str(tmp_path)}) == ""


def test_lintian_of_sid_has_nothing_to_say(release: Path) -> None:
    root = roots.make("sid", "lintian")
    script = (
        'mount --bind "$1" "$2/mnt"; mount -t proc proc "$2/proc"; mount -t tmpfs tmpfs "$2/tmp"; root=$2; shift 2; '
        'cd /; exec chroot "$root" sh -c \'cd /mnt; exec "$@" ./*.changes\' sh "$@"'
    )
    command = *LINTIAN, f"--suppress-tags={PEDANTIC}"
    assert run("unshare", "--mount", "sh", "-ec", script, "sh", release / "build/deb", root, *command) == ""


# What rpmlint may say of the recipe and of the packages, and why it is so.
RPMLINT = {
    "dangerous-command-in-%filetrigger rm": "compiled modules",
    "dangerous-command-in-%post rm": "what version 0.2.0 has left in /run",
    "dangerous-command-in-%posttrans rm": "compiled modules",
    "dangerous-command-in-%postun rm": "/run/wsl-binfmt",
    "dangerous-command-in-%preun rm": "compiled modules",
    "hardcoded-library-path": "systemd, of any architecture, has its own in /usr/lib, and so does this",
    "invalid-url Source0:": "nothing is published yet",
    "manpage-not-compressed bz2": "Debian's rpmbuild leaves them as they are, a distribution's compresses them",
    "no-buildroot-tag": "for rpm before 4.6",
    "no-group-tag": "neither Fedora nor openSUSE wants it",
    "no-manual-page-for-binary wsl-binfmt": "it looks for a compressed one",
    "no-packager-tag": "who builds it sets it",
    "no-signature": "who publishes it signs it",
    "no-url-tag": "nothing is published yet",
    "only-non-binary-in-usr-lib": "as hardcoded-library-path",
}


def test_rpmlint_has_nothing_else_to_say(release: Path, tmp_path: Path) -> None:
    settings = tmp_path / "rpmlint.toml"
    # Debian's knows of no licence; and which words a spelling checker knows depends on the machine.
    settings.write_text('ValidLicenses = ["MIT"]\nUseEnchant = false\n')
    spec = release / f"build/dist/wsl-binfmt-generator-{VERSION}/packaging/rpm/wsl-binfmt-generator.spec"
    packages = [*(release / "build/rpm/SRPMS").iterdir(), built(release, "*.rpm")]
    done = subprocess.run(
        ["rpmlint", "--config", settings, spec, *packages], stdout=subprocess.PIPE, text=True, check=False
    )
    said = re.findall(r"^\S+: [EW]: (.*)$", done.stdout, re.MULTILINE)
    assert [line for line in said if not line.startswith(tuple(RPMLINT))] == []
    assert [known for known in RPMLINT if not any(line.startswith(known) for line in said)] == []


def test_the_rpm_can_be_tested_when_it_is_built(release: Path, tmp_path: Path) -> None:
    """Where what the unit tests need is packaged, as it is in the environment of this test."""
    said = run(
        "rpmbuild", "-ta", "--nodeps", "--with=check", f"--define=_topdir {tmp_path}",
        f"--define=__python3 {sys.executable}", built(release, f"*-{VERSION}.tar.gz"),
        env={**os.environ, "PYTEST_ADDOPTS": "--hypothesis-profile=few"},
    )  # fmt: skip
    assert f"+ make unit PYTHON={sys.executable}\n" in said
    assert "warning:" not in said


@pytest.mark.parametrize("url", ["", "https://example.org/w"])
def test_the_recipes_are_complete(release: Path, tmp_path: Path, clone: Clone, make: Make, url: str) -> None:
    """What is left to put in is put in, and the address if there is one."""
    tree = clone(tmp_path / "tree") if url else release
    # A release that was made without an address has no place for one.
    url = url if "@URL@" in (PACKAGING / "arch/PKGBUILD").read_text() else ""
    if tree != release:
        make(tree, "arch", *[f"URL={url}"] * bool(url))
    recipe = built(tree, "PKGBUILD").read_text()
    digest = hashlib.sha256(built(tree, f"*-{VERSION}.tar.gz").read_bytes()).hexdigest()
    assert f"sha256sums=({digest})\n" in recipe
    spec = (tree / f"build/dist/wsl-binfmt-generator-{VERSION}/packaging/rpm/wsl-binfmt-generator.spec").read_text()
    assert re.findall("^url=.*$", recipe, re.MULTILINE) == ([f"url='{url}'"] if url else [])
    assert re.findall("^URL: *(.*)$", spec, re.MULTILINE) == ([url] if url else [])
    for text in recipe, spec, built(tree, "*.install").read_text():
        assert not re.search("@[A-Z]+@|SKIP|# include", text)


def test_the_changelog_is_in_the_rpm(release: Path, tmp_path: Path) -> None:
    said = run("rpm", f"--dbpath={tmp_path}", "-qp", "--changelog", built(release, "*.rpm"))
    versions = re.findall(r"^\* \w+ \w+ \d+ \d+ The .* - (.*)-1$", said, re.MULTILINE)
    assert versions == re.findall(r"^## (\S+) ", (bed.TREE / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == VERSION


def test_overrides_are_explained() -> None:
    for path in PACKAGING.glob("debian/**/*lintian-overrides"):
        lines = path.read_text().splitlines()
        assert lines[0].startswith("#")
        assert [line for line, before in zip(lines[1:], lines) if line[0] != "#" and before[0] != "#"] == []


def test_uninstall(tmp_path: Path, make: Make) -> None:
    make(bed.TREE, "install", f"DESTDIR={tmp_path}")
    assert (tmp_path / "usr/share/man/man8/wsl-binfmt-generator.8").exists()
    make(bed.TREE, "uninstall", f"DESTDIR={tmp_path}")
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []
    assert list((tmp_path / "usr/lib").rglob("*wsl*")) == []


def test_the_version_is_the_same_in_all(release: Path, tmp_path: Path) -> None:
    assert run("dpkg-deb", "--field", built(release, "*.deb"), "Version") == f"{VERSION}-1\n"
    assert run("rpm", f"--dbpath={tmp_path}", "-qp", "--queryformat=%{VERSION}", built(release, "*.rpm")) == VERSION
    assert built(release, "*.pkg.tar.*").name.startswith(f"wsl-binfmt-generator-{VERSION}-1-any.")
    for page in "wsl-binfmt-generator.8", "wsl-binfmt.1":
        assert f'"wsl-binfmt-generator {VERSION}"' in (release / "build/man" / page).read_text()
    directory = unpacked(release, tmp_path / "deb", "deb")
    modules = directory / "usr/lib/wsl-binfmt-generator"
    code = f"import sys; sys.path.insert(0, {str(modules)!r}); from wsl_binfmt.command import main; main()"
    assert run("python3", "-c", code, "--version") == f"wsl-binfmt {VERSION}\n"
    generator = directory / "usr/lib/systemd/system-generators/wsl-binfmt-generator"
    assert run(generator, "--version") == f"wsl-binfmt-generator {VERSION}\n"


def test_without_a_changelog_of_the_version_nothing_is_built(tmp_path: Path, clone: Clone, make: Make) -> None:
    tree = clone(tmp_path / "tree")
    changes = tree / "CHANGELOG.md"
    changes.write_text(changes.read_text().replace(f"## {VERSION} ", "## 0.0.1 "))
    with pytest.raises(AssertionError, match=re.escape(f'does not begin with "## {VERSION} (YYYY-MM-DD)"')):
        make(tree, "deb")
    assert not list(tree.glob("dist/*"))


def test_another_prefix(release: Path, tmp_path: Path, make: Make) -> None:
    make(release, "install", f"DESTDIR={tmp_path}", "PREFIX=/usr/local")
    assert [path.name for path in (tmp_path / "usr").iterdir()] == ["local"]
    for name, (_, content) in files(tmp_path).items():
        # What is the system's own stays where it is.
        found = re.findall(rb"/usr/(?!local/)\S*wsl-binfmt[^\s\"]*|/usr/lib/systemd/system/", content)
        assert found == [], name


def test_without_scdoc_it_installs_all_but_the_pages(release: Path, tmp_path: Path, make: Make) -> None:
    make(release, "install", f"DESTDIR={tmp_path}", "SCDOC=")
    assert (tmp_path / "usr/bin/wsl-binfmt").exists()
    assert not (tmp_path / "usr/share/man").exists()


def test_shell_scripts(release: Path) -> None:
    debian = release / "build/deb" / f"wsl-binfmt-generator-{VERSION}" / "debian/wsl-binfmt-generator/DEBIAN"
    scripts = [
        PACKAGING / "takes-effect.sh",
        *(debian / name for name in ("postinst", "prerm", "postrm")),
    ]
    scripts += [PACKAGING / "debian/tests" / name for name in ("takes-effect", "goes-away", "elsewhere")]
    for script in scripts:
        run("sh", "-n", script)
    scripts.append(bed.TREE / "tests/on-wsl/check.sh")
    run(
        "shellcheck",
        "--external-sources",
        *scripts,
        PACKAGING / "arch/PKGBUILD",
        PACKAGING / "completion/wsl-binfmt.bash",
    )
    install = release / "build/arch/wsl-binfmt-generator.install"
    run("shellcheck", install)
    for name in "takes_effect", "goes", "is_gone":
        assert f"wsl_binfmt_{name}() {{" in install.read_text()
        assert f"wsl_binfmt_{name}() {{" in run("rpm", "-qp", "--scripts", built(release, "*.rpm"))
