"""Means and standard deviations that users state."""

import pytest
from mim_core.data.normalise import IMAGENET_MEAN, IMAGENET_STD, check_statistics, usual_statistics
from mim_core.errors import MimError


@pytest.mark.parametrize(
    ("mean", "std", "remedy"),
    [
        ((127.5,), (127.5,), "--data.mean 0.5 --data.std 0.5"),
        ((0.5,), (58.395,), "--data.mean 0.5 --data.std 0.229"),
        ((123.675, 116.28, 103.53), (0.2, 0.2, 0.2), "--data.mean 0.485 0.456 0.406 --data.std 0.2 0.2 0.2"),
    ],
)
def test_units_of_255_are_refused_with_what_was_meant(mean, std, remedy):
    with pytest.raises(MimError) as error:
        check_statistics(mean, std, len(mean))
    assert str(error.value).endswith(remedy)


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,), (0.0,)), ((0.5,), (-1.0,)), ((0.5, 0.5), (0.5,)), ((float("nan"),), (0.5,)), ((), ())]
)
def test_what_fits_no_data_is_refused(mean, std):
    with pytest.raises(ValueError, match="mean"):
        check_statistics(mean, std, 1)


def test_what_fits_is_taken():
    check_statistics((0.0,), (1.0,), 1)
    check_statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 3)


def test_what_is_not_stated_is_the_usual():
    assert usual_statistics(None, (), 3) == (IMAGENET_MEAN, IMAGENET_STD)
    assert usual_statistics((), None, 2) == ((0.5, 0.5), (0.5, 0.5))
    assert usual_statistics([0.25], None, 1) == ((0.25,), (0.5,))
