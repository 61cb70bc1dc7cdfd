"""A trained encoder, with its head, as a program that runs without mim-core: torch.export's, or ONNX's.

A program takes the modalities that the method is given, each [B, ...] in the run's own size, normalised as the run's
data are; what that means is in the file's metadata. It gives "features" [B, D], the mean of the units, or of a run that
was trained on labels its answers. What such a method must be told beside, it takes as whole numbers [B].
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mim_core.disk import refuse_device, replaced
from mim_core.errors import MimError, one_line
from mim_core.inference.inputs import given_shapes
from mim_core.methods.method import Method
from mim_core.methods.supervised import Supervised
from mim_core.parts.tokenizer import zeros

MOST = 4096
"""The largest batch that a program is made for."""
NEAR = 1e-4
"""How far the program's answers may lie from the method's, absolute and relative."""
ABOUT = "about.json"
"""Where torch's program has its metadata, among its ``extra_files``."""


class Program(nn.Module):
    """What is written.

    Args:
        method: In evaluation mode, on the CPU.
        names: The modalities that it is given, in the order of the inputs.
    """

    def __init__(self, method: Method, names: Sequence[str]) -> None:
        super().__init__()
        self.method, self.names = method, tuple(names)

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        """The answers by name; what a method only hands on of its inputs is none."""
        sample = dict(zip(self.names, inputs, strict=True))
        if isinstance(self.method, Supervised):
            return {name: value for name, value in self.method.predict(sample).items() if name not in sample}
        return {"features": self.method.encode(sample).pooled}


def export_program(
    method: Method, path: Path, kind: str, about: Mapping[str, Any], given: Sequence[str] = ()
) -> tuple[str, list[str]]:
    """Writes the program, and runs the file once against the method before it takes the place of what lies there.

    Args:
        method: In evaluation mode.
        path: The file.
        kind: "torch" or "onnx".
        about: Metadata that JSON has.
        given: Of several modalities, those that it takes; all by default.

    Returns:
        How to run it, in Python; and what to know of it.

    Raises:
        MimError: The method cannot be written so, a library is missing, or the file gives other answers.
    """
    tokenizer: Any = method.eval().to("cpu").tokenizer
    told_of = method.told() if isinstance(method, Supervised) else {}
    shapes, ids = given_shapes(method, given) | dict.fromkeys(told_of, ()), {**tokenizer.ids, **told_of}
    module, example = Program(method, tuple(shapes)).eval(), random_inputs(shapes, ids, 3, 0)
    with torch.no_grad():
        names = tuple(module(*example))
    metadata = {**about, "inputs": {name: list(shape) for name, shape in shapes.items()}, "outputs": list(names)}
    write: Callable[..., bool] = {"torch": _write_torch, "onnx": _write_onnx}[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    refuse_device(path)
    tried = path.with_name(f".tried-{path.name}")
    try:
        with _without_gradients(method):
            any_batch = write(module, example, tried, metadata, names)
        again = random_inputs(shapes, ids, 2 if any_batch else 1, 1)
        with torch.no_grad():
            wanted = module(*again)
        outputs = {"torch": _run_torch, "onnx": _run_onnx}[kind](tried, tuple(shapes), again)
        _compare(dict(zip(names, outputs, strict=True)), wanted)
        tried.replace(path)
    finally:
        tried.unlink(missing_ok=True)
    notes = [] if any_batch else ["The program takes one sample at a time: this method's steps depend on the batch."]
    return _line(kind, path, shapes), notes


@contextmanager
def _without_gradients(method: Method) -> Iterator[None]:
    """Meanwhile no weight asks for a gradient, so that answers of what is written become arrays without further ado."""
    trained = [weight for weight in method.parameters() if weight.requires_grad]
    try:
        for weight in trained:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)


