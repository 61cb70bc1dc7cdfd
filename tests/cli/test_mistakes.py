"""A user's mistakes: exit code 2, one message that says what to do, no traceback, nothing lost."""

import json
import os
from pathlib import Path

import pytest
import torch
from mim_core.errors import MimError
from mim_core.methods.masked_autoencoder import MaskedAutoencoder
from mim_core.parts.scorer import AttentionScorer
from mim_core.runs import checkpoint
from mim_core.runs.folder import _same_run
from PIL import Image
from safetensors import SafetensorError

TWIN = ("pretrain", "mae-vit-tiny", "--twin")
RUN = (*TWIN, "--quiet", "--out", "run")
TWICE = ("--train.epochs", "0.016", "--train.checkpoint-every", "5")  # ten steps, two checkpoints

ASKED = {
    "plguins": "Unknown command 'plguins'. Did you mean 'plugins'?",
    "pretrain": "Which recipe? Recipes: amae-1, amae-1-tiny",
    "pretrain --twin": "Which recipe?",
    "pretrain mae-vit-tny": "Unknown recipe 'mae-vit-tny'. Did you mean 'mae-vit-tiny'?",
    "pretrain imgae:mae-vit-tiny": "Unknown recipe 'imgae:mae-vit-tiny'. Did you mean 'image:mae-vit-tiny'?",
    "pretrain telepathy:mae": "No plugin 'telepathy' is installed. Try: pip install mim-telepathy",
    "pretrain mae-vit-tiny --masker.ration 0.5": "Unrecognized options: --masker.ration, 0.5",
    "pretrain mae-vit-tiny --masker.raito 0.5": "--masker.ratio",
    "pretrain mae-vit-tiny --dryrun": "--dry-run",
    "pretrain mae-vit-tiny --masker.ratio much": "could not convert string to float: 'much'",
    "pretrain mae-vit-tiny --train.schedule cosin": "invalid choice 'cosin'",
    "pretrain mae-vit-tiny --use masker=rndom": "Unknown masker 'rndom'. Did you mean 'random'?",
    "pretrain mae-vit-tiny --use maskr=random": "Unknown role 'maskr'. Did you mean 'masker'?",
    "pretrain mae-vit-tiny --use masker": "--use takes ROLE=NAME, such as --use masker=block; got 'masker'",
    "pretrain mae-vit-tiny --use": "--use takes ROLE=NAME",
    "pretrain mae-vit-tiny --use masker=values": "Unknown masker 'values'.",
    "pretrain mae-vit-tiny --use masker=random --masker.smallest 3": "Unrecognized options: --masker.smallest",
    "pretrain mae-vit-tiny --masker.ratio 1.5": "masker (core:random): ratio must lie between 0 and 1",
    "pretrain mae-vit-tiny --masker.ratio 0": "masker (core:random): ratio must lie between 0 and 1",
    "pretrain mae-vit-tiny --masker.ratio 0.999": "the masker would keep 0 of 16 units",
    "pretrain mae-vit-tiny --tokenizer.patch 5 5": "a patch of 5 x 5 does not divide the input of 28 x 28; patches",
    "pretrain mae-vit-tiny --encoder.heads 3": "encoder (core:vit)",
    "pretrain mae-vit-tiny --encoder.name resnet50": "resnet50 is a timm ResNet",
    "pretrain mae-vit-tiny --use masker=grid --masker.block 3 3": "block (3, 3) does not divide the grid (4, 4)",
    "pretrain mae-vit-tiny --train.micro-batch 7": "batch of 64 cannot be cut into micro-batches of 7",
    "pretrain mae-vit-tiny --train.batch-size 0": "'batch_size' must be at least 1",
    "pretrain mae-vit-tiny --train.epochs -1": "'epochs' must be positive",
    "pretrain mae-vit-tiny --train.schedule steps": "needs --train.milestones",
    "pretrain mae-vit-tiny --train.device tpu": "--train.device tpu cannot be used",
    "pretrain mae-vit-tiny --data.crop 0.5 0.2": "crop must be two rising shares",
    "pretrain mae-vit-tiny --tokenizer.channels 2 --data.mean 0 0 --data.std 1 1": "1 (grey), 3 (colour)",
    "pretrain mae-vit-tiny --init nowhere": "nowhere",
    "pretrain mae-vit-tiny --init nowhere --init-format mea": "Unknown import format 'mea'. Did you mean 'mae'?",
    "pretrain mae-vit-base": "--data.root FOLDER, or the bundled sample with --data.root sample",
    "pretrain mae-vit-base --data.root nowhere": "--data.root nowhere does not exist. It should be a folder of images",
    "pretrain mae-vit-base --data.root file.txt": "--data.root file.txt is not a folder",
    "pretrain mae-vit-base --data.root texts": "No images in texts. Looked for .jpg, .jpeg, .png, .webp",
    "pretrain mae-vit-base --data.root empty": "in it and below; found nothing",
    "pretrain nowhere.toml": "Cannot read nowhere.toml",
    "pretrain file.toml --twin": "--twin goes with a recipe's name",
    "list maskres": "Unknown kind 'maskres'. Did you mean 'maskers'?",
    "list maskers random": "list takes one kind; unexpected argument 'random'",
    "describe core:randm": "Nothing is named 'core:randm'. Did you mean 'core:random'?",
    "describe": "Missing from mim-core describe",
    "evaluate": "Which run?",
    "evaluate nowhere": "nowhere holds no complete checkpoint",
    "show nowhere": "nowhere holds no complete checkpoint",
    "export nowhere": "nowhere holds no complete checkpoint",
    "export nowhere --to tim": "Unknown format in --to 'tim'. Did you mean 'timm'?",
    "plugins --error": "--errors",
    "recipes everything": "Unrecognized options: everything",
}


