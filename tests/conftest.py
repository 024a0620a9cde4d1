# SPDX-License-Identifier: MIT
"""What all tests share: options, profiles and fixtures."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

import support

if TYPE_CHECKING:
    from pathlib import Path

# A __pycache__ beside the generator would be installed with it.
sys.dont_write_bytecode = True
settings.register_profile("default", deadline=None, max_examples=300)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that rewrites what the golden tests expect."""
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write what the generator does now to tests/golden/*/expected and stderr; review it with git diff",
    )


@pytest.fixture
def generator() -> Any:
    """The generator as a module, a fresh one for each test."""
    return support.load_generator()


@pytest.fixture
def distro(tmp_path: Path) -> support.Machine:
    """A WSL distro's files, nothing wrong with it."""
    return support.Machine(tmp_path, container="wsl")
