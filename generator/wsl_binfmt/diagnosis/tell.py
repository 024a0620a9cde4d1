# SPDX-License-Identifier: MIT
"""Printing a diagnosis: as text for users, and as JSON for programs."""

from __future__ import annotations

import time
from typing import Any, Dict, List, Tuple

from wsl_binfmt import command
from wsl_binfmt.diagnosis import machine as m
from wsl_binfmt.diagnosis import subject
from wsl_binfmt.diagnosis.about_protection import is_guarded, is_guarded_by_drop_in, unit
from wsl_binfmt.diagnosis.conclude import CATALOGUE, Diagnosis
from wsl_binfmt.diagnosis.problems import ERROR, NOTE, SERVICES, TERMINATE, WARNING, Found

# Of ECMA-48, for a terminal.
COLOURS = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "faint": "2"}
MARKS = {ERROR: ("✗", "red"), WARNING: ("!", "yellow"), NOTE: ("·", "faint")}
TEXT_MAX = 200  # characters of a text that comes from the machine


class Paint:
    """Symbols and colours, for a terminal that may have them; without them, words."""

    def __init__(self, *, symbols: bool = False, colours: bool = False) -> None:
        """symbols: whether this is for a terminal. colours: whether the user wants colours there."""
        self.symbols = symbols
        self._colours = colours

    def __call__(self, text: str, colour: str) -> str:
        """Give `text` a colour."""
        return f"\033[{COLOURS[colour]}m{text}\033[0m" if self._colours else text


def safe(text: str) -> str:
    """Make a text harmless for a terminal, and short."""
    escaped = command.printable(text)
    return escaped if len(escaped) <= TEXT_MAX else f"{escaped[:TEXT_MAX]}… ({len(text)} characters)"


def as_text(machine: m.Machine, found: Diagnosis, paint: Paint, *, verbose: bool = False) -> str:
    """Make the text for users. verbose: with all settings, units, drop-ins and repairs."""
    lines = [_answer(found, paint)]
    if found.launch and found.launch.started is not False:
        lines.append(f"  launched        {safe(found.launch.program)}: {safe(found.launch.detail)}")
    if not found.is_elsewhere:
        program = machine.program
        # PATH may lead elsewhere than the user thinks.
        if program and program.is_in_path and program.place.state == m.THERE and "/" not in program.asked:
            lines.append(f"  is at           {safe(program.place.path)}")
        lines += _handler(machine, found, verbose)
        lines += ["", *_protection(machine, paint, verbose)]
    for each in found.problems:
        lines += ["", *_problem(each, paint)]
    if not found.problems and found.works:
        text = "No problem found in what was looked at." if found.not_checked else "No problem found."
        lines += ["", paint(text, "green")]
    if found.not_checked:
        lines += ["", *(f"Not looked at: {safe(each)}." for each in found.not_checked)]
    if found.not_tried:
        option = "wsl-binfmt --launch" + ("" if machine.program is None else " PROGRAM")
        lines += ["", *(f"Not tried: {safe(each)}." for each in found.not_tried)]
        lines[-1] += f" `{option}` tries that."
    return "\n".join(lines)


def _answer(found: Diagnosis, paint: Paint) -> str:
    mark, colour = {True: ("✓", "green"), False: ("✗", "red"), None: ("?", "yellow")}[found.works]
    about = found.about
    verb, negated = ("start", "do not start") if about.name == "Windows programs" else ("starts", "does not start")
    name = safe(about.name)
    text = {
        True: f"{name} {verb} here" + (", as far as could be looked at." if found.not_checked else "."),
        False: f"{name} {negated} here.",
        None: f"Whether {name} {verb} here: could not tell.",
    }[found.works]
    if found.is_elsewhere:
        mark, colour, text = "·", "faint", "This is for WSL distros."
    elif found.is_off:
        text = f"{name} {negated} here, as /etc/wsl.conf says."
    elif "wrong-flags" in found.ids and found.works is False:
        text = f"{name} {verb} here without the first argument."
    return paint(f"{mark} {text}" if paint.symbols else text, colour)


