"""What a part says of itself, read from its source: its docstring and its options. Nothing is imported but the packages
that the source lies in, so that ``describe`` answers without torch."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

Scope = dict[str, Any]


class NotPlain(Exception):
    """The source does not say it plainly; the part must be imported to know."""


@dataclass(frozen=True)
class Option:
    """One option of a part.

    Attributes:
        name: As the dataclass has it.
        type: As people read it: the choices of a literal, ``tuple[float, float]``, ``Path | None``.
        default: Its value.
        help: What it does.
        positional: Given by its place, without its name.
        metavar: What stands for its value in the usage, where the source says it.
    """

    name: str
    type: str
    default: Any
    help: str
    positional: bool = False
    metavar: str = ""


@dataclass(frozen=True)
class Described:
    """A part's docstring and its options; None where it has no ``Config``."""

    doc: str
    options: tuple[Option, ...] | None = None


@dataclass(frozen=True)
class _Module:
    """A module's source: what its names stand for."""

    name: str
    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    functions: dict[str, ast.FunctionDef] = field(default_factory=dict)
    values: dict[str, ast.expr] = field(default_factory=dict)
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)


def describe(reference: str) -> Described:
    """What the part at ``module:Attribute`` says of itself.

    Raises:
        NotPlain: Its source cannot be read, or does not say it plainly.
    """
    module, _, attribute = reference.partition(":")
    where, node = _find(_module(module), attribute)
    if isinstance(node, ast.FunctionDef):
        return Described(inspect.cleandoc(ast.get_docstring(node) or ""))
    config = _config(where, node)
    doc = inspect.cleandoc(ast.get_docstring(node) or "") or _inherited_doc(where, node)
    return Described(doc, None if config is None else tuple(_options(*config).values()))


def describe_options(reference: str) -> Described:
    """What a dataclass of options at ``module:Class`` says of itself, such as that of a command.

    Raises:
        NotPlain: Its source cannot be read, or does not say it plainly.
    """
    module, _, name = reference.partition(":")
    where, node = _find(_module(module), name)
    if not isinstance(node, ast.ClassDef):
        raise NotPlain(f"{reference} is no class")
    doc = inspect.cleandoc(ast.get_docstring(node) or "")
    return Described(doc, tuple(_options(where, node, needed=True).values()))


def constant(reference: str, name: str) -> Any:
    """The literal that the class at ``module:Class``, or a base class of it, gives an attribute.

    Raises:
        NotPlain: Its source cannot be read, or gives no literal.
    """
    module, _, cls = reference.partition(":")
    where, node = _find(_module(module), cls)
    waiting = [(where, node)] if isinstance(node, ast.ClassDef) else []
    for where, node in waiting:
        for child in node.body:
            if isinstance(child, ast.AnnAssign) and ast.unparse(child.target) == name and child.value is not None:
                return _literal(child.value)
        waiting.extend(_bases(where, node))
    raise NotPlain(f"{reference} has no {name}")


def _find(module: _Module, name: str) -> tuple[_Module, ast.ClassDef | ast.FunctionDef]:
    """The definition that a name leads to, and the module that it stands in."""
    outer, _, inner = name.partition(".")
    other, original = module.imports.get(outer, (module.name, outer))
    if (other, original) != (module.name, outer):  # a package may import its own modules, as torch does
        return _find(_module(other), f"{original}.{inner}" if inner else original)
    node = module.classes.get(outer) or module.functions.get(outer)
    if node is None:
        raise NotPlain(f"{module.name} has no {outer}")
    for part in inner.split(".") if inner else ():
        matches = [child for child in node.body if isinstance(child, ast.ClassDef) and child.name == part]
        if not matches:
            raise NotPlain(f"{node.name} has no {part}")
        node = matches[0]
    return module, node


@cache
def _module(name: str) -> _Module:
    """A module's names. Its parent packages are imported, as Python does to find it."""
    try:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            raise NotPlain(f"{name} has no source")
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    except (ImportError, OSError, SyntaxError, UnicodeDecodeError, ValueError) as error:
        raise NotPlain(f"{name}: {error}") from error
    module = _Module(name)
    for node in _statements(tree):
        if isinstance(node, ast.ClassDef):
            module.classes[node.name] = node
        elif isinstance(node, ast.FunctionDef):
            module.functions[node.name] = node
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            module.imports.update({alias.asname or alias.name: (node.module, alias.name) for alias in node.names})
        elif isinstance(node, ast.Assign):
            module.values.update(_assigned(node))
    return module


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements of a module, those for type checkers too: there a lazy package says where its names are from."""
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from node.body
        else:
            yield node


def _assigned(node: ast.Assign) -> Iterator[tuple[str, ast.expr]]:
    for target in node.targets:
        if isinstance(target, ast.Name):
            yield target.id, node.value
        elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = zip(target.elts, node.value.elts, strict=True)
            yield from ((name.id, value) for name, value in pairs if isinstance(name, ast.Name))


def _bases(module: _Module, node: ast.ClassDef) -> Iterator[tuple[_Module, ast.ClassDef]]:
    """The base classes whose source can be read; torch's and the like are ignored."""
    for base in node.bases:
        try:
            where, definition = _find(module, ast.unparse(base))
        except NotPlain:
            continue
        if isinstance(definition, ast.ClassDef):
            yield where, definition


def _inherited_doc(module: _Module, node: ast.ClassDef) -> str:
    for where, base in _bases(module, node):
        doc = inspect.cleandoc(ast.get_docstring(base) or "") or _inherited_doc(where, base)
        if doc:
            return doc
    return ""