def random_inputs(
    shapes: Mapping[str, tuple[int, ...]], ids: Mapping[str, int], rows: int, seed: int
) -> tuple[Tensor, ...]:
    """A batch of random values."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randint(ids[name], value.shape, generator=generator)
        if name in ids
        else torch.randn(value.shape, generator=generator)
        for name, value in zeros(shapes, ids, rows).items()
    )


def _traced(module: Program, example: tuple[Tensor, ...]) -> tuple[Any, bool]:
    """torch's program, for any batch if it can be, else for one sample; and which."""
    batch = torch.export.Dim("batch", min=1, max=MOST)
    sizes = (tuple({0: batch} for _ in example),)
    try:
        with torch.no_grad():
            return torch.export.export(module, example, dynamic_shapes=sizes, strict=False), True
    except MimError:  # the method says itself that it is no program
        raise
    except Exception:  # torch raises many kinds: what depends on the batch is tried with one sample
        pass
    try:
        with torch.no_grad():
            return torch.export.export(module, tuple(value[:1] for value in example), strict=False), False
    except Exception as error:
        raise MimError(f"torch.export cannot write this method: {one_line(error)[:300]}") from error


def _write_torch(
    module: Program, example: tuple[Tensor, ...], path: Path, about: Mapping[str, Any], names: Sequence[str]
) -> bool:
    program, any_batch = _traced(module, example)
    content = io.BytesIO()  # torch's writer of archives ends the process where a disk is full
    torch.export.save(program, content, extra_files={ABOUT: json.dumps(about)})
    with replaced(path) as file:
        file.write(content.getbuffer())
    return any_batch


def _run_torch(path: Path, names: Sequence[str], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        return list(torch.export.load(path).module()(*inputs).values())


def _write_onnx(
    module: Program, example: tuple[Tensor, ...], path: Path, about: Mapping[str, Any], names: Sequence[str]
) -> bool:
    _check_onnx()
    traced, any_batch = _traced(module, example)
    silent = io.StringIO()  # the library tells how it works
    try:
        with redirect_stdout(silent), redirect_stderr(silent), warnings.catch_warnings(action="ignore"):
            program = torch.onnx.export(
                traced,
                (),
                input_names=list(module.names),
                output_names=list(names),
                dynamo=True,
                verbose=False,
                custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
            )
    except Exception as error:  # it raises many kinds
        raise MimError(f"ONNX cannot hold this method: {_lacking(error)}. torch's program can: --to torch") from error
    assert program is not None
    model = program.model_proto
    for name, value in about.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, value if isinstance(value, str) else json.dumps(value)
    with replaced(path) as file:
        file.write(model.SerializeToString())
    return any_batch


def _stable_sort(values: Any, *, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """torch's stable sort: ONNX's TopK of all, which has the lower place first among equals (its specification)."""
    from onnxscript import opset18

    count = opset18.Gather(opset18.Shape(values), [dim])
    return opset18.TopK(values, count, axis=dim, largest=int(descending), sorted=1)


def _lacking(error: Exception) -> str:
    """What ONNX lacks, where the library says it; else what it says."""
    message = one_line(error.__cause__ or error)
    match = re.search(r"target=torch\.ops\.([\w.]+)", message)
    return f"it has no operator for torch's {match[1]}" if match else message[:200]


def _run_onnx(path: Path, names: Sequence[str], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
    return [torch.from_numpy(value) for value in outputs]


def _check_onnx() -> None:
    """Raises MimError where a library of ONNX is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MimError('ONNX needs onnx, onnxscript and onnxruntime: pip install "mim-core[onnx]"') from error


def _compare(outputs: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raises MimError where the file gives other answers than the method."""
    for name, value in wanted.items():
        if not torch.allclose(outputs[name], value, rtol=NEAR, atol=NEAR):
            worst = float((outputs[name] - value).abs().max())
            raise MimError(
                f"The program gives other {name} than the run, {worst:.2g} apart, and was not kept. Please report it."
            )


def _line(kind: str, path: Path, shapes: Mapping[str, Any]) -> str:
    """How to run the file."""
    names = ", ".join(shapes)
    if kind == "torch":
        return f"torch.export.load({str(path)!r}).module()({names})"
    fed = ", ".join(f"{name!r}: {name}" for name in shapes)
    return f"onnxruntime.InferenceSession({str(path)!r}).run(None, {{{fed}}})"
