# SPDX-License-Identifier: MIT
"""Fixtures of the tests on a real systemd, and what they have in common."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import pytest

import bed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip these tests where they cannot run; on CI that is a failure."""
    reason = bed.unavailable()
    for item in items:
        if item.path.parent == bed.HERE:
            item.add_marker(pytest.mark.system)
            if reason and not os.environ.get("CI"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def vm() -> Iterator[bed.Vm]:
    """A VM whose WSL protects nothing."""
    with bed.Vm() as machine:
        yield machine


@pytest.fixture
def read_only_vm() -> Iterator[bed.Vm]:
    """A VM whose distros cannot change the table."""
    with bed.Vm("read-only") as machine:
        yield machine


@pytest.fixture(params=[generation for generation in bed.GENERATIONS if generation != "read-only"])
def any_vm(request: pytest.FixtureRequest) -> Iterator[bed.Vm]:
    """A VM of each generation of WSL in which a distro may change the table."""
    with bed.Vm(request.param) as machine:
        yield machine


@pytest.fixture
def boot() -> Iterator[Callable[..., bed.Distro]]:
    """Boot a distro: `distro = boot(vm, files=...)`; it ends with the test."""
    with contextlib.ExitStack() as stack:

        def do(vm: bed.Vm, **options: Any) -> bed.Distro:
            options["files"] = {**bed.NO_START_LIMIT, **options.get("files", {})}
            return stack.enter_context(vm.distro(**options))

        yield do
