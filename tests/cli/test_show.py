"""show RUN --what: attention by head, units as colours, neighbours, and a map; as a page and as a picture."""

import json
import re

import numpy as np
import pytest
import torch
from mim_core.cli import main
from mim_core.evaluation import looks
from mim_core.evaluation.features import prepare_study
from mim_core.host.loading import installed
from mim_core.runs.load import load_run
from PIL import Image


def shown(run, what, *options, within=None):
    assert main(["show", str(run), "--what", what, *map(str, options)]) == 0
    folder = within or run
    picture = Image.open(folder / f"show-{what}.png")
    assert min(picture.size) > 100
    return (folder / f"show-{what}.html").read_text()


def test_attention_is_that_of_the_class_token_by_head(small_run):
    page = shown(small_run, "attention", "--samples", 2)
    assert "How much the class token attends" in page
    assert page.count("<img") == 2 * (1 + 1 + 2)  # the picture, the mean, and two heads
    run, method, _ = load_run(small_run)
    found = looks.encode_shown(run, method, 2, attention=True).encoded.attention
    assert found.shape == (2, 2, 17, 17)
    torch.testing.assert_close(found.sum(dim=3), torch.ones(2, 2, 17))
    block, (sample, _) = method.encoder.blocks[-1], looks.held_out_samples(load_run(small_run).source(), 2)
    seen = []
    handle = block.attn.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        method.encode({"image": sample["image"]})
        handle.remove()
        query, key = block.attn.qkv(seen[0]).reshape(2, 17, 3, 2, 16).permute(2, 0, 3, 1, 4)[:2]
        wanted = (query @ key.transpose(2, 3) / 16**0.5).softmax(dim=3)
    torch.testing.assert_close(found, wanted)


def test_units_of_alike_features_have_alike_colours(small_run):
    page = shown(small_run, "pca", "--samples", 3)
    assert page.count("<img") == 6
    sample, _ = looks.held_out_samples(load_run(small_run).source(), 3)
    for name in looks.names_of(load_run(small_run).source(), sample["index"]):
        assert page.count(f"<figcaption>{name}</figcaption>") == 2
    assert re.search(r"Shares of the variance: \d+%, \d+%, \d+%\.", page)
    values = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9)
    places, shares = looks.principal(values, 3)
    left, size, _ = np.linalg.svd((values - values.mean(dim=0)).double().numpy(), full_matrices=False)
    np.testing.assert_allclose(places.abs().numpy(), np.abs(left[:, :3] * size[:3]), atol=1e-4)
    np.testing.assert_allclose(shares.numpy(), size[:3] ** 2 / (size**2).sum(), atol=1e-6)
    torch.testing.assert_close(looks.principal(values, 3)[0], places, rtol=0, atol=0)


def test_neighbours_are_scored_beside_their_controls(small_run):
    page = shown(small_run, "neighbours", "--samples", 2)
    study = prepare_study(small_run, installed())
    train, test = study.labels
    for row, features in study.rows.items():
        unit = [torch.nn.functional.normalize(part, dim=1) for part in (features.test, features.train)]
        near = (unit[0] @ unit[1].T).argsort(dim=1, descending=True)[:, : looks.NEAREST]
        assert f"{row} {float((train[near] == test[:, None]).double().mean()):.3f}" in page
    assert "any training sample 0.500" in page
    assert page.count("✓") + page.count("✗") == 2 * looks.NEAREST


@pytest.mark.parametrize("projection", ["pca", "tsne"])
def test_a_map_has_every_sample_beside_the_controls(small_run, projection, monkeypatch):
    if projection == "tsne":
        monkeypatch.setenv("KMP_DUPLICATE_LIB_OK", "True")  # scikit-learn sets both when it is imported
        monkeypatch.setenv("KMP_INIT_AT_FORK", "FALSE")
        pytest.importorskip("sklearn")
    page = shown(small_run, "map", "--projection", projection)
    assert page.count("<circle") == 3 * 4
    assert re.findall(r"<div><h2>([^<]+)", page) == ["raw input", "untrained encoder", "pre-trained encoder"]
    assert "round/" in page
    places = looks.project(torch.randn(9, 5, generator=torch.Generator().manual_seed(0)), projection)
    assert places.shape == (9, 2)
    assert float(places.abs().max()) == pytest.approx(1)


