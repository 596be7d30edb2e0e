import math

import numpy as np
import pytest

from pipeline.metrics.segmentation import MOST_PIXELS, Confusion

APOLLOSCAPE_EVALUATED = (0, 200, 204, 209, 201, 203, 217, 210, 214, 220, 221, 222, 224, 225, 226, 205, 227, 250)
APOLLOSCAPE_CATEGORIES = {
    "void": (0,),
    "dividing": (200, 204, 213, 209, 206, 207),
    "guiding": (201, 203, 211, 208),
    "stopping": (216, 217, 215),
    "chevron": (218, 219),
    "parking": (210, 232),
    "zebra": (214,),
    "thru/turn": (202, 220, 221, 222, 231, 224, 225, 226, 230, 228, 229, 233),
    "reduction": (205,),
    "attention": (212,),
    "no parking": (227,),
    "others": (223, 250),
    "ignored": (249, 255),
}


def slow_ious(pairs, evaluated, groups):
    """Straight from the rules: for each group of values, walk over all pixels of all images."""
    ious = []
    for group in groups:
        members = [value for value in group if value in evaluated]
        hits = misses = false = 0
        for truth, prediction in pairs:
            for true, predicted in zip(truth.ravel().tolist(), prediction.ravel().tolist()):
                hits += true in members and predicted in members
                misses += true in members and predicted not in members
                false += predicted in members and true in evaluated and true not in group
        ious.append(hits / (hits + misses + false) if hits + misses + false else math.nan)
    return ious


def slow_mean(ious):
    total, count = 0.0, 0
    for iou in ious:
        if not math.isnan(iou):
            total, count = total + iou, count + 1
    return total / count


def counted(pairs, confusion):
    for truth, prediction in pairs:
        confusion.add(truth, prediction)
    return confusion


def pairs_of(rng, truths, predictions, images=3, size=(9, 13)):
    return [tuple(rng.choice(values, size).astype(np.uint8) for values in (truths, predictions)) for _ in range(images)]


def test_train_ids_equal_walking_over_all_pixels():
    pairs = pairs_of(np.random.default_rng(0), [0, 1, 2, 3, 5, 255], [0, 1, 2, 3, 4, 255])
    confusion = counted(pairs, Confusion(7))
    slow = slow_ious(pairs, range(7), [[c] for c in range(7)])
    assert np.array_equal(confusion.iou(), slow, equal_nan=True)
    assert confusion.mean_iou() == slow_mean(slow)
    assert slow[4] == 0 and slow[5] == 0 and math.isnan(slow[6])  # predicted never true; true never hit; absent


def test_apolloscape_ids_and_categories_equal_walking_over_all_pixels():
    rng = np.random.default_rng(1)
    ids = [value for members in APOLLOSCAPE_CATEGORIES.values() for value in members]
    pairs = pairs_of(rng, ids, ids + [1, 77])  # 1 and 77 are no ids at all
    pairs = [(truth, np.where(rng.random(truth.shape) < 0.6, truth, prediction)) for truth, prediction in pairs]
    confusion = counted(pairs, Confusion(evaluated=APOLLOSCAPE_EVALUATED))
    slow = slow_ious(pairs, APOLLOSCAPE_EVALUATED, [[value] for value in APOLLOSCAPE_EVALUATED])
    assert confusion.iou().tolist() == slow
    assert confusion.mean_iou() == slow_mean(slow)
    slow = slow_ious(pairs, APOLLOSCAPE_EVALUATED, APOLLOSCAPE_CATEGORIES.values())
    fast = confusion.category_iou(APOLLOSCAPE_CATEGORIES)
    assert np.array_equal(list(fast.values()), slow, equal_nan=True)
    assert math.isnan(fast["chevron"]) and math.isnan(fast["ignored"])  # no evaluated id in them
    assert confusion.mean_category_iou(APOLLOSCAPE_CATEGORIES) == slow_mean(slow)


def test_a_case_worked_by_hand():
    """Truth 0 0 0 1 1 9 (9 is not evaluated), prediction 0 1 9 1 0 1.

    IoU(0) = 1 / (3 + 1): one hit; missed as 1 and as 9; the true 1 predicted 0 is false. IoU(1) = 1 / (2 + 1): the
    pixel predicted 1 on truth 9 is left out. IoU(2) is NaN. As one category, 0 and 1: hits 0-0 0-1 1-1 1-0 = 4 of 5.
    """
    confusion = Confusion(evaluated=(0, 1, 2))
    confusion.add(np.array([[0, 0, 0, 1, 1, 9]], np.uint8), np.array([[0, 1, 9, 1, 0, 1]], np.uint8))
    assert confusion.iou()[:2].tolist() == [1 / 4, 1 / 3] and math.isnan(confusion.iou()[2])
    assert confusion.mean_iou() == (1 / 4 + 1 / 3) / 2
    assert confusion.category_iou({"both": (0, 1, 9)}) == {"both": 4 / 5}


def test_a_class_that_is_predicted_but_never_true_counts_as_zero():
    confusion = Confusion(3)
    confusion.add(np.array([[0, 0]], np.uint8), np.array([[0, 1]], np.uint8))
    assert confusion.iou()[:2].tolist() == [0.5, 0.0]
    assert confusion.mean_iou() == 0.25


def test_nothing_evaluated_gives_nan():
    confusion = Confusion(2)
    confusion.add(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8))
    assert math.isnan(confusion.mean_iou())


def test_merging_equals_counting_in_one_place():
    pairs = pairs_of(np.random.default_rng(2), range(5), range(5), images=4)
    merged = counted(pairs[:1], Confusion(5))
    merged.merge(counted(pairs[1:], Confusion(5)))
    assert np.array_equal(merged.matrix, counted(pairs, Confusion(5)).matrix)
    with pytest.raises(AssertionError):
        merged.merge(Confusion(6))


def test_a_picture_larger_than_float32_can_count_is_exact():
    truth = np.ones((4099, 4097), np.uint8)  # 2**24 + 16,787 pixels
    assert truth.size > MOST_PIXELS
    confusion = Confusion(2)
    confusion.add(truth, truth)
    confusion.add(truth[:1, :1], truth[:1, :1])
    assert confusion.matrix[1, 1] == truth.size + 1


def test_a_crop_that_is_not_contiguous_counts_its_own_pixels():
    rng = np.random.default_rng(3)
    truth, prediction = rng.integers(0, 4, (2, 20, 30)).astype(np.uint8)
    confusion = counted([(truth[3:, 5:-2], prediction[3:, 5:-2])], Confusion(4))
    assert confusion.matrix.sum() == 17 * 23
    assert confusion.matrix[1, 2] == np.sum((truth[3:, 5:-2] == 1) & (prediction[3:, 5:-2] == 2))