def _config(module: _Module, node: ast.ClassDef) -> tuple[_Module, ast.ClassDef] | None:
    """The ``Config`` of a class: its own, one that it names, or that of a base class."""
    for child in node.body:
        if isinstance(child, ast.ClassDef) and child.name == "Config":
            return module, child
        if isinstance(child, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "Config" for t in child.targets):
            where, definition = _find(module, ast.unparse(child.value))
            if not isinstance(definition, ast.ClassDef):
                raise NotPlain(f"Config of {node.name} is no class")
            return where, definition
    for where, base in _bases(module, node):
        config = _config(where, base)
        if config is not None:
            return config
    return None


def _options(module: _Module, config: ast.ClassDef, needed: bool = False) -> dict[str, Option]:
    """The options of a dataclass, those of its base classes first. With ``needed`` some may have no default, and those
    that are dataclasses are left out."""
    options: dict[str, Option] = {}
    for base in config.bases:  # all of them: one that cannot be read would hide its options
        where, node = _find(module, ast.unparse(base))
        if not isinstance(node, ast.ClassDef):
            raise NotPlain(f"a base of {config.name} is no class")
        options.update(_options(where, node, needed))
    body = config.body
    for number, child in enumerate(body):
        if not isinstance(child, ast.AnnAssign) or not isinstance(child.target, ast.Name):
            continue
        kind = _type(module, child.annotation)
        if kind.startswith("ClassVar"):
            continue
        if child.value is None and not needed:
            raise NotPlain(f"the option {child.target.id} of {config.name} has no default")
        after = body[number + 1] if number + 1 < len(body) else None
        text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
        if needed and isinstance(child.value, ast.Call):
            continue
        value = None if child.value is None else _value(module, child.value, kind)
        place = "Positional" in ast.unparse(child.annotation)
        name, doc = child.target.id, inspect.cleandoc(str(text))
        options[name] = Option(name, kind, value, doc, place, _metavar(child.annotation))
    return options


def _metavar(annotation: ast.expr) -> str:
    """The ``metavar`` among tyro's notes to a type."""
    notes = [node for node in ast.walk(annotation) if isinstance(node, ast.keyword) and node.arg == "metavar"]
    return str(notes[0].value.value) if notes and isinstance(notes[0].value, ast.Constant) else ""


def _type(module: _Module, node: ast.expr) -> str:
    """A type as people read it."""
    if isinstance(node, ast.Constant):
        return "None" if node.value is None else _type(module, ast.parse(str(node.value), mode="eval").body)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return f"{_type(module, node.left)} | {_type(module, node.right)}"
    if isinstance(node, ast.Subscript):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        outer = ast.unparse(node.value)
        if outer == "Literal":
            return " | ".join(str(ast.literal_eval(choice)) for choice in inner)
        if outer == "Annotated" or outer.startswith("tyro.conf."):
            return _type(module, inner[0])
        kinds = ("..." if isinstance(n, ast.Constant) and n.value is Ellipsis else _type(module, n) for n in inner)
        return f"{outer}[{', '.join(kinds)}]"
    if isinstance(node, ast.Name):
        if node.id in module.values:
            return _type(module, module.values[node.id])
        if node.id in module.imports:
            other, name = module.imports[node.id]
            if other.partition(".")[0] == module.name.partition(".")[0] or other.startswith("mim_"):
                where = _module(other)
                return _type(where, where.values[name]) if name in where.values else _type_of_import(where, name)
        return node.id
    raise NotPlain(f"the type {ast.unparse(node)}")


def _type_of_import(module: _Module, name: str) -> str:
    """A name that the other module has imported itself, or a class of it."""
    return _type(module, ast.Name(name)) if name in module.imports else name


def _value(module: _Module, node: ast.expr, kind: str) -> Any:
    """A default. Whole numbers are floats where a float is meant, as a filled option has it."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "field":
        factory = next((ast.unparse(k.value) for k in node.keywords if k.arg == "default_factory"), "")
        if factory in ("dict", "tuple", "list"):
            return {"dict": {}, "tuple": (), "list": []}[factory]
        raise NotPlain(f"the default {ast.unparse(node)}")
    if isinstance(node, ast.Name):
        if node.id in module.values:
            return _value(module, module.values[node.id], kind)
        if node.id in module.imports:
            other, name = module.imports[node.id]
            where = _module(other)
            if name in where.values or name in where.imports:  # a front door imports it itself
                return _value(where, ast.Name(name), kind)
    return as_float(_literal(node), kind)


def as_float(value: Any, kind: str) -> Any:
    """A value as a filled option has it: whole numbers are floats where a float is meant, also inside a tuple."""
    if isinstance(value, tuple | list) and "tuple[" in kind:
        inner = kind.partition("tuple[")[2].rpartition("]")[0].split(", ")
        kinds = [inner[0]] * len(value) if inner[-1] == "..." else inner
        return tuple(as_float(v, k) for v, k in zip(value, kinds, strict=False))
    choices = kind.split(" | ")
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole and "float" in choices and "int" not in choices else value


def _literal(node: ast.expr) -> Any:
    """A literal, in which numbers may be quotients: ``(3 / 4, 4 / 3)``."""
    if isinstance(node, ast.Tuple):
        return tuple(map(_literal, node.elts))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return _literal(node.left) / _literal(node.right)
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise NotPlain(f"the default {ast.unparse(node)}") from error
