# SPDX-License-Identifier: MIT
"""`make pictures`: terminals as they look, into docs/ as SVG, and what they say into README.md."""

from __future__ import annotations

import subprocess
import sys
import time

from rich.console import Console
from rich.text import Text

import bed
import document

DOCS = bed.TREE / "docs"
README = bed.TREE / "README.md"
WINE = ":wine:M::MZ::/usr/bin/wine:\n"


def draw(name: str, title: str, said: str) -> None:
    """Draw a terminal; said: what is on it, with the escape sequences of colours."""
    lines = said.replace("\r", "").rstrip("\n").split("\n")
    with open("/dev/null", "w") as nowhere:
        console = Console(record=True, width=max(len(Text.from_ansi(line)) for line in lines) + 1, file=nowhere)
        for line in lines:
            console.print(Text.from_ansi(line), no_wrap=True)
        # The id makes the text the same each time.
        (DOCS / f"{name}.svg").write_text(console.export_svg(title=title, unique_id=name))


def draw_demo() -> None:
    """Draw what `make demo` prints, without the files at its end."""
    done = subprocess.run([sys.executable, "-B", bed.HERE / "demo.py"], stdout=subprocess.PIPE, text=True, check=True)
    draw("demo", "make demo", f"# make demo\n{done.stdout.partition('What the generator wrote')[0]}")


def draw_status() -> None:
    """Draw wsl-binfmt where wine has taken Windows programs over, and have the README say the same."""
    files = {"/etc/binfmt.d/wine.conf": WINE, "/usr/local/bin/sudo": ""}
    with bed.Vm() as vm, vm.distro(files=files) as distro:
        distro.shell("chmod +x /usr/local/bin/sudo")
        # As on a machine that was not protected when wine was installed.
        distro.systemctl("stop", "wsl-binfmt-watch.service")
        vm.write("wine", "-1")
        vm.register(WINE)
        time.sleep(0.1)
        terminal = distro.shell("TERM=xterm script --quiet --command wsl-binfmt /dev/null", check=False)
        plain = distro.run("wsl-binfmt", check=False)
    draw("status", "wsl-binfmt", f"$ wsl-binfmt\n{terminal}")
    block = "".join(f"    {line}".rstrip() + "\n" for line in ["$ wsl-binfmt", *plain.rstrip("\n").split("\n")])
    document.put(README, "make pictures", block)


def main() -> int:
    """Draw all; returns the exit status."""
    reason = bed.unavailable()
    if reason:
        print(f"make pictures {reason}")
        return 1
    draw_demo()
    draw_status()
    return 0


if __name__ == "__main__":
    sys.exit(main())
