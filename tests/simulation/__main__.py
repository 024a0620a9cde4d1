# SPDX-License-Identifier: MIT
"""Simulate histories: `python -m simulation [SECONDS]`, or one by its seed: `python -m simulation --seed SEED`."""

from __future__ import annotations

import argparse
import multiprocessing
import secrets
import time

from simulation import histories, system


def one(seed: str) -> tuple[str, str, int]:
    """Simulate a history; returns its seed, the promise that it breaks, and the number of operations."""
    done = histories.simulate(histories.draw(seed))
    return seed, done.broken, done.operations


def show(seed: str, *, shrunk: bool = True) -> str:
    """Simulate a history again, with a log."""
    history = histories.draw(seed)
    promise = histories.simulate(history).broken
    if promise and shrunk:
        history = histories.shrink(history, promise)
    done = histories.simulate(history, verbose=True)
    assert done.log is not None
    head = [f"seed {seed}: {promise or 'all promises hold'}", *map(str, history.distros), *map(str, history.events)]
    return "\n".join([*head, "", *done.log, ""])


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("seconds", nargs="?", type=float, default=60)
    parser.add_argument("--seed")
    parser.add_argument("--whole", action="store_true", help="do not shrink")
    parser.add_argument("--from", dest="start", default=secrets.token_hex(4))
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    options = parser.parse_args()
    if options.seed:
        system.install()
        print(show(options.seed, shrunk=not options.whole))
        return
    print(f"seeds from {options.start}-0")
    end = time.monotonic() + options.seconds
    count = operations = 0
    broken: dict[str, list[str]] = {}
    with multiprocessing.Pool(options.jobs, system.install) as pool:
        seeds = (f"{options.start}-{number}" for number in range(10**9))
        while time.monotonic() < end:
            for seed, promise, done in pool.imap_unordered(one, [next(seeds) for _ in range(200)], 5):
                count, operations = count + 1, operations + done
                if promise:
                    broken.setdefault(histories.key_of(promise), []).append(seed)
    print(f"{count} histories, {operations} operations")
    for kind, found in sorted(broken.items(), key=lambda item: -len(item[1])):
        print(f"{len(found):6} {kind}: {' '.join(found[:5])}")


if __name__ == "__main__":
    main()
