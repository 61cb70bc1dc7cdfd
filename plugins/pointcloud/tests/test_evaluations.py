"""Support vector machines and part IoU on features and labels whose scores are known."""

import numpy as np
import pytest
import torch
from mim_core.errors import MimError
from mim_core.evaluation.study import SplitFeatures, Study
from mim_core.recipes.config import EvaluateConfig
from mim_core.scores import MAJORITY, PRETRAINED, RAW
from mim_pointcloud import evaluations
from mim_pointcloud.evaluations import draw, few_shot, folds, svm
from mim_pointcloud.metrics import part_iou
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

ALL = {"svm": svm, "folds": folds, "few_shot": few_shot}


def make_study(classes=12, each=(30, 10), spread=0.2, width=24, seed=0):
    """Blobs around class centres in one row, noise of another scale in the other."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=generator)
    labels = tuple(
        torch.arange(classes).repeat(count)[torch.randperm(classes * count, generator=generator)] for count in each
    )
    blobs = SplitFeatures(*(centres[y] + spread * torch.randn(len(y), width, generator=generator) for y in labels))
    noise = SplitFeatures(*(100 * torch.randn(len(y), 6, generator=generator) + 7 for y in labels))
    names = tuple(f"class {number}" for number in range(classes))
    return Study(EvaluateConfig(), labels, names, {RAW: noise, PRETRAINED: blobs})


def by_cell(scores):
    return {(score.row, score.column): (score.value, score.spread) for score in scores}


@pytest.fixture(scope="module")
def scored():
    """(study, scores) of every evaluation."""
    found = {}
    for name, function in ALL.items():
        study = make_study()
        found[name] = (study, function(study))
    return found


# ---- what all keep to ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_blobs_are_told_apart_and_noise_is_not(scored, name):
    _, scores = scored[name]
    columns = {score.column for score in scores}
    assert {(score.row, score.column) for score in scores} == {
        (row, column) for row in (MAJORITY, RAW, PRETRAINED) for column in columns
    }
    for (row, column), (value, spread) in by_cell(scores).items():
        chance = by_cell(scores)[MAJORITY, column][0]
        if row == PRETRAINED:
            assert value == 1, column
            assert spread in (None, 0)
        if row == RAW:
            assert abs(value - chance) < 0.08, column


@pytest.mark.parametrize("name", ALL)
def test_scores_follow_from_the_study_alone(scored, name):
    torch.manual_seed(3)
    np.random.seed(3)
    assert ALL[name](make_study()) == scored[name][1]


@pytest.mark.parametrize("name", ALL)
def test_the_numbers_of_classes_do_not_matter(scored, name):
    study = make_study()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(5))
    study.labels = tuple(order[labels] for labels in study.labels)
    found, expected = by_cell(ALL[name](study)), by_cell(scored[name][1])
    assert found.keys() == expected.keys()
    for cell, (value, spread) in found.items():
        assert value == pytest.approx(expected[cell][0], abs=1e-3)
        assert spread == pytest.approx(expected[cell][1], abs=1e-3)


@pytest.mark.parametrize("name", ALL)
def test_the_rule_is_in_a_note(scored, name):
    notes = scored[name][0].notes
    assert sum("LinearSVC with C = 0.01 on features of mean 0 and deviation 1" in note for note in notes) == 1
    assert not any("converged" in note for note in notes)


@pytest.mark.parametrize("name", ALL)
def test_one_class_is_refused(name):
    study = make_study()
    study.labels = tuple(torch.zeros_like(labels) for labels in study.labels)
    with pytest.raises(MimError, match="one class; it needs two"):
        ALL[name](study)


@pytest.mark.parametrize("name", ALL)
def test_features_that_are_not_finite_are_named(name):
    study = make_study()
    study.rows[PRETRAINED].test[3, 1] = torch.nan
    with pytest.raises(MimError, match=f"features of {PRETRAINED} are not finite"):
        ALL[name](study)


@pytest.mark.parametrize("name", ALL)
def test_fits_that_do_not_converge_are_told_of(monkeypatch, name):
    monkeypatch.setattr(evaluations, "ITERATIONS", 1)
    study = make_study(classes=10, each=(16, 10))
    ALL[name](study)
    (note,) = [note for note in study.notes if "converged" in note]
    assert "had not converged after 1 iterations" in note


# ---- svm -------------------------------------------------------------------------------------------------------------


def direct(train, labels, test, truth):
    scaler = StandardScaler().fit(train)
    machine = LinearSVC(C=0.01, max_iter=100_000, random_state=0).fit(scaler.transform(train), labels)
    return (machine.predict(scaler.transform(test)) == truth).mean()


def test_svm_is_a_direct_call():
    study = make_study(spread=1.2, seed=2)
    (train, test), features = study.labels, study.rows[PRETRAINED]
    features.test.mul_(1.5).add_(0.7)  # would move the scale of the features if the test split took part in it
    scores = by_cell(svm(study))
    expected = direct(*(x.double().numpy() for x in (features.train, train, features.test, test)))
    assert 0.3 < expected < 0.95  # neither trivial nor hopeless
    assert scores[PRETRAINED, "SVM"] == (pytest.approx(expected, abs=1e-9), None)


def test_svm_does_not_depend_on_the_scale_of_features():
    study, other = make_study(spread=1.6), make_study(spread=1.6)
    other.rows = {row: SplitFeatures(1e4 * f.train - 3, 1e4 * f.test - 3) for row, f in other.rows.items()}
    assert by_cell(svm(study))[PRETRAINED, "SVM"][0] == pytest.approx(by_cell(svm(other))[PRETRAINED, "SVM"][0])


def test_majority_is_that_of_the_training_split():
    study = make_study(classes=3)
    study.labels = (torch.tensor([2] * 50 + [0] * 40), torch.tensor([2] * 12 + [1] * 18))
    assert by_cell(svm(study))[MAJORITY, "SVM"][0] == pytest.approx(0.4)


# ---- folds -----------------------------------------------------------------------------------------------------------


def test_folds_are_scikit_learn_s():
    study = make_study(spread=1.6, seed=2)
    labels = torch.cat(study.labels).numpy()
    features = torch.cat([study.rows[PRETRAINED].train, study.rows[PRETRAINED].test]).double().numpy()
    value, spread = by_cell(folds(study))[PRETRAINED, "SVM, 5 folds"]
    from mim_core import randomness

    key = int(randomness.make_key(0, 0, torch.tensor([0]))[0])
    splitter = StratifiedKFold(5, shuffle=True, random_state=randomness.torch_seed(key, "folds") % 2**32)
    each = [direct(features[a], labels[a], features[b], labels[b]) for a, b in splitter.split(features, labels)]
    assert value == pytest.approx(np.mean(each), abs=2e-3)
    assert spread == pytest.approx(np.std(each, ddof=1), abs=2e-3)
    assert spread > 0


def test_folds_say_what_was_held_out(scored):
    assert any("labels are held out and not shapes" in note for note in scored["folds"][0].notes)


def test_rare_classes_are_told_of():
    study = make_study(classes=4)
    study.labels[0][study.labels[0] == 3] = 2
    study.labels[1][study.labels[1] == 3] = 2
    study.labels[0][:2] = 3
    folds(study)
    assert "SVM, 5 folds: 1 classes have fewer than 5 shapes and are not in every fold." in study.notes


def test_too_few_for_folds():
    study = make_study(classes=8, each=(2, 2))
    with pytest.raises(MimError, match="no class has 5 labelled samples; the largest has 4"):
        folds(study)


# ---- few-shot --------------------------------------------------------------------------------------------------------


def test_few_shot_has_four_columns_and_chance(scored):
    scores = by_cell(scored["few_shot"][1])
    chance = {column: value for (row, column), (value, _) in scores.items() if row == MAJORITY}
    assert chance == {"5-way 10-shot": 0.2, "5-way 20-shot": 0.2, "10-way 10-shot": 0.1, "10-way 20-shot": 0.1}
    assert all(scores[RAW, column][1] > 0 for column in chance)  # a spread over runs
    assert any("Point-MAE's table has the whole network fine-tuned" in note for note in scored["few_shot"][0].notes)


@pytest.mark.parametrize(("ways", "shots"), [(5, 10), (10, 20)])
def test_draws_are_what_they_should_be(ways, shots):
    labels = np.repeat(np.arange(12), 35)[np.random.default_rng(0).permutation(420)]
    fitting, seen = np.arange(12), set()
    for run in range(10):
        train, test = draw(labels, fitting, ways, shots, run)
        assert np.array_equal(np.unique(labels[train], return_counts=True)[1], [shots] * ways)
        assert np.array_equal(np.unique(labels[test], return_counts=True)[1], [min(20, 35 - shots)] * ways)
        assert set(labels[train]) == set(labels[test])
        assert not set(train) & set(test)
        assert len(set(train)) == len(train)
        seen.add((tuple(train), tuple(test)))
        again = draw(labels, fitting, ways, shots, run)
        assert np.array_equal(train, again[0])
        assert np.array_equal(test, again[1])
    assert len(seen) == 10


def test_few_shot_is_a_direct_call():
    study = make_study(spread=1.6, seed=2)
    labels = torch.cat(study.labels)
    first = list(dict.fromkeys(labels.tolist()))
    numbers = np.array([first.index(label) for label in labels.tolist()])
    features = torch.cat([study.rows[PRETRAINED].train, study.rows[PRETRAINED].test]).double().numpy()
    parts = [draw(numbers, np.arange(12), 5, 10, run) for run in range(10)]
    each = [direct(features[a], numbers[a], features[b], numbers[b]) for a, b in parts]
    value, spread = by_cell(few_shot(study))[PRETRAINED, "5-way 10-shot"]
    assert value == pytest.approx(np.mean(each), abs=2e-3)
    assert spread == pytest.approx(np.std(each, ddof=1), abs=2e-3)


def test_what_cannot_be_drawn_is_named():
    study = make_study(classes=7, each=(12, 3))
    columns = {score.column for score in few_shot(study)}
    assert columns == {"5-way 10-shot"}
    assert "No 5-way 20-shot: 0 of 7 classes have more than 20 labelled shapes, and it needs 5." in study.notes
    assert "No 10-way 10-shot: 7 of 7 classes have more than 10 labelled shapes, and it needs 10." in study.notes
    assert any("5 to 20 of each are judged" in note for note in study.notes)


def test_nothing_to_draw_is_no_error():
    study = make_study(classes=3, each=(4, 4))
    assert few_shot(study) == []
    assert len(study.notes) == 4


# ---- parts -----------------------------------------------------------------------------------------------------------


PARTS = {0: (0, 1, 2), 1: (3, 4), 7: (5,)}


def test_part_iou_by_hand():
    """Shape 1 of category 0: part 0 1/3 (1 shared, 3 in either), part 1 1/2, part 2 in neither: 1. Shape 2: all
    right. Shape of category 1: part 3 2/4, part 4 0/2."""
    predicted = torch.tensor([[0, 1, 1, 0], [0, 1, 2, 2], [3, 3, 3, 3]])
    truth = torch.tensor([[0, 0, 1, 1], [0, 1, 2, 2], [3, 3, 4, 4]])
    by_class, by_shape, each = part_iou(predicted, truth, torch.tensor([0, 0, 1]), PARTS)
    first, third = (1 / 3 + 1 / 3 + 1) / 3, (1 / 2 + 0) / 2
    assert each == pytest.approx({0: (first + 1) / 2, 1: third})
    assert by_class == pytest.approx(((first + 1) / 2 + third) / 2)
    assert by_shape == pytest.approx((first + 1 + third) / 3)


def loops(predicted, truth, categories, parts_of):
    values = []
    for shape in range(len(truth)):
        found = []
        for part in parts_of[categories[shape]]:
            a = {i for i, p in enumerate(predicted[shape]) if p == part}
            b = {i for i, p in enumerate(truth[shape]) if p == part}
            found.append(len(a & b) / len(a | b) if a | b else 1.0)
        values.append(sum(found) / len(found))
    each = {c: np.mean([v for v, own in zip(values, categories, strict=True) if own == c]) for c in set(categories)}
    return np.mean(list(each.values())), np.mean(values), each


@pytest.mark.parametrize("seed", range(5))
def test_part_iou_equals_plain_loops(seed):
    draws = np.random.default_rng(seed)
    categories = draws.choice([0, 1, 7], 20, p=[0.6, 0.3, 0.1])
    truth = np.stack([draws.choice(PARTS[c][: draws.integers(1, 4)], 30) for c in categories])
    predicted = np.where(draws.random((20, 30)) < 0.7, truth, draws.integers(0, 6, (20, 30)))
    found = part_iou(*(torch.from_numpy(x) for x in (predicted, truth, categories)), PARTS)
    expected = loops(predicted.tolist(), truth.tolist(), categories.tolist(), PARTS)
    assert found[0] == pytest.approx(expected[0])
    assert found[1] == pytest.approx(expected[1])
    assert found[2] == pytest.approx(expected[2])
    assert found[0] != pytest.approx(found[1])


def test_part_iou_refuses_what_cannot_be():
    parts, category = torch.tensor([[0, 1]]), torch.tensor([0])
    assert part_iou(parts, parts, category, PARTS)[:2] == (1, 1)
    with pytest.raises(ValueError, match=r"category 3 has no parts; those that do: \[0, 1, 7\]"):
        part_iou(parts, parts, torch.tensor([3]), PARTS)
    with pytest.raises(ValueError, match=r"category 0 have parts \[4\]"):
        part_iou(parts, torch.tensor([[0, 4]]), category, PARTS)
    with pytest.raises(ValueError, match="no points"):
        part_iou(parts[:0], parts[:0], category[:0], PARTS)
