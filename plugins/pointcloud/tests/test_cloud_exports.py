"""Shapes outside mim-core: a program answers as the run does, and the documented steps make its inputs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mim_core import build_method
from mim_core.host.loading import installed
from mim_core.interop.program_export import export_program
from mim_core.recipes.resolve import load_recipe, swap
from mim_pointcloud.data import Clouds
from mim_pointcloud.geometry import farthest_points

PAGE = Path(__file__).parents[3] / "docs/new-files.md"


def shapes(root, *names, points=40):
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        values = np.random.default_rng(len(name)).normal(size=(points, 3)) * 20 + 5
        np.save(root / f"{name}.npy", values.astype(np.float32))
    return root


def segmenter():
    """Two categories, with three parts and two; random weights."""
    registry = installed()
    run = load_recipe("pointcloud:point-mae-vit-tiny", registry, twin=True)
    run = swap(run, "method", "pointcloud:part-segmenter", registry)
    small = {"owners": (0, 0, 0, 1, 1), "propagation": (16,), "hidden": (16, 8), "category": 8}
    options = {"method": small, "encoder": {"depth": 3}, "tokenizer": {"points": 48, "groups": 6, "size": 8}}
    parts = {role: replace(p, options=replace(p.options, **options.get(role, {}))) for role, p in run.parts.items()}
    return build_method(replace(run, parts={role: parts[role] for role in ("method", "tokenizer", "encoder")}))


def read(root, count=16):
    plain = Clouds(Clouds.Config(root=root, splits=False), {"points": (count, 3)}).plain()
    return {name: plain.items[number]["points"] for number, name in enumerate(plain.names)}


def test_what_lies_beside_a_shape_does_not_change_it(tmp_path):
    alone = read(shapes(tmp_path / "a", "shape"))
    among = read(shapes(tmp_path / "b", "shape", "a", "few", "zebras"))
    torch.testing.assert_close(alone["shape.npy"], among["shape.npy"], rtol=0, atol=0)
    assert len({tuple(values.flatten().tolist()) for values in among.values()}) == 4


@pytest.mark.parametrize("points", [16, 9])
def test_the_documented_steps_of_a_cloud(tmp_path, points):
    block = next(part for part in PAGE.read_text().split("```") if "def cloud(" in part)
    names = {"np": np}
    exec(block.removeprefix("python\n"), names)
    root = shapes(tmp_path, "shape", points=points)
    made = names["cloud"](np.load(root / "shape.npy"), 16)
    assert made.shape == (16, 3)
    assert np.linalg.norm(made, axis=1).max() == pytest.approx(1)
    assert np.abs(made.mean(axis=0)).max() < 1e-6
    seen = read(root)["shape.npy"].numpy()
    if points == 16:  # all are drawn, so only their order differs
        np.testing.assert_allclose(np.sort(made, axis=0), np.sort(seen, axis=0), atol=1e-6)
    about = Clouds(Clouds.Config(root=root, splits=False), {"points": (16, 3)}).how_read()
    assert about["drawn"].startswith("16 points, at random")
    assert "less their mean" in about["unit_sphere"]
    off = Clouds(Clouds.Config(root=root, splits=False, normalise=False), {"points": (16, 3)}).how_read()
    assert off["unit_sphere"].startswith("no")


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_a_program_of_parts_is_told_the_category(tmp_path, kind):
    """Also where many distances are equal, as on a grid: neighbours are the run's."""
    method = segmenter().eval()
    count, _ = method.tokenizer.shapes["points"]
    points = torch.randint(-3, 4, (2, count, 3), generator=torch.Generator().manual_seed(0)) / 4
    label = torch.tensor([1, 0])
    path = tmp_path / f"program.{'pt2' if kind == 'torch' else kind}"
    if kind == "onnx":
        pytest.importorskip("onnxscript")
        runtime = pytest.importorskip("onnxruntime")
    line, notes = export_program(method, path, kind, {})
    assert "label" in line
    assert not notes  # of any batch
    if kind == "torch":
        with torch.no_grad():
            found = torch.export.load(path).module()(points, label)["part"]
    else:
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(["part"], {"points": points.numpy(), "label": label.numpy()})[0])
    with torch.no_grad():
        wanted = method.predict({"points": points, "label": label})["part"]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert (found[0, :, :3] == 0).all()  # parts of the other category


def test_huge_clouds_are_scaled_alike_in_a_program(monkeypatch):
    """There the scale is computed, and nothing waits for it."""
    points = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(1))
    wanted = farthest_points(points, 12)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for size in (1e-25, 1.0, 1e25):
        assert torch.equal(farthest_points(points * size, 12), wanted)
