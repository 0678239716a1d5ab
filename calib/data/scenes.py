"""Rendered street scenes with exact labels: data for the demo model, for tests and for a first calibration.

A scene is a pure function of (seed, height, width).  Everything is sized relative to one unit, so that the same street
can be rendered at any scale; objects are painted from far to near, so nearer ones occlude.  What makes it more than
colour lookup: facades and pavements share colours, posters look like signs, every surface has texture, and light,
haze, noise and white balance differ from scene to scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.contract import UInt8

CLASSES = ("sky", "building", "road", "pavement", "tree", "pole", "sign", "car", "person")
PALETTE = (
    (70, 130, 180), (70, 70, 70), (128, 64, 128), (244, 35, 232), (107, 142, 35),
    (153, 153, 153), (220, 220, 0), (0, 0, 142), (220, 20, 60),
)  # fmt: skip
SKY, BUILDING, ROAD, PAVEMENT, TREE, POLE, SIGN, CAR, PERSON = range(len(CLASSES))

Float = NDArray[np.float32]
Colour = NDArray[np.floating]  # (3,) RGB in 0..1


@dataclass(frozen=True)
class Scene:
    """image: (H, W, 3) uint8 RGB.  labels: (H, W) uint8, index into CLASSES."""

    image: UInt8
    labels: UInt8


def render(seed: int, height: int, width: int) -> Scene:
    """Render the scene of `seed`."""
    canvas = _Canvas(np.random.default_rng([seed, 0x5CE9E]), height, width, float(height))
    canvas.background()
    canvas.objects()
    return Scene(canvas.finish(), canvas.labels)


def render_bands(seed: int, height: int, width: int, count: int) -> UInt8:
    """(height, width, count): the scene's colours; those of other networks than RGB's are its colours and negatives of
    them, darker and darker, so that no two are alike.
    """
    scene = render(seed, height, width).image
    bands = [scene[:, :, band % 3] // (1 + band // 6) ^ (255 if band // 3 % 2 else 0) for band in range(count)]
    return scene if count == 3 else np.stack(bands, 2)


def render_folder(folder: Path, seeds: Sequence[int], height: int, width: int) -> Path:
    """Write one PPM a seed into `folder` / images and return that: for who reads photographs."""
    images = folder / "images"
    images.mkdir(parents=True)
    for seed in seeds:
        pixels = render(seed, height, width).image
        (images / f"scene-{seed}.ppm").write_bytes(b"P6 %d %d 255\n" % (width, height) + pixels.tobytes())
    return images


class _Canvas:
    """Float colours in 0..1 and labels, painted back to front."""

    def __init__(self, rng: np.random.Generator, height: int, width: int, unit: float) -> None:
        self.rng, self.height, self.width, self.unit = rng, height, width, unit
        self.colour = np.zeros((height, width, 3), np.float32)
        self.labels = np.zeros((height, width), np.uint8)
        self.horizon = height * rng.uniform(0.36, 0.56)
        self.vanish = width * rng.uniform(0.3, 0.7)
        # One field of smooth noise, looked up at different offsets, textures every surface.
        self.noise = _smooth_noise(rng, height, width, unit)
        self.sun = rng.uniform(-1, 1)
        self.haze = rng.uniform(0.05, 0.45)
        self.haze_colour = rng.uniform(0.7, 0.95) * np.array([1.0, rng.uniform(0.96, 1), rng.uniform(0.93, 1)])

    # -- painting -------------------------------------------------------------------------------------------------

    def paint(self, top: float, left: float, mask: NDArray[np.bool_], colour: Colour, label: int) -> None:
        """Put `mask` (h, w) at (top, left), clipped to the image.  colour: (3,) or (h, w, 3) in 0..1."""
        y, x = round(top), round(left)
        y0, x0 = max(y, 0), max(x, 0)
        y1, x1 = min(y + mask.shape[0], self.height), min(x + mask.shape[1], self.width)
        if y0 >= y1 or x0 >= x1:
            return
        inside = (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))
        here = mask[inside]
        values = colour[inside][here] if np.ndim(colour) == 3 else colour
        self.colour[y0:y1, x0:x1][here] = values
        self.labels[y0:y1, x0:x1][here] = label

    def shaded(self, base: Colour, h: int, w: int, strength: float, stripes: bool = False) -> Float:
        """(h, w, 3): `base` with texture and light from the side."""
        oy = int(self.rng.integers(0, max(1, self.height - h + 1))) if h < self.height else 0
        ox = int(self.rng.integers(0, max(1, self.width - w + 1))) if w < self.width else 0
        texture = np.resize(self.noise[oy : oy + h, ox : ox + w], (h, w)) if (h > self.height or w > self.width) else (
            self.noise[oy : oy + h, ox : ox + w])  # fmt: skip
        side = np.linspace(-1, 1, w, dtype=np.float32)[None] * self.sun * 0.15
        light = 1 + strength * texture + side
        if stripes:
            light = light * (1 - 0.12 * (np.arange(h) % max(2, h // 8) < max(1, h // 24)))[:, None]
        return (np.asarray(base, np.float32) * light[..., None]).astype(np.float32)

    def depth_scale(self, ground: float) -> float:
        """Pixels per metre-like unit for something that stands on row `ground`."""
        return max(0.0, ground - self.horizon) / 1.6

    # -- the world ------------------------------------------------------------------------------------------------

    def background(self) -> None:
        rng, height = self.rng, self.height
        rows = np.arange(height, dtype=np.float32)[:, None, None]
        sky = np.array([0.45, 0.62, 0.9]) * rng.uniform(0.7, 1.1) * (1 - 0.5 * rng.random() * np.array([0.2, 0.1, 0.4]))
        fade = np.clip(rows / max(1.0, self.horizon), 0, 1)
        cloud = np.clip(self.noise[..., None] * rng.uniform(0.5, 2.5) + rng.uniform(-0.6, 0.4), 0, 1)
        sky_colour = sky * (1 - fade) + self.haze_colour * fade
        self.colour[:] = sky_colour * (1 - 0.7 * cloud) + 0.92 * 0.7 * cloud
        self._ground()
        self._buildings()

    def _ground(self) -> None:
        rng, height, width = self.rng, self.height, self.width
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        depth = (y - self.horizon) / self.unit  # 0 at the horizon, about 0.5 at the bottom
        below = depth > 0
        lateral = (x - self.vanish) / self.unit / np.maximum(depth, 1e-3)  # constant along lines to the vanishing point
        left, right = -rng.uniform(0.9, 1.8), rng.uniform(0.9, 1.8)
        road = below & (lateral > left) & (lateral < right)
        asphalt = rng.uniform(0.22, 0.5) * (1 + 0.06 * rng.standard_normal(3))
        stones = rng.uniform(0.4, 0.72) * (1 + 0.08 * rng.standard_normal(3))
        grain = 1 + 0.25 * self.noise[..., None]
        self.colour[below] = (stones * grain)[below]
        self.labels[below] = PAVEMENT
        joints = below & ((np.floor(lateral * 5) + np.floor(0.35 / np.maximum(depth, 1e-3))) % 2 == 0)
        self.colour[joints & ~road] *= 0.93
        self.colour[road] = (asphalt * grain)[road]
        self.labels[road] = ROAD
        marking = (
            road & (np.abs(lateral - rng.uniform(-0.2, 0.2)) < 0.035) & (np.sin(1.2 / np.maximum(depth, 2e-2)) > 0)
        )
        self.colour[marking] = 0.85
        kerb = below & (np.minimum(np.abs(lateral - left), np.abs(lateral - right)) < 0.04)
        self.colour[kerb] *= 0.75
        if rng.random() < 0.6:  # shadow across the ground
            shadow = below & (np.abs(lateral - rng.uniform(-2, 2)) < rng.uniform(0.2, 0.9))
            self.colour[shadow] *= rng.uniform(0.55, 0.8)
        self.left, self.right = left, right

    def _buildings(self) -> None:
        rng = self.rng
        x = -rng.uniform(0, 0.2) * self.unit
        while x < self.width:
            w = rng.uniform(0.12, 0.45) * self.unit
            if rng.random() < 0.85:
                near = abs(x + w / 2 - self.vanish) / self.unit
                h = self.unit * (rng.uniform(0.12, 0.3) + 0.35 * min(near, 1.0) * rng.random())
                base = self.horizon + self.unit * rng.uniform(0.0, 0.02 + 0.05 * min(near, 1.2))
                self._facade(base - h, x, h, w, near)
            x += w * rng.uniform(0.75, 1.15)
        for _ in range(int(rng.integers(1, 5))):  # hedges and distant trees along the houses
            self._tree(rng.uniform(0, self.width), self.horizon + self.unit * rng.uniform(0.005, 0.04))

    def _facade(self, top: float, left: float, height: float, width: float, near: float) -> None:
        rng = self.rng
        h, w = max(2, int(height)), max(2, int(width))
        base = rng.uniform(0.3, 0.8) * np.clip(1 + 0.18 * rng.standard_normal(3), 0.6, 1.4)
        wall = self.shaded(base, h, w, 0.15, stripes=rng.random() < 0.4)
        rows, columns = int(rng.integers(2, 9)), int(rng.integers(2, 8))
        v = (np.arange(h) / h * rows) % 1
        u = (np.arange(w) / w * columns) % 1
        frame = rng.uniform(0.15, 0.3)
        windows = ((v > frame) & (v < 1 - frame))[:, None] & ((u > frame) & (u < 1 - frame))[None]
        wall[windows] = wall[windows] * 0.25 + np.array([0.25, 0.3, 0.36]) * rng.uniform(0.3, 1.6)
        if rng.random() < 0.3:  # a poster: a sign's colours, but part of the building
            ph, pw = max(1, h // 8), max(1, w // 5)
            py, px = int(rng.integers(0, h - ph + 1)), int(rng.integers(0, w - pw + 1))
            wall[py : py + ph, px : px + pw] = _vivid(rng)
        haze = self.haze * (1 - min(near, 1))
        hazy = wall * (1 - haze) + self.haze_colour * haze
        mask = np.ones((h, w), bool)
        if rng.random() < 0.4:  # gable
            slope = np.abs(np.arange(w) - w / 2) / (w / 2) * min(h / 3, w / 3)
            mask = np.arange(h)[:, None] >= slope[None]
        self.paint(top, left, mask, hazy.astype(np.float32), BUILDING)

    def objects(self) -> None:
        """Things that stand on the ground, far to near."""
        rng = self.rng
        span = max(1.0, (self.height - self.horizon))
        things = []
        density = self.width / self.unit
        for kind, rate in (
            (self._tree, 2.5),
            (self._pole, 4.0),
            (self._sign, 2.5),
            (self._car, 3.0),
            (self._person, 5.0),
        ):
            for _ in range(rng.poisson(rate * max(0.5, density))):
                things.append((self.horizon + span * rng.uniform(0.12, 1.0) ** 2.4, kind))
        for ground, kind in sorted(things, key=lambda thing: thing[0]):
            depth = (ground - self.horizon) / self.unit
            if kind == self._car:
                lateral = rng.uniform(self.left * 0.95, self.right * 0.95)
            elif rng.random() < 0.12 and kind == self._person:
                lateral = rng.uniform(self.left, self.right)
            else:
                side = self.left if rng.random() < 0.5 else self.right
                lateral = side * rng.uniform(1.05, 2.6)
            kind(self.vanish + lateral * depth * self.unit, ground)

    def _tree(self, x: float, ground: float) -> None:
        rng, scale = self.rng, self.depth_scale(ground) + 0.03 * self.unit
        height, radius = scale * rng.uniform(2.2, 4.5), scale * rng.uniform(0.7, 1.5)
        trunk_w = max(1, int(scale * rng.uniform(0.12, 0.25)))
        trunk = np.ones((max(1, int(height)), trunk_w), bool)
        self.paint(ground - height, x - trunk_w / 2, trunk, np.array([0.3, 0.22, 0.15]) * rng.uniform(0.6, 1.3), TREE)
        green = np.array([rng.uniform(0.15, 0.45), rng.uniform(0.35, 0.6), rng.uniform(0.08, 0.25)])
        for _ in range(6):
            r = max(1.0, radius * rng.uniform(0.5, 1.0))
            size = int(2.4 * r) + 1
            yy, xx = np.mgrid[0:size, 0:size] - size / 2
            angle = np.arctan2(yy, xx)
            edge = 1 + sum(0.07 * np.sin(k * angle + rng.uniform(0, 6.3)) for k in (3, 5, 9, 14))
            leaf = self.shaded(green * rng.uniform(0.7, 1.2), size, size, 0.6)
            cy, cx = ground - height + rng.uniform(-0.2, 0.5) * radius, x + rng.uniform(-0.7, 0.7) * radius
            self.paint(cy - size / 2, cx - size / 2, yy**2 + xx**2 < (r * edge) ** 2, leaf, TREE)

    def _pole(self, x: float, ground: float) -> None:
        rng, scale = self.rng, self.depth_scale(ground)
        height, width = scale * rng.uniform(2.5, 5), max(1, int(scale * rng.uniform(0.06, 0.14)))
        colour = rng.uniform(0.2, 0.6) * np.ones(3)
        self.paint(ground - height, x, np.ones((max(1, int(height)), width), bool),
                   self.shaded(colour, max(1, int(height)), width, 0.1), POLE)  # fmt: skip
        if rng.random() < 0.4:  # lamp arm
            arm = np.ones((max(1, width // 2), max(1, int(scale * 0.7))), bool)
            self.paint(ground - height, x - (arm.shape[1] if rng.random() < 0.5 else 0), arm, colour, POLE)

    def _sign(self, x: float, ground: float) -> None:
        rng, scale = self.rng, self.depth_scale(ground)
        height = scale * rng.uniform(1.7, 2.6)
        pole_w = max(1, int(scale * 0.07))
        self.paint(ground - height, x - pole_w / 2, np.ones((max(1, int(height)), pole_w), bool), np.full(3, 0.5), POLE)
        r = max(1.5, scale * rng.uniform(0.25, 0.45))
        size = int(2 * r) + 1
        yy, xx = np.abs(np.mgrid[0:size, 0:size] - r)
        shapes = (yy**2 + xx**2 <= r * r, np.ones((size, size), bool), yy + xx <= r * 1.2)
        shape = shapes[int(rng.integers(3))]
        face = np.broadcast_to(_vivid(rng), (size, size, 3)).astype(np.float32).copy()
        face[(yy < r * 0.55) & (xx < r * 0.55)] = (0.92, 0.92, 0.92) if rng.random() < 0.7 else _vivid(rng)
        self.paint(ground - height - r, x - r, shape, face, SIGN)

    def _car(self, x: float, ground: float) -> None:
        rng, scale = self.rng, self.depth_scale(ground)
        h, w = max(3, int(scale * rng.uniform(1.2, 1.6))), max(4, int(scale * rng.uniform(1.6, 3.6)))
        shadow = np.ones((max(1, h // 8), w), bool)
        y0, x0 = int(ground - shadow.shape[0] / 2), int(x - w / 2)
        region = self.colour[max(0, y0) : max(0, y0 + shadow.shape[0]), max(0, x0) : max(0, x0 + w)]
        region *= 0.45
        yy, xx = np.mgrid[0:h, 0:w]
        u, v = np.abs(xx / w - 0.5) * 2, yy / h
        cabin = (v < 0.5) & (u < 0.55 + 0.5 * v)
        body = (v >= 0.42) & (v < 0.9) & (u < 1 - 0.1 * (v > 0.8))
        paint = np.clip(_vivid(rng) if rng.random() < 0.5 else np.full(3, rng.uniform(0.05, 0.95)), 0.03, 1)
        face = self.shaded(paint, h, w, 0.08) * (1.15 - 0.35 * v[..., None])
        glass = cabin & (v > 0.1) & (v < 0.44) & (u < 0.5 + 0.4 * v)
        face[glass] = np.array([0.12, 0.15, 0.18]) * rng.uniform(0.6, 2)
        wheels = (v >= 0.75) & (np.abs(u - 0.68) < 0.2)
        face[wheels] = 0.06
        face[(v > 0.55) & (v < 0.66) & (u > 0.8)] = (0.9, 0.2, 0.15) if rng.random() < 0.5 else (0.95, 0.93, 0.8)
        self.paint(ground - h * 0.95, x - w / 2, cabin | body | wheels, face.astype(np.float32), CAR)

    def _person(self, x: float, ground: float) -> None:
        rng, scale = self.rng, self.depth_scale(ground)
        h = max(4, int(scale * rng.uniform(1.5, 1.9)))
        w = max(2, int(h * rng.uniform(0.26, 0.38)))
        yy, xx = np.mgrid[0:h, 0:w]
        u, v = np.abs(xx / max(1, w - 1) - 0.5) * 2, yy / h
        head = (v < 0.14) & (u < 0.45)
        torso = (v >= 0.14) & (v < 0.55) & (u < 0.95 - 0.3 * v)
        stride = rng.uniform(0, 0.5)
        legs = (v >= 0.55) & (u < 0.65) & (u > stride * (v - 0.55) * 1.5)
        face = np.empty((h, w, 3), np.float32)
        face[:] = self.shaded(_vivid(rng) * rng.uniform(0.4, 1), h, w, 0.1)
        face[legs] = rng.uniform(0.05, 0.4) * np.array([0.8, 0.9, 1.1])
        face[head] = np.array([0.85, 0.65, 0.5]) * rng.uniform(0.4, 1.1)
        self.paint(ground - h, x - w / 2, head | torso | legs, face, PERSON)

    # -- the camera -----------------------------------------------------------------------------------------------

    def finish(self) -> UInt8:
        """White balance, exposure, gamma, slight blur and sensor noise."""
        rng = self.rng
        image = np.clip(self.colour, 0, 1.2) * (1 + 0.06 * rng.standard_normal(3)).astype(np.float32)
        image *= rng.uniform(0.75, 1.15)
        image = np.clip(image, 0, 1) ** rng.uniform(0.8, 1.25)
        if rng.random() < 0.5:
            image = 0.5 * image + 0.25 * (np.roll(image, 1, 0) + np.roll(image, 1, 1))
        grain = rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(0.005, 0.03)
        return np.asarray(np.clip((image + grain) * 255 + 0.5, 0, 255), np.uint8)


def _vivid(rng: np.random.Generator) -> Colour:
    """A saturated colour."""
    hue = rng.uniform(0, 6)
    channel = np.clip(np.abs((hue + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    saturation = rng.uniform(0.6, 1)
    colour: Colour = (1 - saturation + saturation * channel) * rng.uniform(0.5, 1)
    return colour


def _smooth_noise(rng: np.random.Generator, height: int, width: int, unit: float) -> Float:
    """(H, W) float32 about -0.5..0.5: value noise over five octaves, the finest a few pixels wide."""
    total = np.zeros((height, width), np.float32)
    for octave in range(5):
        cell = max(2.0, unit / 3 / 2.6**octave)
        rows, columns = int(height / cell) + 2, int(width / cell) + 2
        grid = rng.random((rows, columns), dtype=np.float32) - 0.5
        y, x = np.arange(height, dtype=np.float32) / cell, np.arange(width, dtype=np.float32) / cell
        y0, x0 = y.astype(int), x.astype(int)
        fy, fx = (y - y0)[:, None], (x - x0)[None]
        top = grid[y0][:, x0] * (1 - fx) + grid[y0][:, x0 + 1] * fx
        bottom = grid[y0 + 1][:, x0] * (1 - fx) + grid[y0 + 1][:, x0 + 1] * fx
        total += (top * (1 - fy) + bottom * fy) * 0.62**octave
    return total
