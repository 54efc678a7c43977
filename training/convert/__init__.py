# SPDX-License-Identifier: Apache-2.0
"""Converters from the papers' released checkpoints to Hub repository folders of this package."""
