# SPDX-License-Identifier: Apache-2.0
"""Removes secrets and local folders from values that are published with a model or a log."""

import os
import re
from pathlib import Path
from typing import Any

REMOVED = "(not published)"
_SECRET_NAME = re.compile(
    r"(?i)(?:^|[_-])(?:token|passw(?:or)?d|secret|api_?key|access_?key|credentials?|authorization)$"
)
# Tokens of the Hub and of services with similar prefixes, and credentials in URLs.
_SECRETS = (
    (re.compile(r"\b(?:hf|sk|ghp|gho|glpat|xox[abp])[_-]\w{6,}"), REMOVED),
    (re.compile(r"(?<=://)[^\s/]*@"), ""),
    (re.compile(r"(?i)(?<=[?&;])([\w-]*(?:token|key|secret|password|signature|sig))=[^&;#\s]+"), rf"\1={REMOVED}"),
)
# Absolute POSIX and Windows paths, paths in a home folder or on a share, and file URLs, also within a sentence.
_FOLDERS = re.compile(
    r"file:/+[^\s\"']+|(?<![\w:/.\\])~?(?:/[^\s/\"':,;()]+){2,}/?|\b[A-Za-z]:[\\/][^\s\"']+|\\\\[^\s\"'\\]+\\[^\s\"']+"
)


def without_secrets(value: Any) -> Any:
    """Removes passwords and tokens, found by field name or pattern, from a value or nested lists and dicts."""
    if isinstance(value, dict):
        hidden = {name for name, inner in value.items() if _SECRET_NAME.search(str(name)) and inner is not None}
        return {name: REMOVED if name in hidden else without_secrets(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_secrets(inner) for inner in value]
    if isinstance(value, str):
        for pattern, replacement in _SECRETS:
            value = pattern.sub(replacement, value)
    return value


def without_folders(value: Any) -> Any:
    """Shortens each path in a value or nested lists and dicts to its last component."""
    if isinstance(value, dict):
        return {name: without_folders(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_folders(inner) for inner in value]
    if not isinstance(value, str):
        return value
    is_path = os.path.isabs(value) or value.startswith(("./", "../", "~"))
    if is_path or ("/" in value and Path(value).exists()):
        return Path(value).name
    return _FOLDERS.sub(lambda found: re.split(r"[\\/]", found[0].rstrip("\\/"))[-1], value)
