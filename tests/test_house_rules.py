"""House rules that a machine can check: small functions, names that hide nothing, no modality in the core."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("core/**/*.py"), *ROOT.glob("plugins/*/mim_*/**/*.py"), *ROOT.glob("benchmarks/**/*.py")])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_stay_small(path):
    text = path.read_text()
    long = [
        node.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 50
    ]
    assert not long, f"over 50 lines: {long}"


def raised(node, caught=frozenset()):
    """Names of the errors that a function raises in its own body: not in functions within it, and not those that it
    catches itself."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        inside = caught
        if isinstance(child, ast.stmt) and isinstance(node, ast.Try) and child in node.body:
            kinds = [kind.type for kind in node.handlers]
            kinds = [each for kind in kinds for each in (kind.elts if isinstance(kind, ast.Tuple) else [kind])]
            inside = caught | {"Exception" if kind is None else ast.unparse(kind) for kind in kinds}
        if isinstance(child, ast.Raise) and child.exc is not None:
            error = ast.unparse(child.exc.func if isinstance(child.exc, ast.Call) else child.exc)
            if error != "NotImplementedError" and not inside & {error, "Exception"}:
                yield error
        yield from raised(child, inside)


def public_functions(body):
    """(name, function) of the public functions and methods of a module or a class."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("_"):
            continue
        if isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{name}", function) for name, function in public_functions(node.body))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node


def silent(text):
    """Public functions that raise an error and do not say so."""
    return [
        name
        for name, function in public_functions(ast.parse(text).body)
        if any(raised(function)) and not re.search(r"\braises?\b", ast.get_docstring(function) or "", re.IGNORECASE)
    ]


def test_public_functions_say_what_they_raise():
    paths = [path for package in PACKAGES for path in package.rglob("*.py")]
    assert not [f"{path.relative_to(ROOT)}: {name}" for path in paths for name in silent(path.read_text())]


def test_what_a_function_raises_is_read():
    said = 'def f():\n    """Does.\n\n    Raises:\n        ValueError: It cannot.\n    """\n    raise ValueError\n'
    assert silent(said) == []
    assert silent(said.replace("Raises", "Gives")) == ["f"]
    assert silent("class A:\n    def f(self):\n        if self:\n            raise KeyError(1)\n") == ["A.f"]
    assert silent("def f():\n    try:\n        g()\n    except OSError:\n        raise ValueError from None\n")
    for quiet in (
        "def _f():\n    raise ValueError\n",
        "class _A:\n    def f(self):\n        raise ValueError\n",
        "def f():\n    raise NotImplementedError\n",
        "def f():\n    try:\n        g()\n    except OSError:\n        raise\n",
        "def f():\n    def g():\n        raise ValueError\n    return g\n",
        "def f():\n    try:\n        raise ValueError\n    except (KeyError, ValueError):\n        pass\n",
    ):
        assert silent(quiet) == [], quiet


HIDING = {"util", "misc", "helper", "common"}


def hides(path):
    """Whether a file, or a folder on its path, is called such as utils, mask_utils or common."""
    words = {word.rstrip("s") for part in path.with_suffix("").parts for word in part.split("_")}
    return bool(words & HIDING)


def test_no_name_hides_what_is_in_it():
    assert not [path for path in SOURCES if hides(path.relative_to(ROOT))]
    assert all(hides(Path(text)) for text in ("core/utils/mask.py", "core/mask_utils.py", "core/helper.py"))


def test_private_names_say_what_a_value_is():
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not names & {"_said", "_told", "_found", "_there"}, path.name


@pytest.mark.parametrize(
    ("rule", "home"),
    [
        (r"did you mean \{", "errors.py"),  # `did_you_mean`
        (r"0\.485, 0\.456", "data/normalise.py"),  # `IMAGENET_MEAN`
    ],
)
def test_rules_are_written_once(rule, home):
    places = [path for path in SOURCES if re.search(rule, path.read_text(), re.IGNORECASE)]
    assert [path for path in places if not path.as_posix().endswith(f"core/mim_core/{home}")] == []


def test_the_core_names_no_modality():
    """Docstrings may give examples; code may not know."""
    words = {"image", "video", "points", "rgb", "depth_map", "semseg"}
    for path in ROOT.glob("core/mim_core/**/*.py"):
        tree = ast.parse(path.read_text())
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        assert not names & words, f"{path.name}: {names & words}"


FLOORS = (
    (
        *("errors", "text", "randomness", "disk", "locks", "scores", "standard_errors"),
        *("ranking_scores", "version", "terminal", "tensor_files"),
    ),
    ("data", "ranks"),
    ("parts", "host"),
    ("recipes",),
    ("methods",),
    ("runs",),
    ("evaluation",),
    ("inference",),
    ("training",),
    ("interop", "testing"),
    ("commands", "cli", "plugin"),
    ("", "__main__"),
)
"""Rooms of the core from the ground up; what stands on one floor imports from it and from those below."""


PACKAGES = [ROOT / "core/mim_core", *sorted(ROOT.glob("plugins/*/mim_*"))]


def named(node, module, package):
    """(module, names in it) of an import statement, whatever its form; the package itself is the empty module."""
    if isinstance(node, ast.Import):
        modules = [(alias.name, []) for alias in node.names]
    elif node.level:
        home = [package, *module.split(".")][: -node.level]
        modules = [(".".join([*home, *filter(None, [node.module])]), [alias.name for alias in node.names])]
    else:
        modules = [(node.module, [alias.name for alias in node.names])]
    return [(name.partition(".")[2], names) for name, names in modules if name.partition(".")[0] == package]


def imports(folder=PACKAGES[0]):
    """Module of a package -> modules of it that it imports, anywhere in its text, for types too."""
    paths = {
        ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
        for path in folder.rglob("*.py")
        if "templates" not in path.parts
    }
    graph = {}
    for module, path in paths.items():
        graph[module] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for inside, names in named(node, module, folder.name):
                    full = [f"{inside}.{name}".strip(".") for name in names]
                    graph[module] |= {name if name in paths else inside for name in full or [inside]}
        graph[module].discard(module)
    return graph


def test_every_form_of_import_is_read():
    forms = {
        "from mim_core.training import loop": ("training", ["loop"]),
        "import mim_core.training.loop": ("training.loop", []),
        "from ..training import loop": ("training", ["loop"]),
        "from . import mask": ("parts", ["mask"]),
        "from mim_core import Mask": ("", ["Mask"]),
    }
    for text, expected in forms.items():
        assert named(ast.parse(text).body[0], "parts.masker", "mim_core") == [expected], text
    assert named(ast.parse("import torch").body[0], "parts.masker", "mim_core") == []


def floor(module):
    return next(number for number, rooms in enumerate(FLOORS) if module.partition(".")[0] in rooms)


def test_every_room_of_the_core_stands_on_a_floor():
    rooms = {module.partition(".")[0] for module in imports()}
    assert rooms == {room for floor in FLOORS for room in floor}


def test_the_page_about_rooms_has_them_all():
    """`docs/architecture.md`: the table of floors, and the files that any page names."""
    page = (ROOT / "docs/architecture.md").read_text()
    table = page[page.index("| floor |") : page.index("Where to look")]
    written = set(re.findall(r"`([a-z_]+)(?:\.py)?/?`", table))
    assert written == {room for floor in FLOORS for room in floor} - {"", "__main__"}
    names = {path.name for path in [*SOURCES, *ROOT.glob("tests/**/*.py"), *ROOT.glob("plugins/*/tests/*.py")]}
    examples = {"model.py"}  # an export has it
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("plugins/*/*.md")]:
        named = {name.rpartition("/")[2] for name in re.findall(r"`([\w/]+\.py)`", path.read_text())}
        assert named <= names | examples, path.name


def test_imports_run_downwards():
    upward = [
        (module, other) for module, others in imports().items() for other in others if floor(other) > floor(module)
    ]
    assert not upward


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_no_modules_import_each_other_in_a_circle(package):
    graph = {module: set(others) for module, others in imports(package).items()}
    while free := {module for module, others in graph.items() if not others & set(graph)}:
        for module in free:
            del graph[module]
    assert not graph, f"each of these leads back to itself: {', '.join(sorted(graph))}"


def test_the_front_door_opens():
    import mim_core

    assert all(getattr(mim_core, name) is not None for name in mim_core.__all__)
    with pytest.raises(AttributeError):
        _ = mim_core.no_such_name


def test_no_lock_file_with_addresses():
    assert not [p for p in ROOT.glob("*") if p.name in ("uv.lock", "poetry.lock", "pdm.lock", "Pipfile.lock")]
