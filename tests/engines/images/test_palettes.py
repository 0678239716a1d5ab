"""Names and colours of the known data sets."""

from __future__ import annotations

import hashlib

import pytest

from engines.images.palettes import DATASETS, default_classes, palette_for

# A few entries that everybody knows by heart, from the data sets' own documentation.
KNOWN = {
    "cityscapes": (19, {0: ("road", (128, 64, 128)), 13: ("car", (0, 0, 142)), 18: ("bicycle", (119, 11, 32))}),
    "ade20k": (150, {0: ("wall", (120, 120, 120)), 12: ("person", (150, 5, 61)), 149: ("flag", (92, 0, 255))}),
    "coco-stuff": (171, {0: ("person", (0, 192, 64)), 170: ("wood", (64, 64, 0))}),
    "pascal-context-60": (60, {0: ("background", (120, 120, 120)), 59: ("wood", (31, 0, 255))}),
    "pascal-context-59": (59, {0: ("aeroplane", (180, 120, 120)), 58: ("wood", (31, 0, 255))}),
    "camvid": (11, {0: ("sky", (128, 128, 128)), 10: ("bicyclist", (0, 128, 192))}),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_data_sets(name: str) -> None:
    count, entries = KNOWN[name]
    dataset = DATASETS[name]
    assert len(dataset.names) == len(dataset.palette) == count
    assert len(set(dataset.names)) == count
    for index, (label, colour) in entries.items():
        assert (dataset.names[index], dataset.palette[index]) == (label, colour)
    assert palette_for(dataset.names) == dataset.palette
    assert default_classes(count) == dataset.names


# sha256 of the names (joined by commas) and colours; when recorded, they were compared entry by entry with
# mmsegmentation's (CamVid: with the SegNet tutorial's).
DIGESTS = {
    "cityscapes": ("14f244f7beeb14b5", "5af5a8d200c61cb3"),
    "ade20k": ("ba644262c15afe51", "ce475c9151035eff"),
    "coco-stuff": ("3ea13afa1dfb53a2", "788e8126c601896b"),
    "pascal-context-60": ("c0518a39ad6a2cb4", "9a95e896a24bbcc5"),
    "pascal-context-59": ("079097cee2f9eaa2", "1a96fb769c8b7c88"),
    "camvid": ("4e159e7b5f048821", "ea47b7c4a518cb20"),
}


@pytest.mark.parametrize("name", DATASETS)
def test_no_entry_was_changed(name: str) -> None:
    dataset = DATASETS[name]
    written = ",".join(dataset.names).encode(), bytes(value for colour in dataset.palette for value in colour)
    assert tuple(hashlib.sha256(data).hexdigest()[:16] for data in written) == DIGESTS[name]


def test_a_few_other_spellings_are_recognised() -> None:
    names = [name.upper().replace(" ", "_") for name in DATASETS["ade20k"].names]
    names[6], names[7], names[8] = "road, route", "bed ", "window"
    assert palette_for(names) == DATASETS["ade20k"].palette


def test_as_many_but_other_classes_are_not_taken_for_a_data_set() -> None:
    names = list(DATASETS["cityscapes"].names)
    assert palette_for([*names[:18], "tram"]) == DATASETS["cityscapes"].palette
    assert palette_for([*names[:16], "tram", "ferry", "lift"]) != DATASETS["cityscapes"].palette
    assert palette_for(names[::-1]) != DATASETS["cityscapes"].palette


def test_other_classes_get_distinct_colours() -> None:
    palette = palette_for([f"thing {i}" for i in range(255)])
    assert len(set(palette)) == 255
    assert palette_for(["thing 0", "thing 1"]) == palette[:2]
    assert default_classes(3) == ("class_0", "class_1", "class_2")
