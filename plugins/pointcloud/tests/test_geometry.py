"""Plain operations against other people's and against loops: indices, distances, gradients, ties, chunks, types."""

import itertools

import pytest
import torch
from jaxtyping import TypeCheckError
from mim_pointcloud import geometry
from mim_pointcloud.geometry import chamfer, farthest_points, gather, nearest, within
from scipy.spatial import cKDTree

WRONG = (ValueError, TypeError)
"""A shape that does not fit: ValueError, or the annotations' own error where tests check them."""


def on_grid(clouds, points, seed=0, steps=1024):
    """Coordinates in [-1, 1] in steps of 2^-10: squared distances are exact in float32, in any order."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(-steps, steps + 1, (clouds, points, 3), generator=draw) / steps


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def farthest_by_loop(cloud, count, start):
    least, ids = torch.full((len(cloud),), torch.inf), [start]
    for _ in range(count - 1):
        least = torch.minimum(least, ((cloud - cloud[ids[-1]]) ** 2).sum(1))
        best = max(range(len(cloud)), key=lambda i: (float(least[i]), -i))
        ids.append(best)
    return ids


def nearest_by_loop(query, cloud, k):
    squares = [float(((query - point).double() ** 2).sum()) for point in cloud]
    return sorted(range(len(cloud)), key=lambda i: (squares[i], i))[:k]


def chamfer_by_loop(a, b, norm):
    root = (lambda x: x) if norm == "l2" else torch.sqrt
    there = sum(min(root(((p - q) ** 2).sum()) for q in b) for p in a) / len(a)
    back = sum(min(root(((p - q) ** 2).sum()) for p in a) for q in b) / len(b)
    return there + back if norm == "l2" else (there + back) / 2


# ---- farthest points -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clouds", "points", "count"), [(3, 500, 40), (32, 1024, 64), (1, 20_000, 16), (2, 64, 64)])
def test_farthest_points_are_fpsample_s(clouds, points, count):
    """These clouds have no ties, at which fpsample takes the highest index."""
    fpsample = pytest.importorskip("fpsample")
    x = on_grid(clouds, points)
    start = torch.arange(clouds) * 7 % points
    theirs = [fpsample.fps_sampling(x[i].numpy(), count, start_idx=int(start[i])).tolist() for i in range(clouds)]
    assert farthest_points(x, count, start).tolist() == theirs
    assert farthest_points(x, count, 5)[0].tolist() == fpsample.fps_sampling(x[0].numpy(), count, start_idx=5).tolist()


@pytest.mark.parametrize("points", [1, 31, 32, 33, 600])
@pytest.mark.parametrize("clouds", [1, 30])
def test_farthest_points_take_the_lowest_index_among_equals(clouds, points):
    x = 4 + on_grid(clouds, points, steps=2)  # 125 places: most points coincide with others; the origin is far away
    count = min(points, 150)
    found = farthest_points(x, count)
    for i in {0, clouds - 1}:
        assert found[i].tolist() == farthest_by_loop(x[i], count, 0)


def test_farthest_points_of_one_place_and_of_a_line():
    assert farthest_points(torch.ones(2, 40, 3), 4, 9).tolist() == [[9, 0, 0, 0]] * 2
    line = torch.zeros(1, 9, 3)
    line[0, :, 1] = torch.arange(9)
    assert farthest_points(line, 5).tolist() == [[0, 8, 4, 2, 6]]
    assert sorted(farthest_points(line, 9, 3)[0].tolist()) == list(range(9))


def test_farthest_points_refuse_what_does_not_fit():
    x = on_grid(2, 8)
    for count in (0, 9):
        with pytest.raises(ValueError, match="cannot choose"):
            farthest_points(x, count)
    for start in (-1, 8, torch.tensor([0, 8])):
        with pytest.raises(ValueError, match="start from"):
            farthest_points(x, 2, start)
    for wrong in (x[0], x[..., :2]):
        with pytest.raises(WRONG):
            farthest_points(wrong, 2)
    with pytest.raises(WRONG):
        farthest_points(x, 2, torch.tensor([0, 1, 2]))


def test_farthest_points_leave_points_and_generator_alone():
    x = on_grid(2, 50)
    before, state = x.clone(), torch.get_rng_state()
    farthest_points(x.requires_grad_(), 10)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)


# ---- neighbours ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimension", [1, 3, 6])
def test_nearest_are_scipy_s(dimension):
    queries, points = normal(3, 20, dimension, seed=1), normal(3, 400, dimension, seed=2)
    squares, ids = nearest(queries, points, 12)
    for i in range(3):
        distances, places = cKDTree(points[i].numpy()).query(queries[i].numpy(), 12)
        assert ids[i].tolist() == places.tolist()
        torch.testing.assert_close(squares[i].double().sqrt(), torch.from_numpy(distances))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 2, 13, 90])
def test_nearest_take_the_lowest_index_among_equals(dtype, k):
    queries, points = on_grid(2, 9, 1, steps=2).to(dtype), on_grid(2, 90, 2, steps=2).to(dtype)
    squares, ids = nearest(queries, points, k)
    assert (squares.diff() >= 0).all()
    for i, j in itertools.product(range(2), range(9)):
        assert ids[i, j].tolist() == nearest_by_loop(queries[i, j], points[i], k)


def test_distances_of_near_points_far_from_the_origin_do_not_cancel():
    points = torch.tensor([[[100.0, 100, 100], [100.0078125, 100, 100], [100.015625, 100, 100]]])
    squares, ids = nearest(points[:, :1], points, 3)
    assert ids.tolist() == [[[0, 1, 2]]]
    assert squares.tolist() == [[[0, 2**-14, 2**-12]]]


def test_within_is_a_loop_s():
    queries, points = on_grid(2, 30, 1, steps=8), on_grid(2, 80, 2, steps=8)
    for radius, k in ((0.125, 4), (0.5, 4), (0.75, 16), (4.0, 100)):
        found = within(queries, points, radius, k)
        for i, j in itertools.product(range(2), range(30)):
            squares = ((points[i] - queries[i, j]) ** 2).sum(1)
            inside = [n for n in range(80) if squares[n] < radius * radius][:k]
            filler = inside[0] if inside else nearest_by_loop(queries[i, j], points[i], 1)[0]
            assert found[i, j].tolist() == inside + [filler] * (k - len(inside))


def test_within_leaves_out_the_sphere_itself_and_falls_back_on_the_nearest():
    points = torch.tensor([[[3.0, 0, 0], [2.0, 0, 0], [1.0, 0, 0]]])
    origin = torch.zeros(1, 1, 3)
    assert within(origin, points, 2.0, 3).tolist() == [[[2, 2, 2]]]
    assert within(origin, points, 2.5, 3).tolist() == [[[1, 2, 1]]]
    assert within(origin, points, 0.5, 3).tolist() == [[[2, 2, 2]]]


def test_neighbours_refuse_what_does_not_fit():
    x = on_grid(2, 8)
    for k in (0, 9):
        with pytest.raises(ValueError, match="neighbours among 8"):
            nearest(x, x, k)
    for radius, k in ((0.0, 1), (-1.0, 1), (float("nan"), 1), (1.0, 0)):
        with pytest.raises(ValueError, match="radius above 0"):
            within(x, x, radius, k)
    for wrong in (x[0], x[:1], x[..., :2]):
        with pytest.raises(WRONG):
            nearest(x, wrong, 1)
        with pytest.raises(WRONG):
            within(x, wrong, 1.0, 1)


def test_gather_is_indexing():
    values, ids = normal(3, 10, 4, 2), torch.randint(0, 10, (3, 5, 6), generator=torch.Generator().manual_seed(0))
    found = gather(values, ids)
    assert found.shape == (3, 5, 6, 4, 2)
    for i in range(3):
        assert torch.equal(found[i], values[i][ids[i]])
    flat = torch.arange(30).reshape(3, 10)
    assert torch.equal(gather(flat, ids[:, 0]), ids[:, 0] + 10 * torch.arange(3)[:, None])
    with pytest.raises(WRONG):
        gather(values, ids[:2])


# ---- Chamfer ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize(("n", "m"), [(7, 7), (5, 12), (1, 3), (1, 1)])
def test_chamfer_is_a_double_loop_s(norm, n, m):
    a, b = normal(3, n, 3, seed=1), normal(3, m, 3, seed=2)
    expected = torch.stack([chamfer_by_loop(a[i], b[i], norm) for i in range(3)])
    torch.testing.assert_close(chamfer(a, b, norm), expected)
    torch.testing.assert_close(chamfer(b, a, norm), expected)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_gradients_are_finite_differences(norm):
    a, b = (normal(2, n, 3, seed=n, dtype=torch.float64).requires_grad_() for n in (6, 9))
    assert torch.autograd.gradcheck(lambda a, b: chamfer(a, b, norm), (a, b))
    assert torch.autograd.gradcheck(lambda a, b: nearest(a, b, 4)[0], (a, b))
    assert torch.autograd.gradcheck(lambda b: gather(b, nearest(a, b, 4)[1]), (b,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_gradients_where_points_coincide_are_zero(dtype):
    a = normal(2, 5, 3).to(dtype).requires_grad_()
    for norm in ("l2", "l1"):
        value = chamfer(a, a.detach().clone(), norm)
        (slope,) = torch.autograd.grad(value.sum(), a)
        assert (value == 0).all()
        assert (slope == 0).all()


def test_chamfer_refuses_what_does_not_fit():
    x = on_grid(2, 4)
    with pytest.raises(ValueError, match="both sides"):
        chamfer(x, x[:, :0])
    with pytest.raises((ValueError, TypeCheckError), match="l3"):
        chamfer(x, x, "l3")


# ---- all -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [1, 50, 333])
def test_chunks_change_nothing(monkeypatch, pairs):
    queries, points = on_grid(3, 17, 1, steps=4), on_grid(3, 29, 2, steps=4)

    def all_of_them():
        return (
            *nearest(queries, points, 5), nearest(queries, points, 1)[1], within(queries, points, 0.4, 6),
            chamfer(queries, points), chamfer(queries, points, "l1"),
        )  # fmt: skip

    whole = all_of_them()
    monkeypatch.setattr(geometry, "CPU_PAIRS", pairs)
    for one, other in zip(whole, all_of_them(), strict=True):
        assert torch.equal(one, other)


def test_no_array_of_all_pairs(monkeypatch):
    """200,000 queries and as many points, of which all pairs would take 160 GB: the first chunk is as large as said."""
    seen = []

    def stop(queries, points):
        seen.append(queries.shape[0] * queries.shape[1] * points.shape[1])
        raise StopIteration

    monkeypatch.setattr(geometry, "_distances", stop)
    x = torch.zeros(1, 200_000, 3)
    for call in (lambda: nearest(x, x, 2), lambda: within(x, x, 1.0, 2), lambda: chamfer(x, x)):
        with pytest.raises(StopIteration):
            call()
    assert len(seen) == 3
    assert max(seen) <= geometry.CPU_PAIRS


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_computed_in_at_least_float32(dtype):
    """Points that either half type holds: the answers are those of float32."""
    queries, points = on_grid(2, 9, 1, steps=64), on_grid(2, 70, 2, steps=64)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    given = queries.to(dtype), points.to(dtype)
    assert torch.equal(farthest_points(given[1], 20), farthest_points(points, 20))
    squares, ids = nearest(*given, 7)
    assert torch.equal(ids, nearest(queries, points, 7)[1])
    assert squares.dtype == chamfer(*given).dtype == wide
    assert torch.equal(squares, nearest(queries, points, 7)[0].to(wide))
    assert torch.equal(within(*given, 0.3, 5), within(queries, points, 0.3, 5))
    torch.testing.assert_close(chamfer(*given, "l1"), chamfer(queries, points, "l1").to(wide))
    assert gather(given[1], ids).dtype == dtype
    assert nearest(queries, given[1], 1)[0].dtype == wide


def test_under_autocast_nothing_is_computed_in_half():
    queries, points = on_grid(2, 9, 1), on_grid(2, 70, 2)
    expected = (*nearest(queries, points, 7), farthest_points(points, 9), chamfer(queries, points, "l1"))
    with torch.autocast("cpu", torch.bfloat16):
        found = (*nearest(queries, points, 7), farthest_points(points, 9), chamfer(queries, points, "l1"))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_no_clouds_and_no_queries():
    x = torch.zeros(0, 5, 3)
    assert farthest_points(x, 3).shape == (0, 3)
    assert nearest(x, x, 2)[1].shape == within(x, x, 1.0, 2).shape == (0, 5, 2)
    assert chamfer(x, x).shape == (0,)
    assert nearest(torch.zeros(2, 0, 3), torch.zeros(2, 4, 3), 2)[0].shape == (2, 0, 2)


def test_strided_input():
    x = on_grid(2, 60, 3).permute(0, 2, 1).contiguous().permute(0, 2, 1)
    assert torch.equal(farthest_points(x[:, ::2], 9), farthest_points(x[:, ::2].contiguous(), 9))
    assert torch.equal(nearest(x[:, ::3], x, 9)[1], nearest(x[:, ::3].contiguous(), x.contiguous(), 9)[1])
