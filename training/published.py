# SPDX-License-Identifier: Apache-2.0
"""What leaves this machine with a model or a log: without secrets, and without folders of this machine."""

import os
import re
from pathlib import Path
from typing import Any

REMOVED = "(not published)"
_SECRET_NAME = re.compile(
    r"(?i)(?:^|[_-])(?:token|passw(?:or)?d|secret|api_?key|access_?key|credentials?|authorization)$"
)
# Tokens of the Hub, and of other services that begin theirs so; who asks and with what in an address.
_SECRETS = (
    (re.compile(r"\b(?:hf|sk|ghp|gho|glpat|xox[abp])[_-]\w{6,}"), REMOVED),
    (re.compile(r"(?<=://)[^\s/]*@"), ""),
    (re.compile(r"(?i)(?<=[?&;])([\w-]*(?:token|key|secret|password|signature|sig))=[^&;#\s]+"), rf"\1={REMOVED}"),
)
# Absolute paths of POSIX and Windows, of a home folder, of a share, and addresses of files, also within a sentence.
_FOLDERS = re.compile(
    r"file:/+[^\s\"']+|(?<![\w:/.\\])~?(?:/[^\s/\"':,;()]+){2,}/?|\b[A-Za-z]:[\\/][^\s\"']+|\\\\[^\s\"'\\]+\\[^\s\"']+"
)


def without_secrets(value: Any) -> Any:
    """Returns a value, or nested lists and dicts, without passwords and tokens, by names of fields and by look."""
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
    """Returns a value, or nested lists and dicts, in which of each folder or file only the last name is left."""
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
