"""Data sources that are wrong on purpose: each must fail the check that is there for it, and every check has one."""

from dataclasses import dataclass

import pytest
import torch
from mim_core import randomness
from mim_core.data.source import DataSource, Labelled, Picture, PlainItems
from mim_core.errors import BadSample
from mim_core.testing import DataContract
from torch.utils.data import Dataset, get_worker_info

PNG = b"\x89PNG\r\n\x1a\n and what follows"


class Items(Dataset):
    """Twelve vectors, by number."""

    def __init__(self, first):
        self.first = first

    def __getitem__(self, index):
        return {"signal": torch.full((3,), self.first + index)}


class Good(DataSource):
    """Keeps all of the contract; item 7 is bad."""

    bad = 7

    @dataclass(frozen=True)
    class Config:
        """No options."""

    def __init__(self, config, shapes):
        super().__init__(config, shapes)
        if set(shapes) != {"signal"}:
            raise ValueError("this data gives 'signal'")

    def __len__(self):
        return 8

    def name_of(self, index):
        return f"vector-{index}.txt"

    def read(self, index, key):
        if index == self.bad:
            raise BadSample(self.name_of(index), "it holds letters")
        draw = randomness.torch_seed(key, "signal") % 97
        return {"signal": torch.full((3,), index * 100 + draw)}

    def finish(self, sample):
        return {**sample, "signal": sample["signal"].float() / 10}

    def labelled(self, split):
        first = 0 if split == "train" else 1000
        names = tuple(f"{first + index}.txt" for index in range(6))
        return Labelled(split, torch.arange(6) % 2, ("even", "odd"), Items(first), names=names)

    def plain(self):
        return PlainItems(Items(0), tuple(map(self.name_of, range(8))))

    def picture(self, modality, values):
        return Picture("image/png", PNG)

    def plan(self):
        return {"data": "twelve vectors"}


class NoItems(Good):
    def __len__(self):
        return 0


class Nameless(Good):
    def name_of(self, index):
        return ""


class AsksTheGenerator(Good):
    def read(self, index, key):
        return {"signal": super().read(index, key)["signal"] + torch.randint(1000, (3,))}


class RemembersWhatWasRead(Good):
    count = 0

    def read(self, index, key):
        self.count += 1
        return {"signal": super().read(index, key)["signal"] + self.count}


class IgnoresKey(Good):
    def read(self, index, key):
        return super().read(index, 0)


class IgnoresIndex(Good):
    def read(self, index, key):
        return super().read(0, key)


class KnowsItsWorker(Good):
    bad = None

    def read(self, index, key):
        return {"signal": super().read(index, key)["signal"] + 5 * (get_worker_info() is not None)}


class HoldsAFile(Good):
    def read(self, index, key):
        self.file = open(__file__)  # noqa: SIM115 - that is the fault
        return super().read(index, key)


class Crashes(Good):
    def read(self, index, key):
        if index == self.bad:
            raise OSError("no such file")
        return super().read(index, key)


class ReadsAnything(Good):
    def read(self, index, key):
        return {"signal": torch.full((3,), index)}


class NamesNothing(Good):
    def read(self, index, key):
        if index == self.bad:
            raise BadSample("a file", "it holds letters")
        return super().read(index, key)


class TakesAnyShape(Good):
    def __init__(self, config, shapes):
        DataSource.__init__(self, config, shapes)


class LosesTheKey(Good):
    def finish(self, sample):
        return {name: value for name, value in super().finish(sample).items() if name != "key"}


class StaysWhole(Good):
    def finish(self, sample):
        return sample


class TooLong(Good):
    def finish(self, sample):
        done = super().finish(sample)
        return {**done, "signal": done["signal"].repeat(1, 2)}


class WorksInPlace(Good):
    def finish(self, sample):
        sample["signal"] *= 2
        return super().finish(sample)


class SubtractsTheBatch(Good):
    def finish(self, sample):
        done = super().finish(sample)
        return {**done, "signal": done["signal"] - done["signal"].mean()}


class AddsNoise(Good):
    def finish(self, sample):
        done = super().finish(sample)
        return {**done, "signal": done["signal"] + torch.rand(())}


class StaysOnTheCpu(Good):
    def finish(self, sample):
        return {**sample, "signal": torch.ones(sample["signal"].shape)}


class OtherOnGpu(Good):
    def finish(self, sample):
        done = super().finish(sample)
        return {**done, "signal": done["signal"] * (2 if done["signal"].is_cuda else 1)}


class TooManyClasses(Good):
    def labelled(self, split):
        found = super().labelled(split)
        return Labelled(split, found.labels * 5, found.classes, found.items)


class SharesSamples(Good):
    def labelled(self, split):
        found = super().labelled("train")
        return Labelled(split, found.labels, found.classes, found.items, names=found.names)


class OneSplit(Good):
    """Under two names, and none of its samples has one."""

    def labelled(self, split):
        found = super().labelled("train")
        return Labelled(split, found.labels, found.classes, found.items)


class NoLabels(Good):
    def labelled(self, split):
        raise KeyError("labels")


class AugmentedItems(Items):
    def __getitem__(self, index):
        return {"signal": super().__getitem__(index)["signal"] + torch.randint(99, ())}


class AugmentsTheSplit(Good):
    def labelled(self, split):
        found = super().labelled(split)
        return Labelled(split, found.labels, found.classes, AugmentedItems(0), names=found.names)


