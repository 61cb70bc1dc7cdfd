"""Methods with teachers against outputs of the official implementations, by `tools/golden.py`. Skipped where the cases
are not at hand."""

from pathlib import Path

import pytest
import torch
from mim_core.errors import MimError
from mim_core.interop.weights import import_checkpoint
from mim_core.testing.golden import read_case, try_case
from safetensors import safe_open
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT.parent / "shared" / "golden"
CASES = ["cmae", "convmae", "ijepa", "mvd", "sdae"]


def golden(name):
    path = GOLDEN / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}")
    return path


def rewritten(path, to, change):
    """The case with some tensors changed."""
    with safe_open(path, "pt") as file:
        about, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    change(tensors)
    save_file(tensors, to, about)
    return to


@pytest.mark.parametrize("name", CASES)
def test_the_same_numbers(name):
    lines = try_case(golden(name))
    assert not [line for line in lines if not line.fits]
    compared = [line.name for line in lines if line.apart is not None]
    assert {"loss", "latent"} <= set(compared)
    assert sum(line.startswith("grad/") for line in compared) == len(read_case(golden(name)).gradients)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("entry", ["out/loss", "out/latent", "grad/"])
def test_a_spoiled_case_fails(name, entry, tmp_path):
    def spoil(tensors):
        key = next(key for key in tensors if key.startswith(entry))
        tensors[key] = tensors[key] * (1 + 3e-4)

    lines = try_case(rewritten(golden(name), tmp_path / "spoiled.safetensors", spoil))
    assert [f"out/{line.name}".startswith(entry) or line.name.startswith(entry) for line in lines if not line.fits] == [
        True
    ]


@pytest.mark.parametrize(
    ("name", "entry"),
    [("cmae", "pred"), ("cmae", "target"), ("convmae", "pred"), ("convmae", "target"), ("sdae", "pred")],
)
def test_answers_at_visible_units_count_too(name, entry, tmp_path):
    """Official codes put them out, though they are in no loss."""

    def spoil(tensors):
        row, unit = (~tensors["in/mask"]).nonzero()[0].tolist()
        tensors[f"out/{entry}"][row, unit] += 0.01 * tensors[f"out/{entry}"].abs().max()

    lines = try_case(rewritten(golden(name), tmp_path / "spoiled.safetensors", spoil))
    assert [line.name for line in lines if not line.fits] == [entry]


def test_the_teachers_weights_count(tmp_path):
    def spoil(tensors):
        tensors["teacher/norm.weight"] = tensors["teacher/norm.weight"] + 0.01 * torch.randn(48)

    lines = try_case(rewritten(golden("ijepa"), tmp_path / "spoiled.safetensors", spoil))
    assert {"teacher_features", "teacher_after/norm.weight"} <= {line.name for line in lines if not line.fits}


def test_the_tool_by_its_command(loaded_python, tmp_path):
    def spoil(tensors):
        tensors["out/latent"] = tensors["out/latent"] * 1.01

    bad = rewritten(golden("sdae"), tmp_path / "spoiled.safetensors", spoil)
    done = loaded_python.run([ROOT / "tools" / "golden.py", golden("sdae"), bad], timeout=300)
    assert done.returncode == 1, done.stderr
    assert "sdae.safetensors: 16 entries compared, 0 off" in done.stdout
    assert "spoiled.safetensors: 16 entries compared, 1 off" in done.stdout


@pytest.mark.parametrize("name", CASES)
def test_inputs_that_do_not_fit_are_no_bug(name, tmp_path):
    """One that lacks, and a mask that is another one's."""

    def spoil(tensors):
        del tensors[next(key for key in tensors if key.startswith(("in/image", "in/video")))]

    with pytest.raises(MimError, match="The case has no in/"):
        try_case(rewritten(golden(name), tmp_path / "spoiled.safetensors", spoil))

    def double(tensors):
        tensors["in/mask"] = tensors["in/mask"].repeat(2, 1)

    with pytest.raises(MimError, match=r"cannot be tried|in/mask"):
        try_case(rewritten(golden(name), tmp_path / "spoiled.safetensors", double))


