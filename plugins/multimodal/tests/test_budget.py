"""The budget of visible units where modalities are forbidden or missing: nothing absent is ever kept."""

import numpy as np
import pytest
import torch
from mim_core.errors import MimError
from mim_core.evaluation.report import _served
from mim_core.host.loading import installed
from mim_core.methods.build import check_data
from mim_core.parts.layout import Layout
from mim_core.parts.mask import Draw
from mim_core.recipes.resolve import load_recipe, override, swap
from mim_core.testing import keys
from mim_core.training.loop import start
from mim_multimodal.masker import DirichletMasker
from PIL import Image

GREY = np.tile(np.arange(32, dtype=np.uint8) * 4, (32, 1))


def lacking(root, depth=2, rgb=5, items=6):
    """A folder whose first ``depth`` items have depth, and the first ``rgb`` colour."""
    for split in ("train", "test"):
        for name, count, values in (("rgb", rgb, np.stack([GREY] * 3, axis=2)), ("depth", depth, GREY)):
            (root / split / name).mkdir(parents=True)
            for number in range(items - count, items) if name == "depth" else range(count):
                Image.fromarray(values).save(root / split / name / f"{number}.png")
    return root


def run_of(root, visible, **more):
    run = load_recipe("multimodal:multimae-vit-tiny", installed(), twin=True)
    parts = {role: part for role, part in run.parts.items() if not role.startswith("semseg")}
    values = {"data": {"root": str(root), "missing": "mask"}, "masker": {"visible": visible, **more}}
    values["train"] = {"batch_size": 2, "micro_batch": 2, "epochs": 2}
    return override(type(run)(parts, run.train, run.evaluate, run.recipe), values, "test", installed())


def test_items_with_too_few_units_are_refused_before_the_run(tmp_path):
    root = lacking(tmp_path / "data")
    with pytest.raises(MimError, match=r"of 4 items, such as train/rgb/0.png, too few .*: rgb 16, and .* shows 17"):
        start(run_of(root, 17), tmp_path / "run", installed())
    assert start(run_of(root, 16), tmp_path / "run", installed())


def test_any_masker_is_checked(tmp_path):
    run = swap(run_of(lacking(tmp_path / "data"), 8), "masker", "core:random", installed())
    some = override(run, {"masker": {"ratio": 0.25}}, "test", installed())
    with pytest.raises(MimError, match=r"masker \(core:random\): of 4 items, .*: rgb 16, and the masker shows 24"):
        start(some, tmp_path / "run", installed())
    assert start(run, tmp_path / "run", installed()), "8 of 32 units are seen"


def test_inputs_that_an_item_lacks_are_refused_before_the_run(tmp_path):
    with pytest.raises(MimError, match=r"of 4 items, such as .*: none, and the masker shows 8"):
        start(run_of(lacking(tmp_path / "data"), 8, inputs=["depth"]), tmp_path / "run", installed())


def test_missing_files_are_counted_when_a_run_starts(tmp_path, capsys):
    root = lacking(tmp_path / "data")
    start(run_of(root, 8), tmp_path / "run", installed())
    said = " ".join(capsys.readouterr().err.split())
    # of 6 items in each split 4 lack depth, 1 lacks colour
    assert "missing files: rgb of 2, depth of 8; these items are kept, and what they lack is hidden" in said
    skipped = override(run_of(root, 8), {"data": {"missing": "skip"}}, "test", installed())
    start(skipped, tmp_path / "other", installed())
    assert "depth of 8; 10 items are left out" in " ".join(capsys.readouterr().err.split())


def test_a_modality_that_no_item_has_is_named(tmp_path, capsys):
    start(run_of(lacking(tmp_path / "data", depth=0, rgb=6), 8), tmp_path / "run", installed())
    assert "no item of the data has depth" in capsys.readouterr().err


def test_nothing_is_said_where_every_item_has_all(tmp_path, capsys):
    run = start(run_of(lacking(tmp_path / "data", depth=6, rgb=6), 20), tmp_path / "run", installed())
    check_data(run.config, run.method, run.source)
    said = capsys.readouterr().err
    assert "no item" not in said
    assert "missing" not in said


@pytest.mark.parametrize("inputs", [(), ("depth",)])
def test_an_absent_unit_is_never_kept(inputs):
    there = torch.tensor([True, False])[:, None].expand(-1, 16)
    layout = Layout.join({"rgb": Layout.on_grid(4, 4), "depth": Layout(count=16, grid=(4, 4), valid=there)})
    masker = DirichletMasker(DirichletMasker.Config(visible=10 if inputs else 20, inputs=inputs))
    seen = "rgb 0, depth 0" if inputs else "rgb 16, depth 0"
    with pytest.raises(MimError, match=rf"Sample 1 .*\({seen}\) than --masker.visible {10 if inputs else 20}"):
        masker(layout, Draw(keys(2)))
    assert masker(layout.rows(torch.tensor([0])), Draw(keys(1))).kept_ids.shape[1] in (10, 20)
    usable = masker.usable(layout)
    assert usable.sum(dim=1).tolist() == ([16, 0] if inputs else [32, 16])


def test_the_report_leaves_samples_out_that_cannot_be_masked(tmp_path):
    run = start(run_of(lacking(tmp_path / "data"), 16), tmp_path / "run", installed())
    run.method.masker.config = DirichletMasker.Config(visible=17)
    sample = run.source.finish(
        {
            name: torch.stack([run.source.read(i, i)[name] for i in (0, 4)])
            for name in ("rgb", "depth", "rgb.present", "depth.present")
        }
    )
    assert len(_served(run.method, sample)["rgb"]) == 1


def test_several_inputs_are_written_with_spaces():
    layout = Layout.join({"rgb": Layout.on_grid(4, 4), "depth": Layout.on_grid(4, 4)})
    with pytest.raises(ValueError, match=r"names rgb,depth \(write several with spaces between: rgb depth\)"):
        DirichletMasker(DirichletMasker.Config(visible=4, inputs=("rgb,depth",))).count(layout)
    with pytest.raises(ValueError, match="did you mean 'depth'"):
        DirichletMasker(DirichletMasker.Config(visible=4, inputs=("depht",))).count(layout)
