# SPDX-License-Identifier: MIT
TYPE_CHECKING = False  # in place of that of `typing`, whose import takes long
