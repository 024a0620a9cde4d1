# SPDX-License-Identifier: MIT
"""Prints the list of problems for wsl-binfmt(1), in scdoc(5)'s syntax: they have their meanings in one place."""

import re
import textwrap

from wsl_binfmt.diagnosis import conclude

for problem in conclude.CATALOGUE.values():
    meaning = re.sub(r"([\\*_#~.])", r"\\\1", problem.meaning)
    lines = "\n\t".join(textwrap.wrap(meaning, 70))
    print(f"*{problem.id}*, {problem.severity}\n\t{lines}\n")
