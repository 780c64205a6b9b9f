from __future__ import annotations

import numpy as np
import pytest
from napari.layers import Labels

from napari_apprentice._napari.strokes import Stroke


def strokes_of(layer: Labels) -> list[Stroke]:
    collected: list[Stroke] = []
    layer.events.paint.connect(lambda event: collected.append(Stroke.from_history(event.value)))
    return collected


def brush(layer: Labels) -> None:
    with layer.block_history():
        for col in range(5, 20, 3):
            layer.paint((1, 10, col), 3)


def bucket(layer: Labels) -> None:
    layer.fill((1, 2, 2), 4)


def polygon(layer: Labels) -> None:
    layer.paint_polygon([[1, 5, 5], [1, 5, 15], [1, 15, 15]], 5)


def several_voxels(layer: Labels) -> None:
    layer.data_setitem(tuple(np.array([[1, 2, 3], [2, 3, 4], [7, 8, 8]])), np.array([6, 7, 8]))


def one_label(layer: Labels) -> None:
    layer.data_setitem(tuple(np.nonzero(layer.data == 2)), 9)


def mixed(layer: Labels) -> None:
    with layer.block_history():
        one_label(layer)
        layer.paint((1, 12, 12), 3)


def whole_box(layer: Labels) -> None:
    layer.contiguous = False
    layer.fill((3, 0, 0), 4)


@pytest.mark.parametrize("act", [brush, bucket, polygon, several_voxels, one_label, mixed, whole_box])
def test_a_stroke_over_the_old_labels_is_what_napari_painted(act):
    before = np.zeros((4, 25, 30), dtype=np.uint16)
    before[1:3, 8:14, 8:14] = 2
    layer = Labels(before.copy())
    layer.brush_size = 4
    strokes = strokes_of(layer)
    act(layer)
    assert len(strokes) == 1
    replayed = before.copy()
    replayed[strokes[0].region] = strokes[0].over(before)
    np.testing.assert_array_equal(replayed, layer.data)
    assert (replayed != before).any()


def test_what_was_not_painted_follows_the_labels_below():
    layer = Labels(np.zeros((20, 20), dtype=np.uint16))
    strokes = strokes_of(layer)
    layer.data_setitem((np.array([2, 8]), np.array([3, 9])), 7)
    answered = np.full((20, 20), 1, dtype=np.uint8)
    over = strokes[0].over(answered)
    assert over.shape == (7, 7)
    assert over[0, 0] == over[-1, -1] == 7
    assert (over == 1).sum() == 49 - 2


def test_protected_labels_stay_unless_they_were_painted_over_on_purpose():
    labels = np.zeros((10, 10), dtype=np.uint8)
    labels[2, 2] = 5
    layer = Labels(labels.copy())
    strokes = strokes_of(layer)
    layer.data_setitem((np.array([2, 3]), np.array([2, 3])), 1)
    labels[3, 3] = 5  # accepted meanwhile
    np.testing.assert_array_equal(np.diag(strokes[0].over(labels, protected=(5,))), [1, 5])


def test_labels_that_the_array_cannot_hold_widen_it():
    layer = Labels(np.zeros((5, 5), dtype=np.uint16))
    strokes = strokes_of(layer)
    layer.data_setitem((np.array([1]), np.array([1])), 300)
    over = strokes[0].over(np.zeros((5, 5), dtype=np.uint8))
    assert over.dtype == np.uint16
    assert over[0, 0] == 300
