"""The drawn roads with every paint a class: what is read is what was drawn, and arrows turn in the mirror."""

import numpy as np
import pytest

from pipeline.datasets.markings import PAINT, Dataset
from pipeline.errors import DatasetError
from pipeline.synth.facets import marking_map
from pipeline.synth.markings import KINDS
from pipeline.synth.render import picture
from pipeline.synth.sampling import draw_scene

KEYS = {"train": 6, "val": 2, "test": 1, "size": [118, 328], "seed": 3, "difficulty": 0.1}


@pytest.fixture(scope="module")
def markings(tmp_path_factory):
    data, told = Dataset(root=str(tmp_path_factory.mktemp("markings")), **KEYS), []
    data.generate(workers=1, progress=lambda done, total: told.append((done, total)))
    assert told == [(number, 9) for number in range(1, 10)]
    return data


def test_what_is_read_is_what_was_drawn(markings):
    seen = set()
    for split in ("train", "val", "test"):
        for index, image_id in enumerate(markings.ids(split)):
            scene = draw_scene(3, split, index, 0.1)
            painted, label = marking_map(scene, (118, 328)), markings.label(image_id)
            for number, kind in enumerate(KINDS):
                assert np.array_equal(painted == number, label == (markings.classes.index(kind) if number else 0)), kind
            seen |= set(np.unique(label).tolist())
            assert np.abs(markings.image(image_id).astype(int) - picture(scene, (118, 328))).mean() < 6  # JPEG
    assert len(seen) > 4


def test_every_paint_of_the_generator_has_its_class_and_arrows_turn_in_the_mirror(markings):
    assert set(PAINT) == set(KINDS[1:]) and markings.classes[markings.background] == "background"
    turned = {name: markings.classes[k] for name, k in zip(markings.classes, markings.mirror) if markings.classes[k] != name}
    assert turned == {"a_w_l": "a_w_r", "a_w_r": "a_w_l", "a_w_tl": "a_w_tr", "a_w_tr": "a_w_tl"}


def test_frames_that_are_not_drawn_are_missed(markings):
    more = Dataset(root=str(markings.root), **{**KEYS, "train": 8})
    assert more.ids("val") == markings.ids("val")
    with pytest.raises(DatasetError, match="2 of the 8 frames of train are not drawn yet; run 'pipeline synth'"):
        more.ids("train")