@pytest.mark.parametrize("line", ASKED)
def test_one_message_that_helps(refused, tmp_path, line):
    (tmp_path / "file.txt").write_text("no picture")
    (tmp_path / "file.toml").write_text('recipe = "mae-vit-tiny"')
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/notes.txt").write_text("no picture")
    before = sorted(tmp_path.rglob("*"))
    assert ASKED[line] in refused(*line.split())
    assert sorted(tmp_path.rglob("*")) == before


def test_a_root_without_images_says_what_is_there(refused, tmp_path):
    for name in ("a.txt", "b.txt", "deep/c.MP4", "noending", ".hidden.png"):
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    said = refused("pretrain", "mae-vit-base", "--data.root", "root")
    assert "No images in root. Looked for .jpg" in said
    assert sorted(said.removesuffix(".").split("found ")[1].split(", ")) == ["1 x .mp4", "1 x no ending", "2 x .txt"]


def test_a_plugins_script_has_only_its_own(refused):
    assert "Unknown command 'list'" in refused("list", "maskers", plugin="image")
    said = refused("pretrain", "core:something", plugin="image")
    assert "mim-image has only its own recipes; use: mim-core pretrain core:something" in said
    assert "Did you mean 'mae-vit-tiny'?" in refused("pretrain", "mae-vit-tyni", plugin="image")


# ---- TOML ------------------------------------------------------------------------------------------------------------

FILES = {
    "recipe = ": "is not valid TOML",
    "[train]\nepochs = 3": "names no recipe. Its first line should read: recipe =",
    'recipe = "mae-vit-tny"': "Did you mean 'mae-vit-tiny'?",
    'recipe = "mae-vit-tiny"\n[maskr]\nratio = 0.5': "unknown table [maskr]. Did you mean [masker]?",
    'recipe = "mae-vit-tiny"\n[masker]\nration = 0.5': "has no option 'ration'. Did you mean 'ratio'?",
    'recipe = "mae-vit-tiny"\n[masker]\nratio = "half"': "option 'ratio': must be of type float, got 'half'",
    'recipe = "mae-vit-tiny"\n[masker]\nratio = true': "must be of type float, got True",
    'recipe = "mae-vit-tiny"\n[masker]\nratio = 1.5': "ratio must lie between 0 and 1",
    'recipe = "mae-vit-tiny"\n[masker]\nuse = "blok"': "Unknown masker 'blok'. Did you mean 'block'?",
    'recipe = "mae-vit-tiny"\n[train]\nepoch = 3': "train has no option 'epoch'. Did you mean 'epochs'?",
    'recipe = "mae-vit-tiny"\n[train]\nbatch_size = 1.5': "must be of type int, got 1.5",
    'recipe = "mae-vit-tiny"\n[train]\nschedule = "cosin"': "did you mean 'cosine'?",
    'recipe = "mae-vit-tiny"\n[train]\nbetas = [0.9]': "must hold 2 values, got 1",
    'recipe = "mae-vit-tiny"\ntrain = 3': "'train' must be a table, such as [train]",
    'recipe = "mae-vit-tiny"\nepochs = 3': "'epochs' must be a table",
    'recipe = "mae-vit-tiny"\n[tokenizer]\npatch = 7': "must be a list, got 7",
    'recipe = "mae-vit-tiny"\n[tokenizer]\npatch = [5, 5]': "does not divide",
    'recipe = "mae-vit-tiny"\n[depth.target]\nloss = "l1"': "this recipe has no [depth.target]",
}