def _handler(machine: m.Machine, found: Diagnosis, verbose: bool) -> List[str]:
    about = found.about
    if about.handler is None:
        if about.kind == subject.UNKNOWN or (machine.table.entries is None and not about.is_native):
            return []
        text = {
            subject.SCRIPT: f"{safe(machine.program.interpreter or 'nothing')}, which its first line names"
            if machine.program
            else "",
            subject.ELF: "the kernel itself: it is a program for this processor" if about.is_native else "no entry",
        }.get(about.kind, "no entry")
        lines = [f"  handled by      {text}"]
        if about.starts_windows is not False:
            verb = "starts" if about.starts_windows else "names"
            lines.append(f"  what it is      a script that {verb} a Windows program")
        return lines
    entry = about.handler
    text = f"{safe(entry.name)}, interpreter {safe(entry.interpreter)}, flags {safe(entry.flags) or 'none'}"
    lines = [f"  handled by      {text}, since {_time(entry.since)}"]
    if machine.program and about.kind == subject.WINDOWS and not about.is_ordinary:
        which = "that" if about.is_taken_by_specific else "no"
        lines.append(f"  what it is      it begins with MZ, and {which} entry is more specific than WSLInterop")
    if about.processor:
        lines.append(f"  what it is      a program for {about.processor}")
    if about.outranked:
        names = [safe(each.name) for each in about.outranked]
        lines.append(f"  it outranks     {', '.join(names if verbose else names[:5])}")
    return lines


def _protection(machine: m.Machine, paint: Paint, verbose: bool) -> List[str]:
    lines = [paint("Protection", "bold")]
    lines += [f"  {name:15} {text}" for name, text in _protection_rows(machine)]
    if verbose:
        lines += [f"  {'repair':15} {_time(each.at)} {safe(each.text)}" for each in _repairs(machine)]
        for setting in machine.conf.settings:
            lines.append(f"  {'setting':15} /etc/wsl.conf:{setting.line}: {safe(setting.name)}={safe(setting.value)}")
        for name, properties in (machine.protection.units or {}).items():
            lines += [f"  {'unit':15} {safe(name)}: {safe(properties.fragment)}"] * bool(properties.fragment)
            lines += [f"  {'drop-in':15} {safe(name)}: {safe(each.path)}" for each in properties.drop_ins]
    return lines


def _protection_rows(machine: m.Machine) -> List[Tuple[str, str]]:
    conf = machine.conf
    decided = f"protectBinfmt={_boolean(conf.protect)}, interop enabled={_boolean(conf.interop)}"
    origin = "by /etc/wsl.conf" if conf.settings else "by default"
    rows = [("settings", f"{decided}, {origin}" if _is_known(conf) else "could not tell")]
    state = protection(machine)
    effects = {True: "drop-in in effect", False: "no drop-in in effect", None: "could not tell"}
    for service in SERVICES:
        is_missing = unit(machine, service).load == "not-found"
        effect = "not installed, which is fine" if is_missing else effects[state["drop_ins"][service]]
        rows.append((service.partition(".")[0], effect))
    rows.append(("guard", {"ours": "active", "wsl": "active, it is WSL's own", "none": "not active"}[state["guard"]]))
    watch = state["watch"]
    text = {True: "active", False: "not active", None: "could not tell"}[watch["active"]]
    process = machine.protection.watch
    rows.append(("watch", text + (f" since {_time(process.since)}" if process else "")))
    if watch["repairs"] is not None:
        last = f", the last: {safe(watch['repairs'][-1])}" if watch["repairs"] else ""
        rows.append(("repairs", f"{len(watch['repairs'])} in the journal{last}"))
    return rows


