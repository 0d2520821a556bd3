"""Path patterns of the configuration."""

from __future__ import annotations

import re
from functools import cache


def matches(pattern: str, path: str) -> bool:
    """Whether a path, relative to the configuration's folder and with ``/`` between its parts, fits a pattern.

    ``*`` and ``?`` stand for anything but ``/``, ``**`` for any folders, ``[abc]`` for one of these characters. A
    pattern without ``/`` fits the file's name in any folder, one that begins with ``/`` only in this one; one that ends
    in ``/`` fits all that is below.
    """
    return _compiled(pattern).fullmatch(path) is not None


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    text = f"{pattern}**" if pattern.endswith("/") else pattern
    text = text.removeprefix(".").removeprefix("/") if text.startswith(("/", "./")) else text
    if "/" not in pattern:
        text = f"**/{text}"
    parts: list[str] = []
    position = 0
    while position < len(text):
        rest = text[position:]
        if rest.startswith("**/"):
            parts.append("(?:[^/]+/)*")
            position += 3
        elif rest.startswith("**"):
            parts.append(".*")
            position += 2
        elif klass := re.match(r"\[!?[^\]/]+\]", rest):
            inner = klass[0][1:-1]
            negated = inner.startswith("!")
            escaped = re.sub(r"([\\\[\]^&~|])", r"\\\1", inner[1:] if negated else inner)
            parts.append(f"[{'^/' if negated else ''}{escaped}]")
            position += len(klass[0])
        else:
            parts.append({"*": "[^/]*", "?": "[^/]"}.get(rest[0], re.escape(rest[0])))
            position += 1
    return re.compile("".join(parts))
