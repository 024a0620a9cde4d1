# SPDX-License-Identifier: MIT
"""The diagnosis of `wsl-binfmt status`: gathering (gather*.py), concluding (conclude.py, about_*.py) and telling."""
