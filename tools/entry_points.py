"""Makes this checkout's plugins findable where nothing can be installed: writes their metadata beside the installed
packages, as ``pip install -e`` would, and nothing else. Used by gpu_day.sh."""

from __future__ import annotations

import site
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """One .dist-info per project, with its name, version and entry points, and one path file."""
    target = Path(site.getsitepackages()[0])
    folders = []
    for project in (ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))):
        about = tomllib.loads((project / "pyproject.toml").read_text())["project"]
        info = target / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n")
        groups = {"console_scripts": about.get("scripts", {}), **about.get("entry-points", {})}
        lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in table.items()) for group, table in groups.items()]
        (info / "entry_points.txt").write_text("\n".join(lines))
        folders.append(project / "core" if project == ROOT else project)
    (target / "mim.pth").write_text("".join(f"{folder}\n" for folder in folders))


if __name__ == "__main__":
    main()
