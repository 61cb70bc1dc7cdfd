"""embed and predict: features and answers for files that a run has never seen."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from mim_core.cli import main
from mim_core.commands.predict import homes_of
from mim_core.data.loading import Reported
from mim_core.errors import BadSample, MimError
from mim_core.inference.chunks import Chunks
from mim_core.inference.embedding import neighbours
from mim_core.inference.inputs import ask, open_inputs
from mim_core.runs.load import load_run
from PIL import Image


def picture(path, seed, size=(28, 28)):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(values).save(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A pre-trained run, and in its folder one that was fine-tuned on two classes."""
    root = tmp_path_factory.mktemp("inference")
    for number in range(20):
        picture(root / "data" / ("round" if number % 2 else "square") / f"{number}.png", number)
    short = ["--quiet", "--train.warmup-epochs", "0", "--train.workers", "0"]
    data = ["--data.root", str(root / "data")]
    start = ["pretrain", "image:mae-vit-tiny", "--twin", "--train.steps", "2", "--out", str(root / "run")]
    assert main([*start, *short, *data]) == 0
    assert main(["finetune", str(root / "run"), *short, "--train.epochs", "2", "--train.batch-size", "8"]) == 0
    return root / "run"


@pytest.fixture
def new(tmp_path):
    """Files never seen, in folders that would be splits and classes elsewhere; one is damaged, one is no image."""
    for number, name in enumerate(("b.png", "test/a.png", "train/cat/c.png", "train/dog/d.png")):
        picture(tmp_path / "new" / name, 100 + number, (30, 40))
    (tmp_path / "new/bad.png").write_bytes(b"no image")
    (tmp_path / "new/notes.heic").write_bytes(b"")
    return tmp_path / "new"


CPU = torch.device("cpu")
NAMES = ["b.png", "test/a.png", "train/cat/c.png", "train/dog/d.png"]


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ---- features --------------------------------------------------------------------------------------------------------


