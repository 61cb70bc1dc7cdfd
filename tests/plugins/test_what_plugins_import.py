"""One-way imports: plugins import mim_core, core imports no plugin, and plugins never each other."""

import ast
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
CORE = ROOT / "core/mim_core"
PLUGINS = sorted(path.parent for path in (ROOT / "plugins").glob("*/mim_*/plugin.py"))


def tops(package: Path) -> dict[str, list[str]]:
    """Top-level package -> the files that import it; relative imports stay inside."""
    found: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                found.setdefault(name.partition(".")[0], []).append(f"{path.name}:{node.lineno}")
    return found


def inside_functions(package: Path) -> set[str]:
    """Where imports happen when a function is called, and not with the module."""
    return {
        f"{path.name}:{node.lineno}"
        for path in package.rglob("*.py")
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }


def test_there_is_something_to_read():
    assert CORE.is_dir()
    assert "mim_image" in [package.name for package in PLUGINS]
    assert "torch" in tops(CORE)


def test_core_imports_no_plugin():
    ours = {name: where for name, where in tops(CORE).items() if name.startswith("mim_") and name != "mim_core"}
    assert not ours


@pytest.mark.parametrize("package", PLUGINS, ids=lambda package: package.name)
def test_a_plugin_imports_core_and_itself_only(package):
    allowed = {"mim_core", package.name}
    ours = {name: where for name, where in tops(package).items() if name.startswith("mim_") and name not in allowed}
    assert not ours


@pytest.mark.parametrize("package", PLUGINS, ids=lambda package: package.name)
def test_plugins_use_the_front_door(package):
    """They import from mim_core and mim_core.testing alone; the rooms of the core may then move."""
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            inside = [n for n in names if n.startswith("mim_core.") and not n.startswith("mim_core.testing")]
            assert not inside, f"{path}: {inside}"


def test_no_plugin_names_another_in_its_references():
    for package in PLUGINS:
        text = (package / "plugin.py").read_text()
        for other in PLUGINS:
            assert other == package or f"{other.name}." not in text, f"{package.name} refers to {other.name}"


@pytest.mark.parametrize(
    ("package", "distribution"),
    [(CORE, "mim-core"), *((package, package.name.replace("_", "-")) for package in PLUGINS)],
    ids=lambda value: getattr(value, "name", value),
)
def test_what_is_imported_is_declared(package, distribution):
    """Every third-party import is a dependency of the distribution, of the core that it builds on, or of torch; inside
    a function it may be of an extra."""
    own = [Requirement(text) for text in metadata.requires(distribution) or ()]
    needs = [need for need in own if need.marker is None]
    needs += [Requirement(text) for text in metadata.requires("torch") or ()]
    if distribution != "mim-core":
        needs += [need for text in metadata.requires("mim-core") or () if (need := Requirement(text)).marker is None]
    declared = {canonicalize_name(need.name) for need in needs}
    extras = {canonicalize_name(need.name) for need in own}
    owners = metadata.packages_distributions()
    late = inside_functions(package)
    for name, where in tops(package).items():
        if name in sys.stdlib_module_names or name in ("mim_core", package.name):
            continue
        allowed = declared | extras if set(where) <= late else declared
        assert {canonicalize_name(owner) for owner in owners[name]} & allowed, f"{name} is imported at {where}"
