"""What every data source keeps to."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mim_core.data.loading import KeyedBatches, KeyedDataset, collate, loader
from mim_core.data.source import DataSource, Labelled, Picture, Sample
from mim_core.errors import BadSample, MimError, one_line
from mim_core.host.loading import installed
from mim_core.recipes.config import Part
from mim_core.recipes.resolve import resolve_part
from mim_core.testing.checks import Contract, equal, keys, near, on_gpu, refusal, saying, seeded, takes_seconds

SIGNATURES = {
    "image/png": (b"\x89PNG\r\n\x1a\n",),
    "image/jpeg": (b"\xff\xd8\xff",),
    "image/gif": (b"GIF87a", b"GIF89a"),
    "image/webp": (b"RIFF",),
}
"""How files of a type begin."""


class DataContract(Contract):
    """What every data source keeps to.

    Attributes:
        shapes: What the tokenizer asks for: modality -> shape without the batch.
        ids: Modalities that are named and not measured (int64), and how many names there are.
        unsuitable: Shapes that the source must refuse with a ValueError.
        items: How many items are read in a check.
        augmented: Another key gives another item.
        labels: There are labelled splits. Without, asking for one must be a MimError.
        meta: `finish` works on the meta device, where no value can be read.
    """

    kind: ClassVar[str] = "data"
    shapes: ClassVar[Mapping[str, tuple[int, ...]]] = {}
    ids: ClassVar[Mapping[str, int]] = {}
    unsuitable: ClassVar[Sequence[Mapping[str, tuple[int, ...]]]] = ()
    items: ClassVar[int] = 4
    augmented: ClassVar[bool] = True
    labels: ClassVar[bool] = True
    meta: ClassVar[bool] = True

    def make_source(self, shapes: Mapping[str, tuple[int, ...]] | None = None) -> DataSource:
        """The source under test."""
        part = resolve_part("data", Part(self.part, self.options), installed())
        source: DataSource = part.cls(part.options, dict(self.shapes if shapes is None else shapes))
        source.take_ids(dict(self.ids))
        return source

    def make_broken(self) -> tuple[DataSource, int, str] | None:
        """A source with a file that cannot be used, the number of its item, and what the error must name. None: every
        item can be read, and the check passes."""
        return None

    def read(self, source: DataSource, key: int = 11) -> list[dict[str, Tensor]]:
        """A few items, evenly over the source, each with a key of its own."""
        return [source.read(index, key + index) for index in self.numbers(len(source))]

    def numbers(self, count: int) -> list[int]:
        """A few of that many numbers, evenly over them."""
        return list(range(0, count, max(1, count // self.items)))[: self.items]

    def batch(self, source: DataSource) -> Sample:
        """These items as the loader stacks them, with ``key`` and ``index``."""
        items = self.read(source)
        stacked = {name: torch.stack([item[name] for item in items]) for name in items[0]}
        return {**stacked, "key": keys(len(items)), "index": torch.arange(len(items))}

    def check_finished(self, source: DataSource, sample: Sample, rows: int) -> None:
        """A finished batch holds what the shapes say."""
        for name, shape in source.shapes.items():
            assert name in sample, f"finish gives no {name!r}; it gives {', '.join(sample)}"
            value = sample[name]
            assert value.shape == (rows, *shape), f"{name} is {tuple(value.shape)}; declared {(rows, *shape)}"
            if name in self.ids:
                assert value.dtype == torch.int64, f"{name} are ids, of {value.dtype}"
            else:
                assert value.is_floating_point(), f"{name} is {value.dtype}, no floating-point numbers"
                assert value.is_meta or bool(value.isfinite().all()), f"{name} is not finite"

    def split(self, source: DataSource, name: str) -> Labelled:
        """A labelled split."""
        return source.labelled(name)

    # ---- items -------------------------------------------------------------------------------------------------------

    def test_there_are_items_with_names(self) -> None:
        """The length is positive, and an item's name says something."""
        source = self.make_source()
        assert len(source) > 0, f"the source has {len(source)} items"
        assert len(source) == len(self.make_source()), "the length changes"
        for index in (0, len(source) - 1):
            name = source.name_of(index)
            assert isinstance(name, str), f"the name of item {index} is {name!r}, no text"
            assert name, f"the name of item {index} is empty"

    def test_read_follows_from_index_and_key(self) -> None:
        """The same index and key give the same item, whatever torch's generator says and whatever was read before."""
        with seeded(1):
            one = self.read(self.make_source())
        source = self.make_source()
        self.read(source, key=3)
        with seeded(2):
            other = self.read(source)
        assert [set(item) for item in one] == [set(item) for item in other], "entries come and go"
        assert equal(one, other), "the same index and key give another item: draw from the key only"

    def test_other_keys_and_indices_differ(self) -> None:
        """Another key gives another item where there is augmentation, and the same where there is none; another index
        gives another item with the same key too."""
        source = self.make_source()
        one, other = self.read(source), self.read(source, key=5003)
        if self.augmented:
            assert not equal(one, other), "another key gives the same items; if that is meant, set augmented = False"
        else:
            assert equal(one, other), "another key gives other items: set augmented = True"
        if len(one) > 1:
            # and neighbours, for evenly spaced ones may all be of one kind
            few = sorted({*self.numbers(len(source)), *range(min(len(source), 5))})
            same_key = [source.read(index, 11) for index in few]
            alike = all(equal(a, b) for a, b in itertools.pairwise(same_key))
            assert not alike, "with one key all items are the same: the index is not used"

    @takes_seconds
    def test_workers_do_not_matter(self) -> None:
        """None and two reading processes give the same batches in the same order."""
        batches = []
        for workers in (0, 2):
            source = self.make_source()
            sampler = KeyedBatches(len(source), 2, 0, 0, 8)
            batches.append([b.sample for b in loader(KeyedDataset(source), sampler, workers, collate, wait=120)])
        assert equal(*batches), "batches depend on the number of workers"

    @takes_seconds
    def test_pickles_into_workers(self) -> None:
        """A source goes to a process that is started afresh, also after something was read: an open file would not.

        Raises:
            AssertionError: The source does not pickle, or its copy reads other items.
        """
        source = self.make_source()
        before = self.read(source)
        try:
            copied = pickle.loads(pickle.dumps(source))
        except Exception as error:
            raise AssertionError(f"the source does not pickle: {type(error).__name__}: {error}") from error
        assert equal(before, self.read(copied)), "a pickled source reads other items"

    def test_a_bad_file_is_named(self) -> None:
        """What cannot be used is a BadSample that names the file."""
        broken = self.make_broken()
        if broken is None:
            return
        source, index, name = broken
        error = self.bad_sample(source, index, name)
        assert name in error.path, f"the error names {error.path!r}, not {name!r}"
        assert error.reason.strip(), "the error gives no reason"

    def bad_sample(self, source: DataSource, index: int, name: str) -> BadSample:
        """What reading a bad file raises."""
        try:
            source.read(index, 1)
        except BadSample as error:
            return error
        except Exception as error:
            raise AssertionError(f"a bad file is a {type(error).__name__}, no BadSample: {error}") from error
        raise AssertionError(f"item {index}, {name}, was read though it is bad")

    def test_unsuitable_shapes_are_refused(self) -> None:
        """Shapes that the source cannot give are a ValueError when it is built."""
        for shapes in self.unsuitable:
            assert refusal(self.make_source, shapes), "the refusal says nothing"

    # ---- batches -----------------------------------------------------------------------------------------------------

    def test_finish_gives_what_is_declared(self) -> None:
        """Shapes as the tokenizer asks, numbers of the right type, ``index`` and ``key`` of every sample kept."""
        source = self.make_source()
        sample = self.batch(source)
        rows = len(sample["key"]) * source.samples_per_item
        done = source.finish(dict(sample))
        self.check_finished(source, done, rows)
        for name in ("index", "key"):
            assert name in done, f"finish loses {name!r}"
            assert done[name].shape == (rows,), f"{name} is {tuple(done[name].shape)} for {rows} samples"
            assert done[name].dtype == torch.int64, f"{name} is {done[name].dtype}"
        whole = sample["index"].repeat_interleave(source.samples_per_item)
        assert torch.equal(done["index"], whole), "finish changes the index of a sample"
        assert source.samples_per_item > 1 or torch.equal(done["key"], sample["key"]), "finish changes the keys"

    def test_finish_is_pure(self) -> None:
        """Twice the same, the batch unchanged, and no sample dependent on the others."""
        source = self.make_source()
        sample = self.batch(source)
        given = {name: value.clone() for name, value in sample.items()}
        with seeded(1):
            one = source.finish(dict(sample))
        with seeded(2):
            other = source.finish(dict(sample))
        assert equal(one, other), "finish gives another batch each time"
        assert equal(given, sample), "finish changes the batch that it is given"
        alone = source.finish({name: value[1:2] for name, value in sample.items()})
        each = source.samples_per_item
        for name in source.shapes:
            row = one[name][each : 2 * each]
            near(alone[name].double(), row.double(), f"finish: {name} of a sample depends on others", 1e-5, 1e-6)

    def test_finish_keeps_the_device(self) -> None:
        """On the meta device: shapes follow from shapes, nothing reads a value, and nothing comes from elsewhere."""
        if not self.meta:
            return
        source = self.make_source()
        sample = self.batch(source)
        rows = len(sample["key"]) * source.samples_per_item
        what = "finish reads a value or makes tensors elsewhere than the batch; if it must, set meta = False"
        with saying(what):
            done = source.finish({name: value.to("meta") for name, value in sample.items()})
        self.check_finished(source, done, rows)
        away = [name for name, value in done.items() if not value.is_meta]
        assert not away, f"{', '.join(away)} left the device of the batch"

    @on_gpu
    def test_finish_is_the_same_on_a_gpu(self) -> None:
        """CPU and GPU give the same batch."""
        source = self.make_source()
        sample = self.batch(source)
        here = source.finish(dict(sample))
        gpu_batch = source.finish({name: value.cuda() for name, value in sample.items()})
        for name, value in here.items():
            assert gpu_batch[name].is_cuda, f"{name} left the GPU"
            near(gpu_batch[name].cpu(), value, f"finish gives another {name} on a GPU")

    # ---- labels ------------------------------------------------------------------------------------------------------

    def test_labels(self) -> None:
        """Both splits hold an item per label, labels are classes, and no sample is in both.

        Raises:
            AssertionError: One of these does not hold, or a source without labels does not refuse by a `MimError`.
        """
        source = self.make_source()
        if not self.labels:
            try:
                source.labelled("train")
            except MimError:
                return
            except Exception as error:
                raise AssertionError(f"asked for labels the source raises {one_line(error)}, no MimError") from error
            raise AssertionError("there are labels, or no MimError: set labels = True, or refuse")
        splits = [self.split(source, name) for name in ("train", "test")]
        for split in splits:
            assert split.labels.dtype == torch.int64, f"labels are {split.labels.dtype}"
            assert split.labels.ndim == 1, f"labels are {tuple(split.labels.shape)}"
            assert len(split.labels) > 0, f"the {split.name} split is empty"
            low, high = int(split.labels.min()), int(split.labels.max())
            assert 0 <= low <= high < len(split.classes), f"labels {low} to {high} for {len(split.classes)} classes"
            assert not split.names or len(split.names) == len(split.labels), "a name per sample, or none"
        train, test = splits
        assert train.classes == test.classes, "the splits name other classes"
        both = sorted(set(train.names) & set(test.names))
        assert not both, f"in both splits: {', '.join(both[:3])}"
        few = self.numbers(min(len(split.labels) * split.views for split in splits))
        same = all(equal(train.items[index], test.items[index]) for index in few)
        assert not same, f"items {few} are the same in train and test: the name of the split is not used"

    def test_labelled_items_are_not_augmented(self) -> None:
        """An item of a split is the same each time, and `finish` makes of it what the shapes say."""
        if not self.labels:
            return
        source = self.make_source()
        for name in ("train", "test"):
            split, again = self.split(source, name), self.split(self.make_source(), name)
            last = len(split.labels) * split.views - 1
            for index in sorted({0, last // 2, last}):
                with seeded(1):
                    item = split.items[index]
                with seeded(2):
                    other = again.items[index]
                assert equal(item, other), f"item {index} of the {name} split differs when read again"
                done = source.finish({key: value[None] for key, value in item.items()})
                self.check_finished(source, done, 1)

    def test_plain_items_are_not_augmented(self) -> None:
        """Every item for pre-training has one without augmentation, the same each time, that finishes as declared and
        can be written as a file; or the source refuses with a MimError."""
        source = self.make_source()
        try:
            plain = source.plain()
        except MimError:
            return
        assert len(plain.names) == len(source), f"{len(plain.names)} plain items, and {len(source)} for pre-training"
        again, last = self.make_source().plain(), len(plain.names) * plain.views - 1
        for index in sorted({0, last // 2, last}):
            try:
                with seeded(1):
                    item = plain.items[index]
                with seeded(2):
                    other = again.items[index]
            except BadSample:
                continue
            assert equal(item, other), f"plain item {index} differs when read again"
            done = source.finish({key: value[None] for key, value in item.items()})
            self.check_finished(source, done, 1)
            for modality in source.shapes:
                ending, content = source.file(modality, done[modality][0])
                assert ending.startswith("."), f"{modality} is written to a file that ends in {ending!r}"
                assert content, f"{modality} is written as an empty file"

    def test_labelled_training_items(self) -> None:
        """`read_labelled` gives the class of the split, and draws from the key only."""
        if not self.labels:
            return
        source = self.make_source()
        labels = self.split(source, "train").labels
        for index in (0, len(labels) - 1):
            with seeded(1):
                item = source.read_labelled(index, 7)
            with seeded(2):
                again = self.make_source().read_labelled(index, 7)
            assert equal(item, again), f"labelled item {index} depends on more than its key"
            assert "label" in item, "read_labelled gives no label"
            assert int(item["label"]) == int(labels[index]), f"item {index} has another label than the split says"

    # ---- what is said of it ------------------------------------------------------------------------------------------

    def test_raw(self) -> None:
        """One finite vector per sample, in floating point."""
        source = self.make_source()
        done = source.finish(self.batch(source))
        vectors = source.raw(done)
        assert vectors.shape[:1] == done["index"].shape, f"raw gives {tuple(vectors.shape)}"
        assert vectors.ndim == 2, f"raw gives {tuple(vectors.shape)}, not [B, D]"
        assert bool(vectors.float().isfinite().all()), "the raw input is not finite"

    def test_picture(self) -> None:
        """Every modality has a picture: a whole file of its type."""
        source = self.make_source()
        done = source.finish(self.batch(source))
        for name in source.shapes:
            picture = source.picture(name, done[name][0])
            assert isinstance(picture, Picture), f"the picture of {name} is {type(picture).__name__}"
            self.check_picture(name, picture)

    def check_picture(self, name: str, picture: Picture) -> None:
        """Its content begins as files of that type do."""
        known = SIGNATURES.get(picture.media_type)
        if known is None:
            assert picture.media_type == "image/svg+xml", f"{name}: unknown type {picture.media_type}"
            known = (b"<svg", b"<?xml")
        assert picture.content.startswith(known), f"the picture of {name} is no {picture.media_type}"

    def test_plan(self) -> None:
        """`plan` maps text to text, and `controls` keep the shapes."""
        source = self.make_source()
        rows: Mapping[Any, Any] = source.plan()
        wrong = [
            label for label, text in rows.items() if not (isinstance(label, str) and isinstance(text, str) and text)
        ]
        assert not wrong, f"the plan says nothing of {wrong}"
        done = source.finish(self.batch(source))
        for label, change in source.controls().items():
            self.check_finished(source, change(dict(done)), len(done["index"]))
            assert label.strip(), "a control has no name"