def test_names_are_text(small_run):
    cell = looks.Cell(looks.grid_picture(torch.zeros(4, 3), (2, 2)), "<q>")
    from mim_core.evaluation.look_page import write_look

    page, _ = write_look(looks.Look("t", "<i>", [looks.Strip("<u>", [cell])]), small_run / "looks", "pca", "<s>", "c")
    assert not [tag for tag in ("<i>", "<u>", "<s>", "<q>") if tag in page.read_text()]


def test_a_grid_of_three_axes_is_a_film_strip():
    colours = torch.rand(4 * 2 * 3, 3)
    picture = looks.grid_picture(colours, (4, 2, 3), 16)
    import io

    pixels = np.asarray(Image.open(io.BytesIO(picture.content)))[..., :3]
    side = -(-looks.WIDTH // 3)
    assert pixels.shape == (2 * side, 8 * 3 * side + 7 * 2, 3)
    steps = torch.linspace(0, 15, 8).round().long() // 4
    corner = [number * (3 * side + 2) for number in range(8)]
    wanted = (colours.reshape(4, 2, 3, 3)[steps, 0, 0] * 255).round().byte()
    assert pixels[0, corner].tolist() == wanted.tolist()


@pytest.mark.parametrize(
    ("recipe", "what", "says"),
    [
        ("image:mcmae-tiny", "attention", "gives no attention; --what pca"),
        ("core:none", "map", "holds no complete checkpoint"),
    ],
)
def test_what_cannot_be_shown_is_one_line(tmp_path, capsys, recipe, what, says):
    run = tmp_path / "run"
    if recipe != "core:none":
        short = ["--train.steps", "1", "--train.warmup-epochs", "0", "--train.workers", "0", "--quiet"]
        assert main(["pretrain", recipe, "--twin", "--out", str(run), *short]) == 0
    assert main(["show", str(run), "--what", what]) == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_without_labels_it_is_said(tmp_path, small_run, capsys):
    source = json.loads((small_run / "checkpoints/step-00000002/state.json").read_text())
    assert source["items"] == 20
    for number in range(6):
        (tmp_path / "flat").mkdir(exist_ok=True)
        Image.new("L", (28, 28), 30 * number).save(tmp_path / "flat" / f"{number}.png")
    short = ["--train.steps", "1", "--train.warmup-epochs", "0", "--train.workers", "0", "--quiet"]
    start = ["pretrain", "image:mae-vit-tiny", "--twin", "--out", str(tmp_path / "r"), *short]
    assert main([*start, "--data.root", str(tmp_path / "flat")]) == 0
    assert main(["show", str(tmp_path / "r"), "--what", "map"]) == 2
    assert "no classes" in capsys.readouterr().err
    assert shown(tmp_path / "r", "pca").count("<img") == 12


def test_other_data_are_shown_where_they_are_named(tmp_path, small_run, capsys):
    """As of a run that was imported, which has none of its own."""
    for number in range(4):
        (tmp_path / "flat").mkdir(exist_ok=True)
        Image.new("L", (28, 28), 50 * number).save(tmp_path / "flat" / f"other-{number}.png")
    data = ["--data.root", tmp_path / "flat", "--out", tmp_path]
    page = shown(small_run, "attention", "--samples", 3, *data, within=tmp_path)
    assert [f"other-{number}.png" in page for number in range(4)] == [True, True, True, False]
    assert main(["show", str(small_run), "--what", "map", *map(str, data)]) == 2
    assert f"{tmp_path / 'flat'} has no classes" in " ".join(capsys.readouterr().err.split())
    assert main(["show", str(small_run), "--help"]) == 0
    assert "--data.root " in capsys.readouterr().out


def test_no_two_of_many_classes_look_alike(tmp_path):
    from mim_core.evaluation.look_page import COLOURS, MARKERS, SHAPES, write_look

    assert len(MARKERS) == len(SHAPES)
    names = tuple(f"class {number}" for number in range(2 * len(COLOURS) + 3))
    dots = looks.Dots("d", torch.rand(len(names), 2), [*range(len(names))], [*names])
    page, picture = write_look(looks.Look("t", "l", dots=[dots], classes=names), tmp_path, "map", "r", "c")
    text = page.read_text()
    marks = re.findall(r"<span>(.*?)class \d+</span>", text)
    assert len(set(marks)) == len(names)
    assert text.count("<circle") == len(COLOURS)
    assert text.count("<path transform") == len(COLOURS) + 3
    assert Image.open(picture).height > 500, "the legend has a line for each five classes"
