# SPDX-License-Identifier: MIT
"""Simulate histories, on all cores, for some seconds or until it is stopped; or one of them, by its seed."""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import multiprocessing
import secrets
import signal
import sys
import time
from typing import Iterator, NamedTuple

import events
import histories
import reached
import syscalls


class Result(NamedTuple):
    """What came of a history."""

    seed: str
    broken: str
    operations: int
    kinds: collections.Counter[str]
    pairs: set[tuple[str, str]]


def simulate(seed: str) -> Result:
    """Simulate a history."""
    history = histories.draw(seed)
    done = histories.simulate(history)
    pairs = itertools.combinations(history.events, 2)
    close = {(min(one.kind, other.kind), max(one.kind, other.kind)) for one, other in pairs if one.is_close_to(other)}
    kinds = collections.Counter(event.kind for event in history.events)
    return Result(seed, done.broken, done.operations, kinds, close)


def show(seed: str, *, whole: bool = False) -> str:
    """Simulate a history again, with a log. What a broken promise does not take is left out, if not `whole`."""
    history = histories.draw(seed)
    promise = histories.simulate(history).broken
    if promise and not whole:
        history = histories.shrink(history, promise)
    done = histories.simulate(history, verbose=True)
    return "\n".join([f"seed {seed}: {done.broken or 'all promises hold'}", "", *history.describe(), "", *done.log, ""])


def run(seeds: Iterator[str], seconds: float, jobs: int) -> tuple[list[Result], str]:
    """Simulate histories for some seconds, or until there are no more; returns a summary as well."""
    end = time.monotonic() + seconds
    broken: list[Result] = []
    count = operations = 0
    kinds: collections.Counter[str] = collections.Counter(dict.fromkeys(events.EVENTS, 0))
    pairs: set[tuple[str, str]] = set()
    # Ctrl-C ends the run, with its summary.
    with contextlib.suppress(KeyboardInterrupt), multiprocessing.Pool(jobs, _begin) as pool:
        # In parts: all that are left over are simulated to their end.
        while time.monotonic() < end:
            part = list(itertools.islice(seeds, 100 * jobs))
            if not part:
                break
            for result in pool.imap_unordered(simulate, part, 10):
                count, operations = count + 1, operations + result.operations
                kinds.update(result.kinds)
                pairs |= result.pairs
                if result.broken:
                    print(f"{result.seed}: {result.broken}", flush=True)
                    broken.append(result)
    never = [kind for kind, times in kinds.items() if not times]
    possible = len(kinds) * (len(kinds) + 1) // 2
    lines = [
        f"{count} histories of {operations} operations, {len(broken)} of which break a promise",
        f"events: {', '.join(f'{times} {kind}' for kind, times in kinds.most_common())}",
        f"concurrent pairs of events: {len(pairs)} of {possible}",
        *([f"never happened: {', '.join(never)}"] if never else []),
    ]
    return broken, "\n".join(lines)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    syscalls.install()


def main() -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="simulation", description=__doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=1e9, help="as long as it is not stopped, if left out")
    parser.add_argument("--seed", help="simulate this history, and show it")
    parser.add_argument(
        "--whole", action="store_true", help="with --seed: show also what a broken promise does not take"
    )
    parser.add_argument(
        "--from", dest="start", default=secrets.token_hex(4), help="the seeds are START-0, START-1, ..."
    )
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    options = parser.parse_args()
    if options.seed:
        syscalls.install()
        print(show(options.seed, whole=options.whole))
        return 0
    print(f"the seeds are {options.start}-0, {options.start}-1, ...", flush=True)
    broken, summary = run((f"{options.start}-{number}" for number in itertools.count()), options.seconds, options.jobs)
    print(summary)
    with multiprocessing.Pool(1) as pool:
        print(pool.apply(reached.report, (f"{options.start}-branches",)))
        for result in broken[:3]:
            print(pool.apply(show_alone, (result.seed,)))
    return 1 if broken else 0


def show_alone(seed: str) -> str:
    """Show a history in a process of its own."""
    syscalls.install()
    return show(seed)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
