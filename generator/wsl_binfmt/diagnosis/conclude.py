# SPDX-License-Identifier: MIT
"""The answer, from a machine alone: whether the program starts, what handles it, and every problem."""

from __future__ import annotations

from typing import Dict, Iterator, List, NamedTuple, Optional

from wsl_binfmt.diagnosis import (
    about_file,
    about_program,
    about_protection,
    about_rules,
    about_session,
    about_settings,
    about_table,
    launch,
    subject,
)
from wsl_binfmt.diagnosis import machine as m
from wsl_binfmt.diagnosis.problems import (
    ELSEWHERE,
    ERROR,
    FILE,
    NOTE,
    PROBLEMS,
    SEVERITIES,
    WARNING,
    WINDOWS,
    Found,
    Problem,
    is_pending,
    said_of,
)

WORKS, FAILS, USAGE, IS_ELSEWHERE, UNKNOWN = range(5)  # exit status
# The most harmful problems come first: in the first of these modules, and at the beginning of each.
MODULES = [
    module.__name__
    for module in (about_file, about_program, about_table, about_session, about_protection, about_rules, about_settings)
]
CATALOGUE: Dict[str, Problem] = {
    each.id: each for each in sorted(PROBLEMS.values(), key=lambda each: MODULES.index(each.check.__module__))
}
# The keys of a machine's `unknown`, in words for users.
SUBJECTS = {
    "system": "what this machine is",
    "conf": "/etc/wsl.conf",
    "generated": "what the generator has written",
    "mounts": "what is mounted",
    "table": "the entries of the table",
    "units": "the units",
    "journal": "the journal",
    "rules": "the rules of binfmt.d",
    "session": "this session",
    "program": "the file of the program",
    "watch": "the process of the watch",
    "cwd": "the current directory",
}


class Diagnosis(NamedTuple):
    """The answer."""

    works: Optional[bool]  # whether the program starts; None: could not tell
    about: subject.Subject
    problems: List[Found]
    not_checked: List[str]  # what was not looked at, and why
    not_tried: List[str]  # what only a launch can tell
    launch: Optional[launch.Outcome]

    @property
    def ids(self) -> List[str]:
        """Ids of the problems."""
        return [found.id for found in self.problems]

    @property
    def is_elsewhere(self) -> bool:
        """Whether this is not a WSL distro. Then that is the whole answer."""
        return any(CATALOGUE[found.id].about == ELSEWHERE for found in self.problems)

    @property
    def is_off(self) -> bool:
        """Whether Windows programs do not start because they are switched off."""
        return "interop-off" in self.ids and not self.works

    def exit_status(self, *, fail_on_warning: bool = False) -> int:
        """Make the exit status."""
        if self.is_elsewhere or self.is_off:
            return IS_ELSEWHERE
        if self.works is None:
            return UNKNOWN
        at_risk = fail_on_warning and any(found.severity != NOTE for found in self.problems)
        return WORKS if self.works and not at_risk else FAILS


def conclude(machine: m.Machine) -> Diagnosis:
    """Make the answer."""
    broken: List[str] = []
    about = subject.of(machine)
    elsewhere = [found for found in _find(machine, about, broken) if CATALOGUE[found.id].about == ELSEWHERE]
    if elsewhere:
        return Diagnosis(None, about, elsewhere, broken, [], None)
    outcome = launch.outcome(machine)
    problems = list(_find(machine, about, broken))
    if outcome and outcome.started:
        problems = list(_not_refuted(problems))
    ids = list(CATALOGUE)
    problems.sort(key=lambda found: (SEVERITIES.index(found.severity), ids.index(found.id)))
    not_checked = [*_not_checked(machine, about), *broken]
    works = _works(machine, about, problems, outcome, broken)
    not_tried = list(_not_tried(machine)) if works and about.is_for_windows and not outcome else []
    return Diagnosis(works, about, problems, not_checked, not_tried, outcome)


def _find(machine: m.Machine, about: subject.Subject, broken: List[str]) -> Iterator[Found]:
    """Find all problems that concern the program. broken: this adds to it what could not be checked."""
    for problem in CATALOGUE.values():
        if problem.about == WINDOWS and not about.is_for_windows:
            continue
        try:
            for found in list(problem.find(machine)):
                # If the kernel runs the program without the table, an error of the table is only a warning.
                is_apart = not about.needs_table and not about.starts_windows
                is_apart = is_apart and problem.about != FILE and found.severity == ERROR
                yield found._replace(severity=WARNING, works=True) if is_apart else found
        except Exception as e:
            text = f"whether there is the problem {problem.id}: unexpected {type(e).__name__}, please report it: {e}"
            if text not in broken:
                broken.append(text)


def _not_refuted(problems: List[Found]) -> Iterator[Found]:
    """Leave out what a launch that succeeded has refuted; what could not be told without it remains as a warning."""
    for found in problems:
        if found.severity != ERROR:
            yield found
        elif found.works is None:
            yield found._replace(severity=WARNING)


def _works(
    machine: m.Machine,
    about: subject.Subject,
    problems: List[Found],
    outcome: Optional[launch.Outcome],
    broken: List[str],
) -> Optional[bool]:
    if outcome and outcome.started is not None:
        return outcome.started
    answers = [found.works for found in problems]
    if False in answers or "interop-off" in [found.id for found in problems]:
        return False
    if outcome or broken or None in answers:
        return None
    if machine.program and machine.program.start is None:
        return None
    if about.needs_table and machine.table.entries is None:
        return None
    return about.handler is not None or not about.needs_table


def _not_tried(machine: m.Machine) -> Iterator[str]:
    session = machine.session
    if session.run_wsl != m.THERE and not session.wsl_interop:
        yield f"whether /init finds a socket to Windows: of /run/WSL, {said_of(session.run_wsl)}"
    yield "whether Windows answers"


def _not_checked(machine: m.Machine, about: subject.Subject) -> Iterator[str]:
    for name, reason in machine.unknown.items():
        yield f"{SUBJECTS.get(name, name)}: {said_of(reason)}"
    if machine.table.entries is not None and machine.table.is_switched_on is None:
        who = "only root can see that, run this with sudo" if machine.session.uid else "it cannot be seen from here"
        yield f"whether the whole table is switched off: {who}"
    if machine.conf.state == m.MAY_NOT_LOOK:
        yield "/etc/wsl.conf: this user may not read it"
    if not machine.protection.is_watch_known and machine.protection.units is not None:
        yield "whether the watch runs: this user may not see the processes of others"
    program = machine.program
    if program and program.start is None and program.place.state == m.THERE and program.kind == "file":
        yield f"how {program.place.path} begins: this user may not read it, or it does not answer"
    if not about.is_for_windows or (machine.launch and machine.launch.status == 0):
        return
    chosen = about_session.chosen_socket(machine)
    if chosen and chosen.is_listening is None:
        yield f"whether something listens at {chosen.path}: this user may not connect to it, or it does not answer"
    cwd = machine.session.cwd
    if cwd.path and cwd.state not in (m.THERE, m.GONE, m.NO_ANSWER) and not about_session.cwd_barrier(machine):
        yield f"whether Windows may enter the current directory: {said_of(cwd.state)}"
    if is_pending(machine):
        yield "whether Windows programs were switched off when this distro started: /etc/wsl.conf has changed since"
