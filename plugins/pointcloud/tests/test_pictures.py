"""Clouds as pictures: what is drawn, where, and what can be switched on and off."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mim_pointcloud.pictures import SIDE, cloud_picture, page
from PIL import Image


def pixels(picture):
    return np.asarray(Image.open(io.BytesIO(picture.content)).convert("RGB")).astype(int)


def inked(picture):
    return (pixels(picture) < 250).any(axis=2)


def ball(count, seed=0):
    points = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return points / points.norm(dim=1, keepdim=True)


def point(*coordinates):
    return cloud_picture(torch.tensor([[*map(float, coordinates)]]).expand(1024, 3))


def centre(picture):
    """Row and column of what is drawn, from -1 at the top and left to 1."""
    return np.argwhere(inked(picture)).mean(axis=0) / (SIDE - 1) * 2 - 1


# ---- one cloud -------------------------------------------------------------------------------------------------------


def test_a_picture_is_a_png():
    picture = cloud_picture(ball(1024))
    assert (picture.media_type, picture.drawn) == ("image/png", True)
    assert picture.content.startswith(b"\x89PNG")
    assert pixels(picture).shape == (SIDE, SIDE, 3)
    assert len(picture.content) < 40_000  # 36 of them are in a report
    assert picture == cloud_picture(ball(1024))


def test_up_is_up_and_the_origin_in_the_middle():
    assert np.abs(centre(point(0, 0, 0))).max() < 0.02
    assert centre(point(0, 0.9, 0))[0] < -0.6
    assert centre(point(0, -0.9, 0))[0] > 0.6
    assert abs(centre(point(0, 0.9, 0))[1]) < 0.02


@pytest.mark.parametrize(("axis", "turn"), [("z", 1), ("x", 2)])
def test_any_axis_can_point_upwards(axis, turn):
    cloud = ball(500) * torch.tensor([0.3, 1.0, 0.6])
    assert cloud_picture(cloud) == cloud_picture(cloud.roll(turn, dims=1), up=axis)
    assert cloud_picture(cloud) != cloud_picture(cloud.roll(turn, dims=1))


def test_the_view_is_a_rotation():
    """Distances along the view's own axes are kept, and left and right are not swapped."""
    from mim_pointcloud.pictures import _seen

    for up in ("x", "y", "z"):
        view = _seen(np.eye(3), up)
        assert np.allclose(view @ view.T, np.eye(3))
        assert np.isclose(np.linalg.det(view), 1)


def test_what_is_nan_is_not_drawn_and_nothing_else_moves():
    cloud = ball(800)
    masked = cloud.clone()
    masked[400:] = torch.nan
    alone = torch.cat([cloud[:400], torch.full((400, 3), torch.inf)])
    assert cloud_picture(masked) == cloud_picture(alone)
    outside = inked(cloud_picture(masked)) & ~inked(cloud_picture(cloud))
    assert outside.sum() == 0  # every point is where it was
    assert inked(cloud_picture(masked)).sum() < inked(cloud_picture(cloud)).sum()
    assert not inked(cloud_picture(torch.full((64, 3), torch.nan))).any()
    assert not inked(cloud_picture(torch.zeros(0, 3))).any()


