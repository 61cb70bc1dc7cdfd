"""Other libraries behind the same signatures: what they are asked, what comes back, and what is said without them."""

import importlib
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from types import ModuleType

import pytest
import torch
from mim_core.errors import MimError
from mim_pointcloud import geometry
from mim_pointcloud.geometry import chamfer, farthest_points, nearest, within
from mim_pointcloud.geometry_backends import ADAPTERS
from scipy.spatial import cKDTree

KNN = namedtuple("KNN", "dists idx knn")


def on_grid(clouds, points, seed=0, steps=1024):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(-steps, steps + 1, (clouds, points, 3), generator=draw) / steps


# ---- choice ----------------------------------------------------------------------------------------------------------


def test_an_unknown_library_is_refused_with_the_nearest():
    x = on_grid(1, 4)
    calls = (
        lambda ops: farthest_points(x, 2, ops=ops),
        lambda ops: nearest(x, x, 2, ops=ops),
        lambda ops: within(x, x, 1.0, 2, ops=ops),
        lambda ops: chamfer(x, x, ops=ops),
    )
    for call in calls:
        with pytest.raises(MimError, match=r"(?s)'pytorch-3d'.*Did you mean 'pytorch3d'"):
            call("pytorch-3d")


@pytest.mark.parametrize("name", ["triton", "pytorch3d", "fpsample", "scipy"])
def test_a_missing_library_is_named_with_what_brings_it(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    x = on_grid(1, 4)
    for call in (lambda: farthest_points(x, 2, ops=name), lambda: nearest(x, x, 2, ops=name)):
        with pytest.raises(MimError, match="does not load") as error:
            call()
        assert geometry.INSTALL[name] in str(error.value)


def test_auto_is_plain_torch_on_a_cpu_and_triton_on_a_gpu():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert {geometry.chosen("auto", name, cpu) for name in ("farthest_points", "nearest", "chamfer")} == {"torch"}
    assert geometry.chosen("auto", "nearest", gpu) == "torch"
    pytest.importorskip("triton")
    assert geometry.chosen("auto", "farthest_points", gpu) == "triton"


def test_every_name_has_an_install_line():
    assert set(geometry.OPS) - {"auto", "torch"} == set(geometry.INSTALL) == set(geometry.BRINGS)


# ---- fpsample --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_fpsample_by_name(monkeypatch, dtype):
    fpsample = pytest.importorskip("fpsample")
    x, start = on_grid(3, 200, steps=64).to(dtype), torch.tensor([0, 3, 199])
    calls, true = [], fpsample.fps_sampling
    monkeypatch.setattr(fpsample, "fps_sampling", lambda *a, **k: calls.append(1) or true(*a, **k))
    found = farthest_points(x, 30, start, ops="fpsample")
    assert len(calls) == 3
    assert found.dtype == torch.int64
    assert found[:, 0].tolist() == start.tolist()
    for steps in (1024, 64, 3, 1):  # few steps: many ties, and at last no new place is left
        x = on_grid(3, 200, steps=steps)
        assert torch.equal(farthest_points(x, 60, start, ops="fpsample"), farthest_points(x, 60, start, ops="torch"))


def test_fpsample_leaves_the_rest_to_torch():
    pytest.importorskip("fpsample")
    x = on_grid(2, 30)
    assert torch.equal(nearest(x, x, 4, ops="fpsample")[1], nearest(x, x, 4)[1])


def test_fpsample_refuses_other_devices():
    pytest.importorskip("fpsample")
    with pytest.raises(MimError, match="fpsample works on the CPU"):
        ADAPTERS["fpsample"].farthest_points(
            torch.zeros(1, 4, 3, device="meta"), 2, torch.zeros(1, 1, dtype=torch.int64, device="meta")
        )


# ---- scipy -----------------------------------------------------------------------------------------------------------


def pairs_of_clouds():
    """Name -> queries and points: many ties, coinciding points, and numbers that float32 cannot square."""
    draw = torch.Generator().manual_seed(0)
    drawn = lambda count, **kind: torch.rand(2, count, 3, generator=draw, **kind)  # noqa: E731
    found = {f"steps of 1/{steps}": (on_grid(2, 300, 1, steps), on_grid(2, 400, 2, steps)) for steps in (1024, 16, 2)}
    found |= {"float64": (drawn(300, dtype=torch.float64), drawn(400, dtype=torch.float64))}
    found |= {"far away": (1000 + drawn(300) / 100, 1000 + drawn(400) / 100)}
    found |= {f"times {size:g}": (drawn(300) * size, drawn(400) * size) for size in (1e-40, 1e-20, 1e20)}
    same = drawn(200)
    found |= {"each twice": (same, same.repeat(1, 2, 1)), "all equal": (torch.ones(2, 50, 3), torch.ones(2, 60, 3))}
    found |= {
        "in a plane": (drawn(300)[..., :2], drawn(400)[..., :2]),
        "NaN": (same, same.index_fill(1, torch.tensor(3), torch.nan)),
    }
    return found


@pytest.mark.parametrize("name", pairs_of_clouds())
def test_scipy_s_trees_are_plain_torch(name):
    queries, points = pairs_of_clouds()[name]
    for k in (1, 2, 30):
        found, wanted = nearest(queries, points, k, ops="scipy"), nearest(queries, points, k, ops="torch")
        assert torch.equal(found[1], wanted[1])
        assert torch.equal(found[0].nan_to_num(), wanted[0].nan_to_num())
    for norm in ("l2", "l1"):
        slopes = []
        for ops in ("scipy", "torch"):
            moved = queries.clone().requires_grad_()
            slopes.append(torch.autograd.grad(chamfer(moved, points, norm, ops=ops).sum(), moved)[0].nan_to_num())
        assert torch.equal(*slopes)


def test_large_clouds_on_a_cpu_are_searched_by_trees(monkeypatch):
    asked = []
    module = importlib.import_module("mim_pointcloud.geometry_scipy")
    true = module.nearest
    monkeypatch.setattr(module, "nearest", lambda *given: asked.append(1) or true(*given))
    many, few = on_grid(1, 1100, 1), on_grid(40, 32, 2)
    nearest(many, many, 4)
    assert len(asked) == 1
    chamfer(many, many)
    assert len(asked) == 3
    chamfer(few, few)
    nearest(many, many, 4, ops="torch")
    nearest(many.repeat(1, 1, 2), many.repeat(1, 1, 2), 4)  # six axes
    assert len(asked) == 3


def test_scipy_refuses_other_devices():
    there = torch.zeros(1, 4, 3, device="meta")
    with pytest.raises(MimError, match="scipy works on the CPU"):
        importlib.import_module("mim_pointcloud.geometry_scipy").nearest(there, there, 2)


def test_a_chamfer_distance_of_100_000_points_takes_seconds_and_little_memory():
    a, b = (torch.rand(1, 100_000, 3, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    begin = time.process_time()
    found = chamfer(a, b)
    assert time.process_time() - begin < 20  # all pairs take a minute or more
    trees = cKDTree(a[0].numpy()), cKDTree(b[0].numpy())
    wanted = sum((tree.query(other[0].numpy())[0] ** 2).mean() for tree, other in zip(trees, (b, a), strict=True))
    assert float(found) == pytest.approx(wanted, rel=1e-5)


# ---- pytorch3d -------------------------------------------------------------------------------------------------------


def checked(*tensors):
    for tensor in tensors:
        assert tensor.dtype == torch.float32, "pytorch3d's kernels take float32 alone"
        assert tensor.ndim == 3


def fake_farthest(points, lengths=None, K=50, random_start_point=False):
    checked(points)
    assert lengths is None
    assert not random_start_point
    assert isinstance(K, int)
    ids = torch.empty(points.shape[0], K, dtype=torch.int64)
    for row, cloud in zip(ids, points, strict=True):
        least, at = torch.full((len(cloud),), 1e10), 0
        for step in range(K):
            row[step] = at
            least = torch.minimum(least, ((cloud - cloud[at]) ** 2).sum(1))
            at = int(least.argmax())
    return points[torch.arange(len(ids))[:, None], ids], ids


def fake_knn(p1, p2, lengths1=None, lengths2=None, norm=2, K=1, version=-1, return_nn=False, return_sorted=True):
    checked(p1, p2)
    assert norm == 2
    assert return_sorted
    squares = ((p1[:, :, None] - p2[:, None]) ** 2).sum(-1)
    return KNN(*squares.topk(K, largest=False), None)


def fake_ball(p1, p2, lengths1=None, lengths2=None, K=500, radius=0.2, return_nn=True):
    checked(p1, p2)
    assert not return_nn, "the points themselves are not used"
    ids = torch.full((*p1.shape[:2], K), -1)
    squares = ((p1[:, :, None] - p2[:, None]) ** 2).sum(-1)
    for i in range(len(p1)):
        for j in range(p1.shape[1]):
            inside = (squares[i, j] < radius * radius).nonzero()[:K, 0]
            ids[i, j, : len(inside)] = inside
    return KNN(torch.zeros(ids.shape), ids, None)


def fake_chamfer(
    x, y, x_lengths=None, y_lengths=None, x_normals=None, y_normals=None, weights=None, batch_reduction="mean",
    point_reduction="mean", norm=2, single_directional=False, abs_cosine=True,
):  # fmt: skip
    checked(x, y)
    assert (batch_reduction, point_reduction, norm, single_directional) == (None, "mean", 2, False)
    return fake_knn(x, y).dists.mean((1, 2)) + fake_knn(y, x).dists.mean((1, 2)), None


@pytest.fixture(params=["fake", "real"])
def pytorch3d(request, monkeypatch):
    """pytorch3d, or a module that takes its arguments as documented and says how often it was asked."""
    calls = []
    if request.param == "real":
        pytest.importorskip("pytorch3d")
        modules = {name: importlib.import_module(name) for name in ("pytorch3d.ops", "pytorch3d.loss")}
    else:
        modules = {name: ModuleType(name) for name in ("pytorch3d", "pytorch3d.ops", "pytorch3d.loss")}
        ops = modules["pytorch3d.ops"]
        ops.sample_farthest_points, ops.knn_points, ops.ball_query = fake_farthest, fake_knn, fake_ball
        modules["pytorch3d.loss"].chamfer_distance = fake_chamfer
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
    for module, name in (
        ("pytorch3d.ops", "sample_farthest_points"), ("pytorch3d.ops", "knn_points"), ("pytorch3d.ops", "ball_query"),
        ("pytorch3d.loss", "chamfer_distance"),
    ):  # fmt: skip
        true = getattr(modules[module], name)
        spy = lambda *a, true=true, name=name, **k: calls.append(name) or true(*a, **k)  # noqa: E731
        monkeypatch.setattr(modules[module], name, spy)
    return calls


@pytest.mark.parametrize("start", [0, 5, torch.tensor([0, 99, 41])])
def test_pytorch3d_farthest_points_from_any_start(pytorch3d, start):
    draw = torch.Generator().manual_seed(1)  # no two distances alike: the order of points decides nothing
    x = torch.rand(3, 100, 3, generator=draw, dtype=torch.float64)
    found = farthest_points(x, 25, start, ops="pytorch3d")
    assert pytorch3d == ["sample_farthest_points"]
    assert found.dtype == torch.int64
    assert torch.equal(found, farthest_points(x.float(), 25, start, ops="torch"))


def test_pytorch3d_neighbours(pytorch3d):
    draw = torch.Generator().manual_seed(1)
    queries, points = (torch.rand(2, n, 3, generator=draw, dtype=torch.float64) for n in (15, 80))
    squares, ids = nearest(queries, points, 6, ops="pytorch3d")
    mine, places = nearest(queries.float(), points.float(), 6)
    assert torch.equal(ids, places)
    assert squares.dtype == torch.float64
    torch.testing.assert_close(squares.float(), mine)
    assert pytorch3d == ["knn_points"]
    for radius in (0.05, 0.3):  # at the first, some queries have none
        expected = within(queries.float(), points.float(), radius, 9)
        assert torch.equal(within(queries, points, radius, 9, ops="pytorch3d"), expected)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_pytorch3d_chamfer_and_its_gradient(pytorch3d, norm, dtype):
    a, b = on_grid(3, 10, 1).to(dtype), on_grid(3, 14, 2).to(dtype)
    slopes, values = [], []
    for ops in ("pytorch3d", "torch"):
        moved = a.clone().requires_grad_()
        values.append(chamfer(moved, b, norm, ops=ops))
        slopes.append(torch.autograd.grad(values[-1].sum(), moved)[0])
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*slopes, rtol=1e-4 if dtype != torch.bfloat16 else 2e-2, atol=1e-5)
    assert values[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert pytorch3d == (["chamfer_distance"] if norm == "l2" else ["knn_points"] * 2)


# ---- triton ----------------------------------------------------------------------------------------------------------

INTERPRETED = """
import torch
from mim_pointcloud import geometry, geometry_triton

draw = torch.Generator().manual_seed(0)
for resident in (geometry_triton.RESIDENT, 32):  # in registers, and tile by tile
    geometry_triton.RESIDENT = resident
    shapes = (3, 100, 20, 1024), (2, 64, 40, 1024), (1, 33, 5, 2), (2, 70, 30, 1), (2, 1, 1, 9)
    for clouds, points, count, steps in shapes:
        x = torch.randint(-steps, steps + 1, (clouds, points, 3), generator=draw) / steps
        for start in (points - 1, torch.arange(clouds) % points):
            found = geometry.farthest_points(x, count, start, ops="triton")
            assert torch.equal(found, geometry.farthest_points(x, count, start, ops="torch")), (resident, x.shape)
    assert geometry.farthest_points(torch.zeros(0, 5, 3), 2, ops="triton").shape == (0, 2)
    assert geometry.farthest_points(torch.ones(1, 40, 3), 3, 7, ops="triton").tolist() == [[7, 0, 0]]
print("as torch")
"""


def test_the_triton_kernel_interpreted_is_torch(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    done = subprocess.run([sys.executable, "-c", INTERPRETED], capture_output=True, text=True, timeout=240)
    assert done.stdout.strip() == "as torch", done.stderr


def test_triton_refuses_the_cpu(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(MimError, match="on the CPU"):
        farthest_points(on_grid(1, 9), 3, ops="triton")


@pytest.mark.parametrize(("width", "whole"), [(1024, True), (4096, True), (4096, False)])
def test_the_triton_kernel_compiles_for_a_gpu_without_fused_products(width, whole):
    """No GPU is needed to compile; a fused multiply-add would round otherwise than torch does."""
    pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    kernel = importlib.import_module("mim_pointcloud.geometry_triton").farthest_kernel
    numbers = {"points": "*fp32", "first": "*i64", "least": "*fp32", "ids": "*i64", "number": "i32", "count": "i32"}
    signature = {**numbers, "WIDTH": "constexpr", "WHOLE": "constexpr"}
    source = ASTSource(fn=kernel, signature=signature, constexprs={(6,): width, (7,): whole})
    built = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8, "enable_fp_fusion": False})
    assert "mul" in built.asm["ptx"]
    assert "fma" not in built.asm["ptx"]


# ---- the benchmark ---------------------------------------------------------------------------------------------------


def test_the_benchmark_runs():
    script = Path(__file__).parents[3] / "benchmarks" / "pointcloud_ops.py"
    done = subprocess.run([sys.executable, str(script), "--quick"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    for operation in ("farthest points, 2 x 128", "nearest, 8 of", "within 0.2", "Chamfer and gradient"):
        assert f"| {operation}" in done.stdout
    assert "other points" not in done.stdout


# ---- a GPU -----------------------------------------------------------------------------------------------------------

cuda = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("marked", [pytest.param(None, marks=cuda)])
@pytest.mark.parametrize(("clouds", "points", "count"), [(32, 1024, 64), (3, 1000, 40), (2, 100_000, 64), (4, 1, 1)])
@pytest.mark.parametrize("steps", [1024, 3])
def test_farthest_points_on_a_gpu_are_the_cpu_s(marked, clouds, points, count, steps):
    x, start = on_grid(clouds, points, steps=steps), torch.arange(clouds) % points
    expected = farthest_points(x, count, start)
    for ops in ("auto", "triton", "torch"):
        found = farthest_points(x.cuda(), count, start.cuda(), ops=ops)
        assert found.is_cuda
        assert torch.equal(found.cpu(), expected), ops


@pytest.mark.parametrize("marked", [pytest.param(None, marks=cuda)])
def test_triton_is_torch_on_any_float32(marked):
    x = torch.randn(16, 5000, 3, generator=torch.Generator().manual_seed(0))
    for part in (x, x[:, :1024]):
        assert torch.equal(farthest_points(part.cuda(), 128).cpu(), farthest_points(part, 128))


@pytest.mark.parametrize("marked", [pytest.param(None, marks=cuda)])
@pytest.mark.parametrize("steps", [1024, 3])
def test_neighbours_and_chamfer_on_a_gpu_are_the_cpu_s(marked, monkeypatch, steps):
    queries, points = on_grid(4, 64, 1, steps), on_grid(4, 1024, 2, steps)
    there = queries.cuda(), points.cuda()
    for pairs in (geometry.GPU_PAIRS, 10_000):
        monkeypatch.setattr(geometry, "GPU_PAIRS", pairs)
        for k in (1, 32):
            for one, other in zip(nearest(*there, k), nearest(queries, points, k), strict=True):
                assert torch.equal(one.cpu(), other)
        assert torch.equal(within(*there, 0.3, 16).cpu(), within(queries, points, 0.3, 16))
        for norm in ("l2", "l1"):
            torch.testing.assert_close(chamfer(*there, norm).cpu(), chamfer(queries, points, norm))


@pytest.mark.parametrize("marked", [pytest.param(None, marks=cuda)])
def test_nothing_waits_for_the_gpu(marked):
    points = on_grid(4, 1024).cuda()
    start = torch.arange(4).cuda()
    wanted = points[:, :64].clone().requires_grad_()

    def everything():
        ids = farthest_points(points, 64, start)
        farthest_points(points, 8, ops="torch")
        centres = geometry.gather(points, ids)
        nearest(centres, points, 32)
        within(centres, points, 0.2, 16)
        (chamfer(wanted, points, "l1") + chamfer(wanted, points)).sum().backward()

    everything()  # the first call compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        everything()
    finally:
        torch.cuda.set_sync_debug_mode("default")
