# SPDX-License-Identifier: MIT
"""How a diagnosis is said: as text for people, and as JSON for programs."""

from __future__ import annotations

import json
import time
from typing import Any

from wsl_binfmt import command, diagnosis, facts, formats, launch, table

# Of ECMA-48, for a terminal.
COLOURS = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "faint": "2"}
MARKS = {diagnosis.ERROR: ("✗", "red"), diagnosis.WARNING: ("!", "yellow"), diagnosis.NOTE: ("·", "faint")}
TEXT_MAX = 200  # characters of what somebody else has named


class Paint:
    """Symbols and colours, for a terminal that may have them; without them, words."""

    def __init__(self, *, symbols: bool, colours: bool) -> None:
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


def as_text(
    seen: facts.Facts,
    found: diagnosis.Diagnosis,
    paint: Paint,
    launched: launch.Launch | None = None,
    *,
    verbose: bool = False,
) -> str:
    """Make the text for people. launched: what came of a launch. verbose: with all that was looked at."""
    lines = [_answer(found, paint)]
    if launched:
        lines.append(f"  launched        {safe(launched.program)}: {safe(launched.detail)}")
    if not seen.elsewhere:
        lines += _handler(seen, found, verbose)
        lines += ["", *_protection(seen, paint, verbose)]
    for problem in found.problems:
        lines += ["", *_problem(problem, paint)]
    if not found.problems and found.works:
        text = "No problem found in what was looked at." if found.not_checked else "No problem found."
        lines += ["", paint(text, "green")]
    if found.not_checked:
        lines += ["", *(f"Not looked at: {each}." for each in found.not_checked)]
    return "\n".join(lines)


def _answer(found: diagnosis.Diagnosis, paint: Paint) -> str:
    mark, colour, text = {
        True: ("✓", "green", "Windows programs start here."),
        False: ("✗", "red", "Windows programs do not start here."),
        None: ("?", "yellow", "Whether Windows programs start here: could not tell."),
    }[found.works]
    if found.works and found.not_checked:
        text = "Windows programs start here, as far as could be looked at."
    if found.problems and found.problems[0].id in diagnosis.ELSEWHERE:
        mark, colour, text = "·", "faint", "This is for WSL distros."
    if found.problems and any(problem.id == "interop-off" for problem in found.problems):
        text = "Windows programs do not start here, as /etc/wsl.conf says."
    return paint(f"{mark} {text}" if paint.symbols else text, colour)


def _handler(seen: facts.Facts, found: diagnosis.Diagnosis, verbose: bool) -> list[str]:
    if found.handler is None:
        return ["  answered by     no entry"] if seen.entries is not None else []
    name, entry, since, _ = found.handler
    flags = safe(entry.flags.decode(errors="backslashreplace"))
    text = f"{safe(name)}, which leads to {_path(entry)}, flags {flags or 'none'}, since {_time(since)}"
    lines = [f"  answered by     {text}"]
    if found.outranked:
        names = [safe(name) for name in found.outranked]
        lines.append(f"  it outranks     {', '.join(names if verbose else names[:5])}")
    return lines


def _protection(seen: facts.Facts, paint: Paint, verbose: bool) -> list[str]:
    lines = [paint("Protection", "bold")]
    lines += [f"  {name:15} {text}" for name, text in _protection_rows(seen)]
    if verbose:
        repairs = _repairs(seen)
        lines += [f"  {'repair':15} {_time(each.at)} {safe(each.text)}" for each in repairs]
        lines += [
            f"  {'setting':15} /etc/wsl.conf:{each.line}: {safe(each.name)}={safe(each.value)}"
            for each in seen.conf.settings
        ]
        for unit, properties in (seen.units or {}).items():
            lines += [f"  {'drop-in':15} {unit}: {safe(path)}" for path in properties.get("DropInPaths", "").split()]
    return lines


def _protection_rows(seen: facts.Facts) -> list[tuple[str, str]]:
    conf = seen.conf
    decided = f"protectBinfmt={_boolean(conf.protect)}, interop enabled={_boolean(conf.interop)}"
    origin = "by /etc/wsl.conf" if conf.settings else "by default"
    rows = [("settings", f"{decided}, {origin}" if conf.is_known else "could not tell")]
    state = protection(seen)
    effects = {True: "drop-in in effect", False: "no drop-in in effect", None: "could not tell"}
    for service in formats.SERVICES:
        is_there = (seen.units or {}).get(service, {}).get("LoadState", "loaded") != "not-found"
        effect = effects[state["drop_ins"][service]] if is_there else "not installed, which is fine"
        rows.append((service.partition(".")[0], effect))
    owner = {"ours": "active", "wsl": "active, it is WSL's own", "none": "not active"}[state["guard"]]
    rows.append(("guard", owner))
    watch = state["watch"]
    text = {True: "active", False: "not active", None: "could not tell"}[watch["active"]]
    rows.append(("watch", text + (f" since {watch['since']}" if watch["since"] else "")))
    if watch["repairs"] is not None:
        last = f", the last: {safe(watch['repairs'][-1])}" if watch["repairs"] else ""
        rows.append(("repairs", f"{len(watch['repairs'])} in the journal{last}"))
    return rows