def test_near_points_cover_far_ones():
    from mim_pointcloud.pictures import _seen

    towards = torch.from_numpy(np.linalg.inv(_seen(np.eye(3), "y")))[2].float()  # the eye's direction in space
    red, blue = torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0])
    for order in ([0, 1], [1, 0]):
        rows = torch.stack([torch.cat([towards * 0.8, red]), torch.cat([-towards * 0.8, blue])])[order]
        middle = pixels(cloud_picture(rows, rgb=3))[SIDE // 2, SIDE // 2]
        assert middle[0] > 150
        assert middle[2] < 60


def test_far_points_are_paler_and_height_has_a_colour():
    from mim_pointcloud.pictures import _seen

    towards = torch.from_numpy(np.linalg.inv(_seen(np.eye(3), "y")))[2].float()
    black = torch.zeros(3)
    near, far = (cloud_picture(torch.cat([t * towards, black])[None], rgb=3) for t in (0.9, -0.9))
    assert pixels(near).min() < pixels(far).min() - 50
    low, high = (pixels(point(0, y, 0))[inked(point(0, y, 0))].mean(axis=0) for y in (-0.9, 0.9))
    assert low[2] > low[0] + 20  # blue below, yellow on top
    assert high[0] > high[2] + 40


def test_points_beyond_the_axes_are_at_the_border():
    assert centre(point(0, 50, 0))[0] < -0.9
    assert inked(point(0, 50, 0)).any()


@pytest.mark.parametrize("count", [1, 12, 60, 300, 5000])
def test_the_ground_is_white(count):
    """Whichever colours the file is reduced to."""
    for seed in range(4):
        found = pixels(cloud_picture(ball(count, seed)))
        assert (found[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_drawn(dtype):
    assert inked(cloud_picture(ball(256).to(dtype).requires_grad_())).any()


# ---- a page to turn shapes on ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows():
    shapes = torch.stack([ball(60, seed) for seed in range(3)])
    masked, rebuilt = shapes.clone(), shapes.clone()
    for number, count in enumerate((20, 30, 40)):
        masked[number, :count] = torch.nan
        rebuilt[number, :count] += 0.25
    return {"input": shapes, "masked": masked, "rebuilt": rebuilt}


def plotted(text):
    """(traces, layout) that the page gives to plotly."""
    start = text.rindex("Plotly.newPlot(")
    decoder, at, found = json.JSONDecoder(), text.index("[", start), []
    for _ in range(2):
        value, at = decoder.raw_decode(text, at)
        found.append(value)
        at = re.compile(r"[\s,]*").match(text, at).end()
    return found


def points(trace):
    return np.stack([trace[axis] for axis in "xyz"], axis=1)


@pytest.fixture(scope="module")
def shown(rows):
    return page(rows)


def test_the_page_is_whole(shown):
    assert shown.startswith("<!doctype html>")
    assert shown.rstrip().endswith("</html>")
    assert shown.count("* plotly.js v") == 1  # once, in the file
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=", shown)
    assert len(shown) < 7_000_000


def test_visible_hidden_and_rebuilt_are_traces(shown, rows):
    traces, _ = plotted(shown)
    assert [trace["name"] for trace in traces] == ["visible", "hidden", "rebuilt"]
    expected = (rows["input"][0, 20:], rows["input"][0, :20], rows["rebuilt"][0, :20])
    for trace, points_of in zip(traces, expected, strict=True):
        assert np.allclose(points(trace), points_of.numpy(), atol=1e-4)
    assert len({trace["marker"]["color"] for trace in traces}) == 3


def test_the_slider_goes_from_shape_to_shape(shown, rows):
    _, layout = plotted(shown)
    (slider,) = layout["sliders"]
    assert [step["label"] for step in slider["steps"]] == ["1", "2", "3"]
    for number, (step, count) in enumerate(zip(slider["steps"], (20, 30, 40), strict=True)):
        new, titles, which = step["args"]
        assert which == [0, 1, 2]  # coordinates only, so that a trace that is switched off stays so
        assert set(new) == {"x", "y", "z"}
        assert [len(each) for each in new["x"]] == [60 - count, count, count]
        found = np.stack([new[axis][2] for axis in "xyz"], axis=1)
        assert np.allclose(found, rows["rebuilt"][number, :count].numpy(), atol=1e-4)
        assert titles["title.text"].startswith(
            f"Shape {number + 1} of 3:<br>{60 - count} visible points, {count} hidden"
        )


def test_axes_have_one_scale_and_hold_every_input(shown, rows):
    scene = plotted(shown)[1]["scene"]
    ranges = [scene[f"{axis}axis"]["range"] for axis in "xyz"]
    assert ranges[0] == ranges[1] == ranges[2]
    assert ranges[0][1] == -ranges[0][0] >= float(rows["input"].abs().max())
    assert len(set(scene["aspectratio"].values())) == 1


def test_points_that_cannot_be_seen_are_counted(rows):
    wild = rows["rebuilt"].clone()
    wild[0, :2], wild[0, 2] = 50, torch.nan
    wild[2] = 1e-7
    traces, layout = plotted(page({**rows, "rebuilt": wild}))
    assert layout["title"]["text"].endswith("20 rebuilt (of these 3 outside the axes)")
    assert len(traces[2]["x"]) == 19
    assert "outside" not in layout["sliders"][0]["steps"][2]["args"][1]["title.text"]


@pytest.mark.parametrize("all_hidden", [True, False])
def test_nothing_hidden_and_nothing_visible(rows, all_hidden):
    masked = torch.full_like(rows["input"], torch.nan) if all_hidden else rows["input"]
    traces, _ = plotted(page({**rows, "masked": masked}))
    assert [len(trace["x"]) for trace in traces] == ([0, 60, 60] if all_hidden else [60, 0, 0])


def test_rows_that_do_not_fit_are_refused(rows):
    with pytest.raises(ValueError, match="missing: rebuilt"):
        page({"input": rows["input"], "masked": rows["masked"]})
    with pytest.raises(ValueError, match=r"share one shape.*\(3, 50, 3\)"):
        page({**rows, "rebuilt": rows["rebuilt"][:, :50]})


def test_the_camera_of_the_page_is_the_picture_s():
    from mim_pointcloud.pictures import _camera, _seen

    for up in ("x", "y", "z"):
        eye = _camera(up)["eye"]
        right, upwards, towards = _seen(np.array([[eye["x"], eye["y"], eye["z"]]]), up)[0]
        assert np.allclose([right, upwards], 0, atol=1e-9)
        assert towards > 0


def test_points_have_the_colour_of_the_nearest_group():
    from mim_pointcloud.data import Clouds

    source = Clouds(Clouds.Config(root=Path("sample")), {"points": (128, 3)})
    points = torch.cat([ball(64) * 0.2 + torch.tensor([0, 0.5, 0]), ball(64) * 0.2 - torch.tensor([0, 0.5, 0])])
    colours, centres = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]), torch.tensor([[0, 0.5, 0], [0, -0.5, 0]])
    found = pixels(source.unit_picture("points", points, colours, centres))
    red, blue = (found[..., a] > found[..., b] + 60 for a, b in ((0, 2), (2, 0)))
    assert red.any()
    assert blue.any()
    assert np.nonzero(red)[0].max() < np.nonzero(blue)[0].min()  # y points upwards