@pytest.mark.parametrize("content", FILES)
def test_mistakes_in_a_file(refused, tmp_path, content):
    (tmp_path / "mine.toml").write_text(content + "\n")
    assert FILES[content] in refused("pretrain", "mine.toml")
    assert list(tmp_path.iterdir()) == [tmp_path / "mine.toml"]


def test_files_that_are_none(refused, tmp_path):
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    assert "Cannot read folder.toml" in refused("pretrain", "folder.toml")
    assert "Cannot read bytes.toml" in refused("pretrain", "bytes.toml")


# ---- output folders --------------------------------------------------------------------------------------------------


def test_output_folder_that_cannot_be(refused, tmp_path):
    (tmp_path / "file").write_text("kept")
    for folder in ("/proc/mim/run", "file", "file/run"):
        said = refused(*TWIN, "--quiet", "--out", folder)
        assert f"The output folder {folder} cannot be written" in said
        assert "Choose another with --out" in said
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_output_folder(refused, tmp_path):
    (tmp_path / "run").mkdir(mode=0o555)
    assert "The output folder run cannot be written" in refused(*RUN)


def test_read_only_as_the_system_reports_it(refused, tmp_path, monkeypatch):
    def refuse(path, mode):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("mim_core.disk.open", refuse, raising=False)
    assert "The output folder run cannot be written: [Errno 13] Permission denied" in refused(*RUN)


def test_folder_of_another_run(mim, refused, tmp_path):
    assert mim(*RUN, *TWICE).code == 0
    before = {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()}
    said = refused(*RUN, *TWICE, "--masker.ratio", "0.5", "--train.seed", "3")
    assert "run holds a run with other settings: masker.ratio (was 0.75, now 0.5); train.seed (was 0, now 3)" in said
    assert "another folder with --out" in said
    assert "recipe" in refused("pretrain", "mae-vit-base", "--twin", "--quiet", "--out", "run")
    assert {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()} == before
    assert mim(*RUN, *TWICE, "--train.workers", "1", "--train.log-every", "2").code == 0  # these may change


# ---- disks -----------------------------------------------------------------------------------------------------------


def full_disk_after(monkeypatch, whole: int, path_ending: str = ""):
    """The disk is full once so many files of weights were written; what is written of the next is torn."""
    real, written = checkpoint.save_file, []

    def save_file(tensors, path, **more):
        if str(path).endswith(path_ending):
            written.append(path)
        if len(written) > whole and str(path).endswith(path_ending):
            path.write_bytes(b"torn")
            raise OSError(28, "No space left on device", str(path))
        real(tensors, path, **more)

    monkeypatch.setattr(checkpoint, "save_file", save_file)


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors"])
def test_full_disk_during_a_checkpoint(mim, refused, tmp_path, monkeypatch, file):
    with monkeypatch.context() as patch:
        full_disk_after(patch, 1, file)
        said = refused(*RUN, *TWICE)
    assert "step-00000010 cannot be written: [Errno 28] No space left on device" in said
    assert "The last complete checkpoint is run/checkpoints/step-00000005" in said
    assert "the run resumes from there" in said
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000005"]
    assert checkpoint.load(tmp_path / "run/checkpoints/step-00000005").step == 5
    assert mim("export", "run").code == 0
    done = mim(*TWIN, "--out", "run", *TWICE)  # there is space again
    assert done.code == 0
    assert "Resuming run at step 5 of 10" in done.err
    assert checkpoint.newest(tmp_path / "run") == tmp_path / "run/checkpoints/step-00000010"


