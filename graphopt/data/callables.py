"""Import what the user names as ``MODULE:FUNCTION``. It is code, and is run as such."""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from graphopt.errors import GraphoptError

_FORM = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_function_name(text: str) -> bool:
    """Whether ``text`` has the form ``MODULE:FUNCTION``."""
    return _FORM.fullmatch(text) is not None


def load_function(text: str, error: type[GraphoptError]) -> Callable[..., Any]:
    """Import ``MODULE:FUNCTION``; modules in the current directory are found too.

    Raises:
        error: the module cannot be imported, or holds no such function.
    """
    module_name, _, path = text.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as missing:
        raise error(
            f"{text}: no module named {missing.name!r}; it is looked for in {here} and among the installed packages"
        ) from missing
    except Exception as failed:  # the user's module may raise anything while it is imported
        raise error(f"{text}: importing {module_name} failed: {said(failed)}") from failed
    finally:
        sys.path.remove(here)
    for part in path.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise error(f"{text}: {module_name} has no function {path!r}")
    return found  # type: ignore[no-any-return]


def said(failed: BaseException) -> str:
    """Say in one line what the user's code raised and where."""
    frames = traceback.extract_tb(failed.__traceback__)
    at = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    text = str(failed)
    return f"{type(failed).__name__}: {text}{at}" if text else f"{type(failed).__name__}{at}"