def test_a_mask_that_is_not_the_contexts_fails(tmp_path):
    def spoil(tensors):
        tensors["in/mask"] = tensors["in/mask"].roll(1, 1)

    with pytest.raises(MimError, match="does not hide what in/context leaves"):
        try_case(rewritten(golden("ijepa"), tmp_path / "spoiled.safetensors", spoil))


def test_what_is_no_case(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(MimError, match="is no golden case"):
        try_case(path)
    save_file({"state/x": torch.ones(1)}, path, {"config": "[]"})
    with pytest.raises(MimError, match="is no golden case"):
        try_case(path)
    save_file({"state/x": torch.ones(1)}, path, {"config": '{"method": "mae"}'})
    with pytest.raises(MimError, match="has no golden adapter"):
        try_case(path)


# ---- official files --------------------------------------------------------------------------------------------------


def wrapped(weights):
    """As DDP saves them."""
    return {f"module.{name}": value for name, value in weights.items()}


def official(case):
    """What the official code saves: several dicts of weights, beside other things."""
    state, others = case.weights["state"], {"epoch": 3, "optimizer": {"state": {}}}
    if case.form == "i-jepa":
        parts = {
            part: wrapped({k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(f"{part}.")})
            for part in ("encoder", "predictor")
        }
        return {**parts, "target_encoder": wrapped(case.weights["teacher"]), **others}
    if case.form == "hpm":
        return {"model": state, "ema_state_dict": wrapped(case.weights["teacher"]), **others}
    return {"model": state, **{name: case.weights[name] for name in ("teacher_image", "teacher_video")}, **others}


@pytest.mark.parametrize("name", ["ijepa", "hpm", "mvd"])
def test_official_files_hold_several_dicts_of_weights(name, tmp_path):
    case = read_case(golden(name))
    torch.save(official(case), tmp_path / "official.pth")
    sizes = {"format": case.form, **case.config}
    wanted = import_checkpoint(case.state(), **sizes).state_dict()
    found = import_checkpoint(tmp_path / "official.pth", **sizes).state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[key]) for key, value in found.items())


@pytest.mark.parametrize("name", [*CASES, "hpm"])
def test_each_missing_or_misshapen_weight_is_refused_by_name(name):
    case = read_case(golden(name))
    state = case.state()
    for key in state:
        if key.startswith("teacher.decoder_") or (".blocks.1." if "teacher" in key else ".blocks.0.") in key:
            continue  # HPM's teacher reads no answers of its first decoder; one block stands for the others
        lacking = {other: value for other, value in state.items() if other != key}
        with pytest.raises(MimError, match=r"missing|have no|number of|others lack them"):
            import_checkpoint(lacking, format=case.form, **case.config)
    for key in [key for key in state if key.endswith(("cls_token", "pos_embed", "q_bias")) and "decoder" not in key]:
        larger = torch.zeros([n + 1 for n in state[key].shape])
        with pytest.raises(MimError):
            import_checkpoint({**state, key: larger}, format=case.form, **case.config)


def test_sizes_that_cannot_be_read_off_are_asked_for():
    case = read_case(golden("mvd"))
    for name in ("image_teacher", "video_teacher"):
        config = {key: value for key, value in case.config.items() if key != name}
        with pytest.raises(MimError, match=f"heads of {name} cannot be inferred"):
            import_checkpoint(case.state(), format="mvd", **config)
    with pytest.raises(MimError, match="files hold the student alone"):
        import_checkpoint(case.weights["state"], format="mvd", **case.config)
    case = read_case(golden("cmae"))
    with pytest.raises(MimError, match="heads of pixel cannot be inferred"):
        import_checkpoint(case.state(), format="cmae", **{**case.config, "pixel": {}})
    for name, value in [("feedforward_channels", 7), ("target_cls", False), ("feature", {"decoder_depth": 9})]:
        with pytest.raises(MimError, match="is given as"):
            import_checkpoint(case.state(), format="cmae", **{**case.config, name: value})