class OtherLabel(Good):
    def read_labelled(self, index, key):
        return {
            **super().read_labelled(index, key),
            "label": torch.tensor(1 - int(self.labelled("train").labels[index])),
        }


class NoVector(Good):
    def raw(self, sample):
        return sample["signal"][:, 0]


class NoPng(Good):
    def picture(self, modality, values):
        return Picture("image/png", b"<svg></svg>")


class SaysNothing(Good):
    def plan(self):
        return {"data": ""}


class BreaksAControl(Good):
    def controls(self):
        return {"half": lambda sample: {**sample, "signal": sample["signal"][:, :1]}}


class LeavesItemsOut(Good):
    def plain(self):
        return PlainItems(Items(0), ("vector-0.txt",))


class AugmentsPlainItems(Good):
    def plain(self):
        class Drawn(Items):
            def __getitem__(self, index):
                return {"signal": torch.randint(1000, (3,))}

        return PlainItems(Drawn(0), tuple(map(self.name_of, range(8))))


class WritesNothing(Good):
    def file(self, modality, values):
        return ".txt", b""


WRONG = [
    (NoItems, "test_there_are_items_with_names", "0 items"),
    (Nameless, "test_there_are_items_with_names", "is empty"),
    (AsksTheGenerator, "test_read_follows_from_index_and_key", "draw from the key only"),
    (RemembersWhatWasRead, "test_read_follows_from_index_and_key", "draw from the key only"),
    (IgnoresKey, "test_other_keys_and_indices_differ", "another key gives the same"),
    (IgnoresIndex, "test_other_keys_and_indices_differ", "the index is not used"),
    (KnowsItsWorker, "test_workers_do_not_matter", "number of workers"),
    (HoldsAFile, "test_pickles_into_workers", "does not pickle"),
    (Crashes, "test_a_bad_file_is_named", "a bad file is a OSError"),
    (ReadsAnything, "test_a_bad_file_is_named", "was read though it is bad"),
    (NamesNothing, "test_a_bad_file_is_named", "the error names 'a file'"),
    (TakesAnyShape, "test_unsuitable_shapes_are_refused", "took what it must refuse"),
    (LosesTheKey, "test_finish_gives_what_is_declared", "loses 'key'"),
    (StaysWhole, "test_finish_gives_what_is_declared", "no floating-point"),
    (TooLong, "test_finish_gives_what_is_declared", "declared"),
    (WorksInPlace, "test_finish_is_pure", "another batch|changes the batch"),
    (SubtractsTheBatch, "test_finish_is_pure", "depends on others"),
    (AddsNoise, "test_finish_is_pure", "another batch each time"),
    (StaysOnTheCpu, "test_finish_keeps_the_device", "left the device"),
    pytest.param(
        OtherOnGpu,
        "test_finish_is_the_same_on_a_gpu",
        "gives another signal on a GPU",
        marks=(pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
    ),
    (TooManyClasses, "test_labels", "labels 0 to 5 for 2 classes"),
    (SharesSamples, "test_labels", "in both splits: 0.txt"),
    (OneSplit, "test_labels", "are the same in train and test"),
    (AugmentsTheSplit, "test_labelled_items_are_not_augmented", "differs when read again"),
    (LeavesItemsOut, "test_plain_items_are_not_augmented", "1 plain items, and 8"),
    (AugmentsPlainItems, "test_plain_items_are_not_augmented", "differs when read again"),
    (WritesNothing, "test_plain_items_are_not_augmented", "an empty file"),
    (OtherLabel, "test_labelled_training_items", "another label than the split says"),
    (NoVector, "test_raw", "not .B, D."),
    (NoPng, "test_picture", "is no image/png"),
    (SaysNothing, "test_plan", "says nothing of"),
    (BreaksAControl, "test_plan", "declared"),
]


def contract_of(source):
    class Contract(DataContract):
        shapes = {"signal": (3,)}
        unsuitable = ({"picture": (3,)},)

        def make_source(self, shapes=None):
            return source(source.Config(), self.shapes if shapes is None else shapes)

        def make_broken(self):
            return self.make_source(), 7, "vector-7.txt"

    return Contract


@pytest.mark.parametrize(("source", "check", "text"), WRONG)
def test_wrong_sources(source, check, text):
    with pytest.raises(AssertionError, match=text):
        getattr(contract_of(source)(), check)()


def test_a_source_that_should_refuse_labels():
    class Contract(contract_of(Good)):
        labels = False

    with pytest.raises(AssertionError, match="there are labels"):
        Contract().test_labels()

    class Other(contract_of(NoLabels)):
        labels = False

    with pytest.raises(AssertionError, match="raises KeyError: 'labels', no MimError"):
        Other().test_labels()


def test_a_source_that_claims_not_to_augment():
    class Contract(contract_of(Good)):
        augmented = False

    with pytest.raises(AssertionError, match="set augmented = True"):
        Contract().test_other_keys_and_indices_differ()


class TestGood(contract_of(Good)):
    """The one that the others differ from keeps all of it."""


def test_every_check_can_fail():
    rows = [getattr(row, "values", row) for row in WRONG]
    checks = {check for check in vars(DataContract) if check.startswith("test_")}
    assert {row[1] for row in rows} == checks
