"""Class names and colours of the data sets that segmentation checkpoints are trained on.

Names and colours are the data sets' own (Cityscapes, ADE20K, COCO-Stuff, PASCAL Context, CamVid), in the order of the
train ids that mmsegmentation and the published checkpoints use.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from engines.spec import RGB

_CITYSCAPES = """
road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person,
rider, car, truck, bus, train, motorcycle, bicycle
"""

_ADE20K = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field,
armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard,
chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway,
case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower,
book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine,
hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane,
dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship,
fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag,
minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher,
screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate,
monitor, bulletin board, shower, radiator, glass, clock, flag
"""

_COCO_STUFF = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv,
laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase,
scissors, teddy bear, hair drier, toothbrush, banner, blanket, branch, bridge, building-other, bush, cabinet,
cage, cardboard, carpet, ceiling-other, ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain,
desk-stuff, dirt, door-stuff, fence, floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower,
fog, food-other, fruit, furniture-other, grass, gravel, ground-other, hill, house, leaves, light, mat, metal,
mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow, plant-other, plastic, platform,
playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea, shelf, sky-other, skyscraper,
snow, solid-other, stairs, stone, straw, structural-other, table, tent, textile-other, towel, tree, vegetable,
wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood, water-other, waterdrops,
window-blind, window-other, wood
"""

_PASCAL_CONTEXT = """
background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, table, dog, horse, motorbike,
person, pottedplant, sheep, sofa, train, tvmonitor, bag, bed, bench, book, building, cabinet, ceiling, cloth,
computer, cup, door, fence, floor, flower, food, grass, ground, keyboard, light, mountain, mouse, curtain,
platform, sign, plate, road, rock, shelves, sidewalk, sky, snow, bedclothes, track, tree, truck, wall, water,
window, wood
"""

_CAMVID = "sky, building, pole, road, pavement, tree, sign, fence, car, pedestrian, bicyclist"

# Six hexadecimal digits a class.
_CITYSCAPES_RGB = (
    "804080f423e846464666669cbe9999999999faaa1edcdc006b8e2398fb984682b4dc143cff000000008e000046003c640050640000e6770b20"
)
_ADE20K_RGB = (
    "787878b4787806e6e650323204c8037878508c8c8ccc05ffe6e6e604fa07e005ffebff0796053d78784608ff33ff06528fff8cccff04"
    "ff3307cc46030066c83de6faff06330b66ffff0747ff09e00907e6dcdcdcff095c7009ff08ffd607ffe0ffb8060aff47ff290a07ffff"
    "e0ff086608ffff3d06ffc207ff7a0800ff14ff0829ff05990633ffeb0cffa0961400a3ff8c8c8cfa0a0f14ff001fff00ff1f00ffe000"
    "99ff000000ffff470000ebff00adff1f00ff0bc8c8ff520000fff5003dff00ff7000ff85ff0000ffa300ff6600c2ff00008fff33ff00"
    "0052ff00ff2900ffad0a00ffadff0000ff99ff5c00ff00ffff00f5ff0066ffad00ff0014ffb8b8001fff00ff3d0047ffff00cc00ffc2"
    "00ff52000aff0070ff3300ff00c2ff007aff00ffa3ff990000ff0aff70008fff005200ffa3ff00ffeb0008b8aa8500ff00ff5cb800ff"
    "ff001f00b8ff00d6ffff00705cff0000e0ff70e0ff46b8a0a300ff9900ff47ff00ff00a3ffcc00ff008f00ffeb85ff00ff00ebf500ff"
    "ff007afff5000abed4d6ff0000ccff1400ffffff000099ff0029ff00ffcc2900ff29ff00ad00ff00f5ff4700ff7a00ff00ffb8005cff"
    "b8ff000085ffffd60019c2c266ff005c00ff"
)
_COCO_STUFF_RGB = (
    "00c04000c04000406080c0c000404000c0e000c0c080c04000c06080c0408020c00000e000004000a0c08000608000c00020c08080e0"
    "0000c080a0c080800080002080200080008040802000a000000000c080a00020000080804080a080a000008000c08020806080000080"
    "40002000e080800000c000a00060808080804000a080e080808040c000208060008000c000802040e0000000408080a04060000080c0"
    "0080a0c0e000008040808020c020800040c000002040a0808040408000a040208080c0c00000a0c0a08080c000800060c02000804080"
    "40806040a000004000c080e040200000c0804080e0c0a00000c000c08060c0608000408040006040e080804000c000e040608080c080"
    "4000e0c0e08080c040c00060c060008040c000806000e0004040408080e000600040c0c00080e080e00040c0408080608020804000c0"
    "00406000a080c000408040e0002080c080c00040e080a080c08000804020802040c0008040c02000a040400000c0c0a0002040408080"
    "40c0a080a040408000c0c0208060c040008040402000e0c0c00000c040a00060c0c080804040a080e0c0c08040c04020806040c000c0"
    "00c02040e04040004080c0a04060404080c000c0a0c0e04040804080c020c020c04040c000402040a0c0c040408040a04020c0c0c0c0"
    "0040a0c0a0c0c0c000804060c02040c0408040c06040a040404000"
)
_CAMVID_RGB = "808080800000c0c0808040803c28de808000c080804040804000804040000080c0"


@dataclass(frozen=True)
class KnownClasses:
    """names[i] and palette[i] belong to label i."""

    names: tuple[str, ...]
    palette: tuple[RGB, ...]


def _dataset(names: str, colours: str) -> KnownClasses:
    data = bytes.fromhex(colours)
    palette = tuple((data[i], data[i + 1], data[i + 2]) for i in range(0, len(data), 3))
    listed = tuple(name.strip() for name in names.replace("\n", " ").split(",") if name.strip())
    return KnownClasses(listed, palette[: len(listed)])


# PASCAL Context has no colours of its own; like mmsegmentation, it borrows the first sixty of ADE20K.
_CONTEXT_60 = _dataset(_PASCAL_CONTEXT, _ADE20K_RGB)

DATASETS = {
    "cityscapes": _dataset(_CITYSCAPES, _CITYSCAPES_RGB),
    "ade20k": _dataset(_ADE20K, _ADE20K_RGB),
    "coco-stuff": _dataset(_COCO_STUFF, _COCO_STUFF_RGB),
    "pascal-context-60": _CONTEXT_60,
    "pascal-context-59": KnownClasses(_CONTEXT_60.names[1:], _CONTEXT_60.palette[1:]),
    "camvid": _dataset(_CAMVID, _CAMVID_RGB),
}


def default_classes(count: int) -> tuple[str, ...]:
    """Names for a model that has none: those of the data set with `count` classes, or class_0, class_1, ...

    One channel is the foreground.
    """
    if count == 1:
        return ("foreground",)
    for dataset in DATASETS.values():
        if len(dataset.names) == count:
            return dataset.names
    return tuple(f"class_{index}" for index in range(count))


def palette_for(classes: Sequence[str]) -> tuple[RGB, ...]:
    """One colour a class: the data set's own where nine in ten names are its, in order; else generated.

    Nine in ten, because published checkpoints spell a few names differently (``window`` for ``windowpane``).
    """
    wanted = [_normal(name) for name in classes]
    for dataset in DATASETS.values():
        if len(dataset.names) == len(wanted):
            equal = sum(a == _normal(b) for a, b in zip(wanted, dataset.names, strict=True))
            if equal >= 0.9 * len(wanted):
                return dataset.palette
    return tuple(_generated(index) for index in range(len(wanted)))


def _normal(name: str) -> str:
    """Lower case, words apart by one space, the first of several synonyms (``road, route``)."""
    return " ".join(re.split(r"[\s_-]+", name.lower().split(",")[0])).strip()


def _generated(index: int) -> RGB:
    """Distinct colours by spreading the bits of the index over the channels, as PASCAL VOC does; 0 is not black."""
    red = green = blue = 0
    value = index + 1
    for bit in range(7, -1, -1):
        red |= (value & 1) << bit
        green |= (value >> 1 & 1) << bit
        blue |= (value >> 2 & 1) << bit
        value >>= 3
    return red, green, blue