def test_full_disk_at_the_first_checkpoint(refused, tmp_path, monkeypatch):
    full_disk_after(monkeypatch, 0)
    assert "There is no earlier checkpoint" in refused(*RUN, *TWICE)
    assert list((tmp_path / "run/checkpoints").iterdir()) == []


class FullLog:
    """A file that takes some lines, and then the disk is full."""

    def __init__(self, lines):
        self.lines = lines

    def __enter__(self):
        return self

    def write(self, text):
        self.lines -= 1
        if self.lines < 0:
            raise OSError(28, "No space left on device")

    def __exit__(self, *error):
        pass


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (2, "There is no checkpoint yet"),
        (7, "The last complete checkpoint is run/checkpoints/step-00000005"),
    ],
)
def test_full_disk_while_metrics_are_written(refused, monkeypatch, lines, said):
    log = FullLog(lines)
    monkeypatch.setattr("mim_core.training.trainer.open", lambda *a, **k: log, raising=False)
    message = refused(*RUN, *TWICE)
    assert "run cannot be written: [Errno 28] No space left on device" in message
    assert said in message


class Closed:
    """Every file that is written anew is refused as a disk of this kind refuses it."""

    def __init__(self, monkeypatch, number):
        self.number = number

        def write_text(path, *arguments, **options):
            path.open("w").close()  # what stood there is gone before the first byte is written
            raise OSError(number, os.strerror(number), str(path))

        def refused_open(path, mode):
            if mode == "rb":
                return open(path, mode)
            raise OSError(number, os.strerror(number), str(path))

        def save_file(tensors, path, **more):
            raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")

        monkeypatch.setattr(Path, "write_text", write_text)
        monkeypatch.setattr("mim_core.disk.open", refused_open, raising=False)
        monkeypatch.setattr("mim_core.tensor_files.save_file", save_file)


@pytest.mark.parametrize(
    ("number", "words"),
    [(28, "there is no room left"), (30, "the disk is read-only"), (1, "the system does not allow it")],
)
def test_disk_that_takes_nothing_after_training(mim, refused, few, tmp_path, monkeypatch, number, words):
    """evaluate, show and export say it, and every file that was whole stays as it was."""
    quick = ("--evaluate.draws", "1", "--evaluate.few-labels", "100", "--on", "knn")
    assert mim(*RUN, "--data.root", few, "--train.epochs", "0.1").code == 0
    assert mim("evaluate", "run", *quick).code == 0
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    with monkeypatch.context() as patch:
        Closed(patch, number)
        assert words in refused("show", "run")
        assert words in refused("export", "run")
        assert words in refused("evaluate", "run", *quick, "--evaluate.pool", "max")  # features of its own
        said = mim("evaluate", "run", *quick)  # the table is shown, its file cannot be written
    assert said.code == 2
    assert words in said.err
    assert "scores.json" in said.err
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before


def test_long_values_of_another_run_are_cut_short():
    told = str({"text": "x" * 10_000})
    with pytest.raises(MimError) as error:
        _same_run(f"[data]\nlearned = {json.dumps(told)}", "[data]\nlearned = 'y'", Path("run"))
    assert "data.learned (was {'text': 'xxx" in str(error.value)
    assert "x..., now y)" in str(error.value)
    assert len(str(error.value)) < 400


def test_other_errors_of_the_system_are_bugs(mim, monkeypatch):
    def fail(*arguments):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr("mim_core.commands.installed.recipes", fail)
    with pytest.raises(OSError, match="Invalid argument"):
        mim("recipes")