def test_every_file_has_the_encoders_features(runs, new, tmp_path, capsys):
    out = tmp_path / "f.npz"
    assert main(["embed", str(runs), str(new), "--out", str(out), "--units"]) == 0
    said = capsys.readouterr()
    assert "left out: 1 file with endings that are not read: 1 x .heic" in said.out
    assert "1 file cannot be used and is left out (bad.png: not an image" in said.err
    found = np.load(out)
    assert found["names"].tolist() == NAMES
    assert found["skipped"].tolist() == [["bad.png", "not an image of a kind that is read"]]
    run = load_run(runs)
    source = type(run.source())(run.recipe.parts["data"].options, run.method.tokenizer.shapes)
    path = new / NAMES[0]
    with Image.open(path) as image:
        pixels = np.asarray(image.resize((37, 28), Image.Resampling.BICUBIC))[:, 4:32]
    sample = source.finish({"image": torch.from_numpy(pixels.copy())[None, None]})
    run.method.eval()
    with torch.no_grad():
        wanted = run.method.encode(sample)
    np.testing.assert_allclose(found["features"][0], wanted.pooled[0], rtol=0, atol=2e-2)  # resized by another library
    np.testing.assert_allclose(found["units"][0], wanted.tokens[0], rtol=0, atol=0.1)
    np.testing.assert_allclose(found["units"].mean(axis=1), found["features"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("number", "why"), [("SIGKILL", "DataLoader worker"), ("SIGSTOP", "was reading bad.png")])
def test_a_reader_that_is_gone_or_hangs_is_one_line(runs, new, tmp_path, capsys, monkeypatch, number, why):
    """And what was done before is kept: the command goes on."""
    items = type(load_run(runs).source().plain().items)
    before = items.__getitem__

    def ends(self, index):
        if index == 1:
            os.kill(os.getpid(), getattr(signal, number))
        return before(self, index)

    monkeypatch.setattr(items, "__getitem__", ends)
    monkeypatch.setattr("mim_core.inference.inputs.STUCK_SECONDS", -59.0)
    command = ["embed", str(runs), str(new), "--out", str(tmp_path / "f.npz"), "--quiet"]
    assert main([*command, "--workers", "1"]) == 2
    said = capsys.readouterr().err
    assert "a process that reads data is gone" in said
    assert why in said
    monkeypatch.undo()
    assert main(command) == 0
    assert np.load(tmp_path / "f.npz")["names"].tolist() == NAMES


def test_batches_and_workers_do_not_matter(runs, new, tmp_path):
    found = []
    for batch, workers in ((64, 0), (1, 0), (3, 2)):
        out = tmp_path / f"{batch}.npz"
        options = ["--batch-size", str(batch), "--workers", str(workers), "--quiet"]
        assert main(["embed", str(runs), str(new), "--out", str(out), *options]) == 0
        found.append(np.load(out))
    for other in found[1:]:
        assert other["names"].tolist() == NAMES
        assert other["skipped"].tolist() == found[0]["skipped"].tolist()
        np.testing.assert_allclose(other["features"], found[0]["features"], rtol=0, atol=1e-5)


def test_a_sample_is_not_asked_about_alone(runs, new):
    """Its answers have the digits that they have among others, whatever a library does with a single row."""
    (run, method, _), asked = load_run(runs), []
    inputs = open_inputs(run, method, new)

    def question(sample):
        asked.append(len(sample["image"]))
        return {"sum": sample["image"].flatten(1).sum(1)}

    found = [ask(inputs, method.eval(), question, range(len(inputs)), size, 0, CPU) for size in (1, 4)]
    assert len(inputs) == 5
    assert [count for count in asked if count != 2] == [3]  # with one that cannot be read in the batch of four
    assert torch.equal(found[0].values["sum"], found[1].values["sum"])


def test_of_several_files_of_an_item_the_bad_one_is_named():
    class Items:
        def __getitem__(self, number):
            raise BadSample(("depth/a.png", "/data/rgb/a.png")[number], "it is cut off")

    items = Reported(Items(), names=("rgb/a.png", "rgb/a.png"))
    assert [items[0], items[1]] == [(0, "depth/a.png: it is cut off"), (1, "it is cut off")]


def test_a_copy_is_found(runs, new, tmp_path, capsys):
    (new / "copy.png").write_bytes((new / "b.png").read_bytes())
    out = tmp_path / "f.npz"
    assert main(["embed", str(runs), str(new), "--out", str(out), "--neighbours", "2", "--alike", "0.999999"]) == 0
    near, alike = rows(tmp_path / "f-neighbours.csv"), rows(tmp_path / "f-alike.csv")
    assert [(r["name"], r["neighbour"]) for r in near if r["rank"] == "1"][:2] == [
        ("b.png", "copy.png"),
        ("copy.png", "b.png"),
    ]
    assert [(r["name"], r["other"]) for r in alike] == [("b.png", "copy.png")]
    assert "1 pair of files" in capsys.readouterr().out


def test_every_copy_is_listed_once(runs, new, tmp_path):
    for name in ("copy.png", "copy2.png"):
        (new / name).write_bytes((new / "b.png").read_bytes())
    asked = ["--neighbours", "1", "--alike", "0.999999", "--out", str(tmp_path / "f.npz")]
    assert main(["embed", str(runs), str(new), *asked]) == 0
    pairs = [{r["name"], r["other"]} for r in rows(tmp_path / "f-alike.csv")]
    assert set().union(*pairs) == {"b.png", "copy.png", "copy2.png"}
    assert len(pairs) == len(set(map(frozenset, pairs)))


def test_neighbours_are_those_of_a_plain_loop():
    features = torch.randn(37, 5, generator=torch.Generator().manual_seed(0))
    unit = features / features.norm(dim=1, keepdim=True)
    found = dict(neighbours(features, 4, rows=10))
    for i in range(37):
        alike = sorted(((float(unit[i] @ unit[j]), j) for j in range(37) if j != i), reverse=True)[:4]
        assert [j for j, _ in found[i]] == [j for _, j in alike]
        assert [s for _, s in found[i]] == pytest.approx([s for s, _ in alike], abs=1e-6)
    assert len(dict(neighbours(features[:3], 10))[0]) == 2


def test_parquet_holds_the_same(runs, new, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    assert main(["embed", str(runs), str(new), "--out", str(tmp_path / "f.npz"), "--units", "--quiet"]) == 0
    assert main(["embed", str(runs), str(new), "--out", str(tmp_path / "f.parquet"), "--units", "--quiet"]) == 0
    one, two = np.load(tmp_path / "f.npz"), parquet.read_table(tmp_path / "f.parquet")
    assert two["name"].to_pylist() == NAMES
    np.testing.assert_array_equal(np.array(two["features"].to_pylist(), np.float32), one["features"])
    shape = tuple(map(int, two.schema.metadata[b"units.shape"].split()))
    units = np.array(two["units"].to_pylist(), np.float32).reshape(-1, *shape)
    np.testing.assert_array_equal(units, one["units"])
    assert two.schema.metadata[b"skipped"].startswith(b"bad.png\tnot an image")


# ---- answers ---------------------------------------------------------------------------------------------------------


def test_classes_are_those_of_the_classifier(runs, new, tmp_path):
    out = tmp_path / "p"
    assert main(["predict", str(runs / "finetune"), str(new), "--out", str(out), "--quiet"]) == 0
    found = rows(out / "predictions.csv")
    assert [row["name"] for row in found] == NAMES
    assert json.loads((out / "skipped.json").read_text()) == {"bad.png": "not an image of a kind that is read"}
    run = load_run(runs / "finetune")
    assert run.method.config.names == ("round", "square")
    part = run.recipe.parts["data"]
    items = part.cls(replace(part.options, root=new, splits=False), run.method.tokenizer.shapes)
    plain = items.plain()
    batch = items.finish({"image": torch.stack([plain.items[plain.names.index(name)]["image"] for name in NAMES])})
    run.method.eval()
    with torch.no_grad():
        outcome = run.method(run.method.prepare({**batch, "label": torch.zeros(4, dtype=torch.int64)}))
    shares = outcome.predictions["class"].softmax(dim=1)
    for row, share in zip(found, shares, strict=True):
        assert row["class"] == ("round", "square")[int(share.argmax())]
        assert float(row["probability"]) == pytest.approx(float(share.max()), abs=1e-5)
        assert float(row["p(round)"]) == pytest.approx(float(share[0]), abs=1e-5)
    listed = json.loads((out / "predictions.json").read_text())
    assert [(row["name"], row["class"]) for row in listed] == [(row["name"], row["class"]) for row in found]
    assert sorted(path.name for path in out.iterdir()) == ["predictions.csv", "predictions.json", "skipped.json"]


def test_one_file(runs, new, tmp_path, capsys):
    picture(new / "test/more/a.png", 7)  # of the same name, below
    one = str(new / "test/a.png")
    assert main(["predict", str(runs / "finetune"), one, "--out", str(tmp_path / "p")]) == 0
    assert [row["name"] for row in rows(tmp_path / "p/predictions.csv")] == ["a.png"]
    said = capsys.readouterr().out
    assert "a.png: 1 sample" in said
    assert "files hold" not in said  # those beside it


def test_the_data_of_the_run_need_not_be_there(runs, new, tmp_path):
    moved = runs.parent / "data"
    moved.rename(runs.parent / "gone")
    try:
        assert main(["predict", str(runs / "finetune"), str(new), "--out", str(tmp_path / "p"), "--quiet"]) == 0
    finally:
        (runs.parent / "gone").rename(moved)
    assert {row["class"] for row in rows(tmp_path / "p/predictions.csv")} <= {"round", "square"}


def test_no_two_samples_write_the_same_file():
    names = ["a.png", "a (1).png", "a (2).png", "b.jpg", "b.png", "b.jpg.png", "../c.mp4 (0 to 2 s)", "c.mp4", "/.png"]
    wanted = ["a", "a (1)", "a (2)", "b.jpg", "b.png", "b.jpg.png", "c (0 to 2 s)", "c", ".png"]
    assert homes_of(names) == wanted
    long = homes_of([f"{'x' * 240}{n}.png" for n in "ab"])
    assert len(set(long)) == 2
    assert all(len(home) < 200 for home in long)
    assert homes_of(["a (row 1)", "a (row 1)"]) == ["a (row 1)", "a (row 1) 2"]


def test_names_of_others_steer_nothing(runs, tmp_path, capsys):
    picture(tmp_path / "new" / "a\x1b[2J,=1.png", 1)
    assert main(["predict", str(runs / "finetune"), str(tmp_path / "new"), "--out", str(tmp_path / "p")]) == 0
    said = capsys.readouterr()
    text = (tmp_path / "p/predictions.csv").read_text() + said.out + said.err
    assert "\x1b" not in text
    assert "\\x1b[2J" in text


# ---- going on --------------------------------------------------------------------------------------------------------


def test_a_stopped_command_goes_on(runs, tmp_path, monkeypatch, capsys):
    from mim_core.commands import predict

    for number in range(9):
        picture(tmp_path / "new" / f"{number}.png", number)
    arguments = ["predict", str(runs / "finetune"), str(tmp_path / "new"), "--out", str(tmp_path / "p")]
    assert main([*arguments[:-1], str(tmp_path / "whole")]) == 0
    monkeypatch.setattr(predict, "CHUNK", 2)
    asked, real = [], predict.ask

    def stops(inputs, method, question, some, *options):
        asked.append(some.start)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(inputs, method, question, some, *options)

    monkeypatch.setattr(predict, "ask", stops)
    assert main(arguments) == 130
    assert not (tmp_path / "p/predictions.csv").exists()
    capsys.readouterr()
    assert main(arguments) == 0
    assert "Going on: 4 of 9 were done before." in capsys.readouterr().out
    assert asked == [0, 2, 4, 4, 6, 8]
    assert rows(tmp_path / "p/predictions.csv") == rows(tmp_path / "whole/predictions.csv")
    assert not (tmp_path / "p/.parts").exists()


def test_parts_of_anything_else_are_made_anew(tmp_path):
    def fill(about):
        made = []

        def make(some):
            made.append(some.start)
            return {"x": torch.tensor([float(n) for n in some])}, {}

        with Chunks.alone(tmp_path / "parts", about, 5, 2, tmp_path / "out") as parts:
            values = torch.cat([tensors["x"] for _, tensors, _ in parts.fill(make)])
        assert values.tolist() == [0, 1, 2, 3, 4]
        return made

    assert fill("a") == [0, 2, 4]
    assert fill("a") == []
    next((tmp_path / "parts").glob("*2.safetensors")).write_bytes(b"torn")
    assert fill("a") == [2]
    assert fill("b") == [0, 2, 4]
    shutil.rmtree(tmp_path / "parts")
    (tmp_path / "others").mkdir()
    (tmp_path / "parts").symlink_to("others")
    assert fill("a") == [0, 2, 4]
    assert not any((tmp_path / "others").iterdir())


def test_parts_of_another_command_are_not_taken_for_ours(tmp_path):
    """Where no lock holds, such as on a disk that two machines share and that knows none."""

    def fill(about, folder):
        with Chunks.alone(folder, about, 2, 1, tmp_path / "out") as parts:
            for some, tensors, _ in parts.fill(lambda some: ({"x": torch.tensor([len(about)])}, {})):
                yield some, int(tensors["x"])

    ours, theirs = fill("a", tmp_path / "parts"), fill("bcd", tmp_path / "theirs")
    assert next(ours)[1] == 1
    assert [value for _, value in theirs] == [3, 3]
    (second,) = (tmp_path / "theirs").glob("*1.safetensors")
    shutil.copy(second, tmp_path / "parts")
    assert next(ours)[1] == 1


@pytest.mark.parametrize("command", ["embed", "predict"])
def test_a_second_command_on_the_same_output_is_refused(runs, new, tmp_path, capsys, command):
    out = tmp_path / "f.npz"
    lock = (tmp_path / ".f.npz.parts" if command == "embed" else out / ".parts") / ".lock"
    lock.parent.mkdir(parents=True)
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    other.stdout.readline()
    arguments = [command, str(runs / "finetune"), str(new), "--out", str(out), "--quiet"]
    assert main(arguments) == 2
    assert f"Another command writes {out} (" in " ".join(capsys.readouterr().err.split())
    assert lock.exists()
    other.communicate("")
    assert main(arguments) == 0
    assert not lock.parent.exists()


@pytest.mark.parametrize(("command", "default"), [("embed", "features.npz"), ("predict", "predictions")])
def test_results_are_written_over_where_the_user_says_so_alone(
    runs, new, tmp_path, monkeypatch, capsys, command, default
):
    monkeypatch.chdir(tmp_path)
    arguments = [command, str(runs / "finetune"), str(new), "--quiet"]
    assert main(arguments) == 0
    assert main(arguments) == 2
    assert f"write over it: --out {default}" in " ".join(capsys.readouterr().err.split())
    assert main([*arguments, "--out", default]) == 0


def test_files_that_changed_are_asked_about_anew(runs, new, tmp_path, monkeypatch):
    def values():
        return np.load(tmp_path / "f.npz")["features"]

    arguments = ["embed", str(runs), str(new), "--out", str(tmp_path / "f.npz"), "--quiet"]
    with monkeypatch.context() as patched:  # as if it had been stopped before the end
        patched.setattr(Chunks, "remove", lambda self: None)
        assert main(arguments) == 0
    before = values()
    picture(new / "b.png", 999, (30, 41))
    assert main(arguments) == 0
    assert not np.allclose(before[0], values()[0])
    np.testing.assert_array_equal(before[1:], values()[1:])


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["predict", "RUN", "NEW"], "one modality, of which it predicts hidden parts"),
        (["predict", "RUN/finetune", "NEW", "--label", "rond"], "Unknown label 'rond'. Did you mean"),
        (["predict", "RUN/finetune", "NEW", "--given", "imag"], "Unknown modality in --given 'imag'. Did you mean"),
        (["predict", "RUN/finetune", "nothing-there"], "does not exist"),
        (["predict", "RUN/finetune", "NEW/notes.heic"], "notes.heic is no file that image:images reads"),
        (["embed", "RUN", "NEW", "--out", "f.txt"], ".npz or .parquet"),
        (["embed", "RUN", "NEW", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["embed", "RUN", "NEW", "--workers", "100000"], "--workers must be 0 to 1,024"),
        (["embed", "nowhere", "NEW"], "holds no complete checkpoint"),
        (["embed", "RUN", "NEW", "--workers", "100000000"], "--workers must be 0 to 1,024, got 100000000"),
        (["predict", "RUN/finetune", "NEW", "--workers", "-1"], "--workers must be 0 to 1,024, got -1"),
        (["finetune", "RUN", "--train.workers", "100000000"], "'workers' must be 0 to 1,024, got 100000000"),
        (["evaluate", "RUN", "--evaluate.temperature", "nan"], "temperature must be positive"),
        (["evaluate", "RUN", "--evaluate.l2", "inf"], "l2 not negative, and both finite"),
        (["show", "RUN", "--samples", "-1"], "--samples must be at least 1, got -1"),
    ],
)
def test_what_cannot_be_asked_is_one_line(runs, new, tmp_path, monkeypatch, capsys, command, says):
    monkeypatch.chdir(tmp_path)
    told = [part.replace("RUN", str(runs)).replace("NEW", str(new)) for part in command]
    code = main(told)
    said = capsys.readouterr()
    assert code == 2
    assert says in " ".join(said.err.split())


def test_weights_that_diverged_are_said(runs, new):
    run = load_run(runs)
    with torch.no_grad():
        next(run.method.encoder.parameters()).fill_(torch.nan)
    inputs = open_inputs(run.recipe, run.method, new)
    with pytest.raises(MimError, match="not finite"):
        ask(
            inputs, run.method.eval(), lambda s: {"x": run.method.encode(s).pooled}, range(2), 4, 0, torch.device("cpu")
        )


def test_other_data_must_have_the_classes_names(runs, tmp_path, capsys):
    """They would be told apart by their order, and nothing would say so."""
    for number in range(12):
        picture(tmp_path / "other" / ("hot", "cold")[number % 2] / f"{number}.png", number)
    assert main(["evaluate", str(runs / "finetune"), "--data-root", str(tmp_path / "other")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "The method's classes are round, square; the data has cold, hot." in said