def _problem(found: Found, paint: Paint) -> List[str]:
    symbol, colour = MARKS[found.severity]
    head = f"{symbol} " if paint.symbols else f"{found.severity}: "
    lines = [f"{paint(head + safe(found.summary), colour)} [{found.id}]"]
    lines += [f"    {safe(each)}" for each in found.evidence]
    if found.advice:
        lines.append(f"    {command.printable(found.advice)}")
    if found.fix:
        lines.append(f"    fix: {paint(found.fix, 'bold')}")
    if found.needs_restart:
        lines.append(f"    then: {TERMINATE}")
    return lines


def as_plain(machine: m.Machine, found: Diagnosis) -> Dict[str, Any]:
    """Make the object for programs, described in wsl-binfmt(1)."""
    entry = found.about.handler
    answer: Dict[str, Any] = {
        "version": 1,
        "works": found.works,
        "handler": entry
        and {
            "entry": entry.name,
            "interpreter": entry.interpreter,
            "flags": entry.flags,
            "registered": _iso(entry.since),
        },
        "protection": protection(machine) if not found.is_elsewhere else {},
        "problems": [
            {
                "id": each.id,
                "severity": each.severity,
                "summary": each.summary,
                "evidence": each.evidence,
                "advice": each.advice or None,
                "fix": each.fix,
                "needs_restart": each.needs_restart,
            }
            for each in found.problems
        ],
        "not_checked": found.not_checked,
        "not_tried": found.not_tried,
        "program": machine.program and {"path": machine.program.place.path, "kind": found.about.kind},
    }
    if found.launch:
        answer["launch"] = {
            "program": found.launch.program,
            "started": found.launch.started,
            "layer": found.launch.layer or None,
            "detail": found.launch.detail,
            "meaning": found.launch.meaning or None,
        }
    plain: Dict[str, Any] = _unicode(answer)
    return plain


def _unicode(value: Any) -> Any:
    """Escape lone surrogates, which not every reader of JSON takes."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_unicode(name): _unicode(each) for name, each in value.items()}
    return [_unicode(each) for each in value] if isinstance(value, list) else value


def protection(machine: m.Machine) -> Dict[str, Any]:
    """Tell what protects this distro; None for what could not be told."""
    state = machine.protection
    drop_ins = {
        name: is_guarded_by_drop_in(unit(machine, name)) if unit(machine, name).load == "loaded" else None
        for name in SERVICES
    }
    over = machine.table.over_status
    is_ours = "/wsl-binfmt-generator/status" in over.root if over else is_guarded(machine)
    is_known = state.is_watch_known
    return {
        "protect_binfmt": machine.conf.protect if _is_known(machine.conf) else None,
        "interop_enabled": machine.conf.interop if _is_known(machine.conf) else None,
        "drop_ins": drop_ins,
        "guard": "none" if not is_guarded(machine) else "ours" if is_ours else "wsl",
        "watch": {
            "active": (state.watch is not None) if is_known or state.watch else None,
            "since": _iso(state.watch.since) if state.watch else None,
            "repairs": None if state.messages is None else [each.text for each in _repairs(machine)],
        },
    }


def _repairs(machine: m.Machine) -> List[m.Message]:
    return [each for each in machine.protection.messages or [] if each.is_repair]


def _is_known(conf: m.Conf) -> bool:
    return conf.state in (m.THERE, m.GONE)


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _boolean(value: bool) -> str:
    return "true" if value else "false"


def list_problems() -> str:
    """List the id of every problem, its usual severity and its meaning."""
    width = max(map(len, CATALOGUE))
    return "\n".join(f"{each.id:{width}}  {each.severity:7}  {each.meaning}" for each in CATALOGUE.values())


def explain(name: str) -> str:
    """Explain a problem."""
    each = CATALOGUE[name]
    return f"{each.id} ({each.severity})\n\n{each.meaning}\n\n{each.explanation}"