@pytest.mark.parametrize("damage", ["cut", "no state", "state is no JSON", "a file is gone"])
def test_damaged_newest_checkpoint_is_passed_over(mim, tmp_path, damage):
    assert mim(*RUN, *TWICE).code == 0
    whole = (tmp_path / "run/checkpoints/step-00000010/weights.safetensors").read_bytes()
    newest = tmp_path / "run/checkpoints/step-00000010"
    if damage == "cut":
        (newest / "weights.safetensors").write_bytes(whole[:-100])
    elif damage == "no state":
        (newest / "state.json").unlink()
    elif damage == "state is no JSON":
        (newest / "state.json").write_text("{")
    else:
        (newest / "optimizer.safetensors").unlink()
    said = mim(*TWIN, "--out", "run", *TWICE)
    assert said.code == 0, said
    assert "run/checkpoints/step-00000010 is incomplete; skipping it" in said.err
    assert "Resuming run at step 5 of 10" in said.err
    assert (newest / "weights.safetensors").read_bytes() == whole  # the same five steps again


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors"])
def test_checkpoint_with_bytes_gone_wrong_is_named(mim, refused, tmp_path, file):
    assert mim(*RUN, *TWICE).code == 0
    path = tmp_path / "run/checkpoints/step-00000010" / file
    path.write_bytes(b"\xff" * path.stat().st_size)
    said = refused(*RUN, *TWICE)
    assert "run/checkpoints/step-00000010 cannot be read" in said
    assert "Remove it to start from an earlier one" in said


# ---- losses that are not finite --------------------------------------------------------------------------------------


TAUGHT = ("--use", "teacher=ema", "--use", "scorer=attention", "--use", "masker=guided", "--encoder.no-class-token")


def test_attention_without_a_class_token_is_refused_before_the_run(refused, tmp_path):
    said = refused(*RUN, *TAUGHT)
    assert "scorer (core:attention): attention of the class token is asked for" in said
    assert not (tmp_path / "run").exists()


def test_what_a_part_refuses_at_the_first_batch_is_said_once(refused, monkeypatch):
    def forward(self, sample, patches, lesson=None):
        raise ValueError("this batch cannot be scored")

    monkeypatch.setattr(AttentionScorer, "forward", forward)
    said = refused(*RUN, *TAUGHT[:-1])
    assert "scorer (core:attention): this batch cannot be scored" in said
    assert "warning" not in said


def test_loss_that_is_not_finite_names_the_samples(refused, tmp_path):
    said = refused(*RUN, *TWICE, "--train.base-lr", "1e30", "--train.warmup-epochs", "0")
    assert "not finite" in said
    assert "train-images-idx3-ubyte.gz[" in said
    assert "A lower --train.base-lr" in said
    listed = json.loads((tmp_path / "run/not_finite.json").read_text())
    assert len(listed["names"]) == len(listed["indices"]) == 16
    assert f"step {listed['step']}" in said
    steps = [json.loads(line)["loss"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(torch.isfinite(torch.tensor(steps)))


def test_gradient_that_is_not_finite_is_not_saved(refused, tmp_path, monkeypatch):
    """The loss is still fine, and the weights are not any more: the checkpoint of that step must not be written."""
    real, calls = MaskedAutoencoder.forward, []

    def forward(self, prepared):
        calls.extend([] if next(self.parameters()).is_meta else [1])  # operations are counted on the meta device
        if len(calls) == 5:
            bias = next(self.parameters())
            bias.register_hook(lambda gradient: gradient * torch.nan)
        return real(self, prepared)

    monkeypatch.setattr(MaskedAutoencoder, "forward", forward)
    assert "The loss of step 4, or its gradient, is not finite" in refused(*RUN, *TWICE)
    assert not (tmp_path / "run/checkpoints").exists()


def test_samples_of_a_step_in_micro_batches_are_named_alone(refused, tmp_path, monkeypatch):
    for i in range(64):
        Image.new("L", (28, 28), i).save(tmp_path / f"{i}.png")
    real, calls = MaskedAutoencoder.forward, []

    def forward(self, prepared):
        calls.extend([] if next(self.parameters()).is_meta else [1])  # operations are counted on the meta device
        outcome = real(self, prepared)
        return (
            outcome if len(calls) != 3 else type(outcome)(outcome.loss * torch.nan, *list(vars(outcome).values())[1:])
        )

    monkeypatch.setattr(MaskedAutoencoder, "forward", forward)
    said = refused(
        *RUN, "--data.root", tmp_path, "--train.epochs", "1", "--train.micro-batch", "8", "--train.log-every", "4"
    )
    assert "step 1, or its gradient" in said  # the third micro-batch of eight is the second step of sixteen
    listed = json.loads((tmp_path / "run/not_finite.json").read_text())
    assert len(set(listed["names"])) == 16
    assert set(listed["names"]) <= {f"{i}.png" for i in range(64)}
