"""``python -m graphopt.rules docs/rules.md`` writes the generated part of that page anew."""

from __future__ import annotations

import sys
from pathlib import Path

from graphopt.rules.explaining import renewed

for name in sys.argv[1:]:
    page = Path(name)
    page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