def _problem(problem: diagnosis.Problem, paint: Paint) -> list[str]:
    symbol, colour = MARKS[problem.severity]
    head = f"{symbol} " if paint.symbols else f"{problem.severity}: "
    lines = [f"{paint(head + safe(problem.summary), colour)} [{problem.id}]"]
    lines += [f"    {safe(each)}" for each in problem.evidence]
    if problem.fix:
        lines.append(f"    fix: {paint(problem.fix, 'bold')}")
    return lines


def as_json(seen: facts.Facts, found: diagnosis.Diagnosis, launched: launch.Launch | None = None) -> str:
    """Make the text for programs, described in wsl-binfmt(1)."""
    handler = found.handler and {
        "entry": _plain(found.handler.name),
        "interpreter": _path(found.handler.entry),
        "flags": found.handler.entry.flags.decode(errors="backslashreplace"),
        "registered": _iso(found.handler.since),
    }
    problems = [
        {
            "id": problem.id,
            "severity": problem.severity,
            "summary": _plain(problem.summary),
            "evidence": [_plain(each) for each in problem.evidence],
            "fix": problem.fix and _plain(problem.fix),
        }
        for problem in found.problems
    ]
    answer = {
        "version": 1,
        "works": found.works,
        "handler": handler,
        "protection": protection(seen) if not seen.elsewhere else {},
        "problems": problems,
        "not_checked": found.not_checked,
    }
    if launched:
        answer["launch"] = {
            "program": _plain(launched.program),
            "started": launched.started,
            "layer": launched.layer or None,
            "detail": _plain(launched.detail),
        }
    return json.dumps(answer, indent=2)


def protection(seen: facts.Facts) -> dict[str, Any]:
    """Tell what protects this distro; None for what could not be told."""
    units = seen.units
    watch = (units or {}).get(facts.WATCH, {})
    is_active = watch.get("ActiveState") == "active"
    repairs = _repairs(seen)
    drop_ins: dict[str, bool | None] = {}
    for service in formats.SERVICES:
        unit = (units or {}).get(service, {})
        is_loaded = unit.get("LoadState") == "loaded"
        drop_ins[service] = not diagnosis.missing_part(unit) if is_loaded else None
    over = seen.over_status
    is_guarded = over is not None and "ro" in over.options
    return {
        "protect_binfmt": seen.conf.protect if seen.conf.is_known else None,
        "interop_enabled": seen.conf.interop if seen.conf.is_known else None,
        "drop_ins": drop_ins,
        "guard": "none"
        if not (over and is_guarded)
        else "ours"
        if "/wsl-binfmt-generator/status" in over.root
        else "wsl",
        "watch": {
            "active": None if units is None else is_active,
            "since": _iso(_since(watch)) if is_active else None,
            "repairs": None if seen.messages is None else [_plain(each.text) for each in repairs],
        },
    }


def _repairs(seen: facts.Facts) -> list[facts.Message]:
    prefix = "wsl-binfmt: "
    return [
        each._replace(text=each.text[len(prefix) :])
        for each in seen.messages or []
        if each.source == facts.WATCH
        and each.text.startswith(prefix)
        and ("restored" in each.text or "again" in each.text)
    ]


def _path(entry: table.Entry) -> str:
    return safe(entry.interpreter.decode(errors="backslashreplace"))


def _plain(text: str) -> str:
    """Write what is no Unicode as its escape sequence: JSON has no other way."""
    return text.encode(errors="backslashreplace").decode()


def _since(unit: dict[str, str]) -> float:
    """Since when a unit is active, in seconds since 1970; systemd tells the microseconds since the VM has started."""
    return time.time() - time.monotonic() + int(unit.get("ActiveEnterTimestampMonotonic") or 0) / 1e6


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _boolean(value: bool) -> str:
    return "true" if value else "false"


def list_problems() -> str:
    """List every id with its meaning."""
    width = max(map(len, diagnosis.PROBLEMS))
    return "\n".join(f"{name:{width}}  {severity:7}  {text}" for name, (severity, text) in diagnosis.PROBLEMS.items())
