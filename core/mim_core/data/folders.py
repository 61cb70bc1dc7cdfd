"""Walking the folders of a collection: links are followed, and every real folder is visited once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mim_core.errors import warn


def walk_folders(root: Path, hidden: bool = False) -> Iterator[tuple[Path, list[str], list[str]]]:
    """The folders below a root, the root first, and what is in each.

    Real folders come before those that are reached by links, so that a link never takes a folder's files away from its
    own place; a link to a folder that has been visited, such as one above it, is ignored. A folder that cannot be
    listed is a warning.

    Args:
        root: A folder.
        hidden: Visit folders whose names start with a dot too.

    Yields:
        The folder, the names of its files, sorted, and of the folders in it that come later, which the caller may take
        out of the list.
    """
    visited: set[tuple[int, int]] = set()
    ahead, linked = [root], list[Path]()
    while ahead or linked:
        folder = ahead.pop() if ahead else linked.pop(0)
        try:
            facts = folder.stat()
            if (facts.st_dev, facts.st_ino) in visited:
                continue
            visited.add((facts.st_dev, facts.st_ino))
            with os.scandir(folder) as entries:
                children = sorted((entry.name, _leads_to_folder(entry), entry.is_symlink()) for entry in entries)
        except OSError as error:
            warn(f"the folder {folder} cannot be listed and is left out: {error.strerror or error}")
            continue
        inner = [name for name, is_folder, _ in children if is_folder and (hidden or not name.startswith("."))]
        yield folder, [name for name, is_folder, _ in children if not is_folder], inner
        links = {name for name, _, is_link in children if is_link}
        ahead += [folder / name for name in reversed(inner) if name not in links]
        linked += [folder / name for name in inner if name in links]


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
