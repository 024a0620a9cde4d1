# SPDX-License-Identifier: MIT
"""What all tests share: options, profiles and fixtures."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

import bed
import roots
import support

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

PACKAGING_TOOLS = (
    "autopkgtest", "dh", "dh_python3", "faketime", "lintian", "makepkg", "mandoc", "mmdebstrap", "piuparts", "rpmbuild",
    "scdoc", "shellcheck",
)  # fmt: skip

# A __pycache__ beside the generator would be installed with it.
sys.dont_write_bytecode = True
# A `make` that a test runs must not go on with the options of the one that runs the tests, such as `make release`.
for name in "MAKEFLAGS", "MFLAGS", "MAKELEVEL":
    os.environ.pop(name, None)
# A failure is printed with what repeats it, @reproduce_failure(...).
settings.register_profile("default", deadline=None, max_examples=300, print_blob=True)
settings.load_profile("default")
# To see that the tests run at all.
settings.register_profile("few", settings.get_profile("default"), max_examples=10)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that rewrites what the golden tests expect."""
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write what the generator does now to tests/golden/*/expected and stderr; review it with git diff",
    )


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None]:
    """Skip what cannot run on this machine; put what needs other root file systems at the end."""
    for marker, unavailable in ("system", bed.unavailable), ("packages", packages_unavailable):
        marked = [item for item in items if item.get_closest_marker(marker)]
        reason = unavailable() if marked else ""
        for item in marked if reason else ():
            item.add_marker(pytest.mark.skip(reason=reason))
    yield
    # The tests of packages make these meanwhile.
    items.sort(key=lambda item: not item.get_closest_marker("packages") and "root" in getattr(item, "fixturenames", ()))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Have one process run all tests of a folder: there is one test bed, and packages are built once."""
    # `make unit` has no xdist.
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415

    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = lambda nodeid: os.path.dirname(nodeid.partition("::")[0])
    return scheduler


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """On CI all tests can run, so that to skip one, for whatever reason, is a failure."""
    report = yield
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
    return report


def packages_unavailable() -> str:
    """Say in a line why packages cannot be built on this machine; "" if they can."""
    missing = [tool for tool in PACKAGING_TOOLS if not shutil.which(tool)]
    return f"needs {', '.join(missing)}: make check-packages" if missing else ""


@pytest.fixture
def generator() -> Any:
    """The generator as a module, a fresh one for each test."""
    return support.load_generator()


@pytest.fixture
def distro(tmp_path: Path) -> support.Machine:
    """A WSL distro's files, nothing wrong with it."""
    return support.Machine(tmp_path, container="wsl")


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


@pytest.fixture(params=["none", "2.6", "3.0"])
def few_vm(request: pytest.FixtureRequest) -> Iterator[bed.Vm]:
    """A VM of each kind of protection that WSL has had: none, an override, and a read-only file over `status`."""
    with bed.Vm(request.param) as machine:
        yield machine


@pytest.fixture
def boot() -> Iterator[Callable[..., bed.Distro]]:
    """Boot a distro: `distro = boot(vm, files=...)`; it ends with the test.

    start_limit=False is for a test that restarts the two services in a loop.
    """
    with contextlib.ExitStack() as stack:

        def do(vm: bed.Vm, *, start_limit: bool = True, **options: Any) -> bed.Distro:
            if not start_limit:
                options["files"] = {**bed.NO_START_LIMIT, **options.get("files", {})}
            return stack.enter_context(vm.distro(**options))

        yield do


@pytest.fixture(scope="session", params=roots.SUITES)
def root(request: pytest.FixtureRequest) -> Path:
    """The root file system of a Debian suite."""
    return roots.make(request.param)
