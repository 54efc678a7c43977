# SPDX-License-Identifier: Apache-2.0
"""From the papers' released checkpoints to folders that are Hub repositories of this package."""
