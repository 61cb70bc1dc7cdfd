"""Tries golden cases: outputs of official implementations against what this project gives for the same weights.

    python tools/golden.py FILE.safetensors ...

Prints every entry with its error as a share of the entry's largest value, and what was left out and why. Exits with 1
where something is off, 2 where a file cannot be tried.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mim_core.errors import MimError
from mim_core.testing.golden import as_text, try_case


def main(paths: list[str]) -> int:
    """Tries every file; the worst exit code of all."""
    asked = any(path in ("-h", "--help") for path in paths)
    if asked or not paths:
        (sys.stdout if asked else sys.stderr).write(__doc__ or "")
        return 0 if asked else 2
    worst = 0
    for path in map(Path, paths):
        try:
            lines = try_case(path)
        except MimError as error:
            sys.stderr.write(f"{path}: {error}\n")
            worst = 2
            continue
        off = [line for line in lines if not line.fits]
        compared = sum(line.apart is not None for line in lines)
        sys.stdout.write(f"{path}: {compared} entries compared, {len(off)} off\n{as_text(lines)}\n")
        worst = max(worst, 1 if off or not compared else 0)
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
