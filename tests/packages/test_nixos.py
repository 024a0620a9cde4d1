# SPDX-License-Identifier: MIT
"""The module for NixOS, as far as it can be tried without Nix: it is parsed, and its build steps are run."""

from __future__ import annotations

import re
import shutil
import subprocess
import textwrap
from typing import TYPE_CHECKING

import pytest
import tree_sitter
import tree_sitter_nix

import bed

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.packages

MODULE = bed.TREE / "packaging/nixos/module.nix"
# Where the store would have what is not of this package.
STORE = "/nix/store/"
# What nixpkgs has of it, and installs by: a text that is not there is an error.
STDENV = r"""
substituteInPlace() {
        files=
        while [ "${1#--}" = "$1" ]; do
                files="$files $1"
                shift
        done
        while [ $# -gt 0 ]; do
                [ "$1" = --replace-fail ]
                for file in $files; do
                        grep -q -e "$2" "$file"
                        sed -i "s,$2,$3,g" "$file"
                done
                shift 3
        done
}
"""
# Of other packages: what Nix writes anew in first lines, and what NixOS does not have.
OTHERS = {"/bin/sh", "/usr/bin/python3", "/usr/sbin/update-binfmts", "/usr/lib/binfmt-support/run-detectors"}


def steps() -> dict[str, str]:
    """Texts and lists of the derivation, by name, with paths of the store for packages."""
    source = MODULE.read_bytes()
    root = tree_sitter.Parser(tree_sitter.Language(tree_sitter_nix.language())).parse(source).root_node
    assert not root.has_error
    found = re.findall(r"^    (\w+) = (?:''\n(.*?)^    ''|\[ (.*?) \]);$", source.decode(), re.MULTILINE | re.DOTALL)
    return {
        name: re.sub(r"\$\{(?:\w+\.)+([\w-]+)\}", rf"{STORE}\1", textwrap.dedent(text or items))
        for name, text, items in found
    }


def test_its_build_steps(release: Path, tmp_path: Path) -> None:
    """What is installed has no path of a system that has /usr, but for those that Nix sees to."""
    (tree,) = (release / "build/dist").iterdir()
    build, out = steps(), tmp_path / "out"
    script = (
        f"{STDENV}\n{build['postPatch']}\nmake --silent {build['buildFlags']}\n"
        f"make --silent install {build['installFlags']}\n{build['postInstall']}"
    ).replace('"PREFIX=$(out)"', "PREFIX=$out")
    shutil.copytree(tree, tmp_path / "tree", symlinks=True)
    done = subprocess.run(
        ["sh", "-ec", script], cwd=tmp_path / "tree", env={"PATH": "/usr/bin:/bin", "out": str(out)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    compiled = {path.name.split(".")[0] for path in out.rglob("*.pyc")}
    assert {"command", "watch"} <= compiled
    found: set[str] = set()
    for path in out.rglob("*"):
        # What is in share/ and of the diagnosis names paths for people.
        if path.is_file() and path.suffix != ".pyc" and not {"share", "diagnosis"}.intersection(path.parts):
            found |= set(re.findall(r"(?<![\w/}.-])/(?:usr|bin|sbin|lib)/[\w./-]+\w", path.read_text()))
    searched = {path for path in found if path.rpartition("/")[2] in ("binfmt.d", "lib", "system")}
    assert found - searched == OTHERS
