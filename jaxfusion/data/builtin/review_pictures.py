"""The pictures of the restaurant reviews: some tell whether the guest was pleased, some tell nothing.

Each is drawn larger than needed and averaged down, so that edges are smooth. Colours, place and size vary.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

SIDE = 48
OVERSAMPLING = 4
CHINA = [(250, 250, 246), (222, 236, 246), (250, 236, 214), (232, 244, 232)]
INK = (52, 40, 36)
GOLD = (250, 190, 30)

Colour = tuple[int, int, int]
Point = tuple[float, float]


class Canvas:
    """A picture drawn in units of the subject: its middle is (0, 0), x goes right, y goes down, and it reaches to 1."""

    def __init__(self, rng: np.random.Generator):
        side = SIDE * OVERSAMPLING
        self.rng = rng
        self.image = Image.new("RGB", (side, side))
        self.draw = ImageDraw.Draw(self.image)
        self.radius = side * rng.uniform(0.34, 0.42)
        self.middle = side / 2 + rng.uniform(-1, 1, size=2) * (side / 2 - self.radius) * 0.8

    def at(self, points: Sequence[Point]) -> list[Point]:
        return [(self.middle[0] + x * self.radius, self.middle[1] + y * self.radius) for x, y in points]

    def ellipse(self, x: float, y: float, width: float, height: float, fill: Colour) -> None:
        self.draw.ellipse(self.at([(x - width, y - height), (x + width, y + height)]), fill=fill)

    def polygon(self, points: Sequence[Point], fill: Colour) -> None:
        self.draw.polygon(self.at(points), fill=fill)

    def line(self, points: Sequence[Point], width: float, fill: Colour) -> None:
        self.draw.line(self.at(points), fill=fill, width=round(width * self.radius), joint="curve")

    def arc(self, x: float, y: float, width: float, height: float, start: int, end: int, thick: float, fill: Colour):
        box = self.at([(x - width, y - height), (x + width, y + height)])
        self.draw.arc(box, start, end, fill=fill, width=round(thick * self.radius))

    def box(self, left: float, top: float, right: float, bottom: float, fill: Colour) -> None:
        self.draw.rectangle(self.at([(left, top), (right, bottom)]), fill=fill)

    def shade(self, colour: Colour, spread: int = 14) -> Colour:
        """Return the colour, a little lighter, darker or otherwise tinted."""
        return tuple((np.array(colour) + self.rng.integers(-spread, spread + 1, size=3)).clip(0, 255).tolist())

    def pick(self, colours: Sequence[Colour]) -> Colour:
        return self.shade(colours[self.rng.integers(len(colours))])

    def wall(self) -> None:
        self.box(-9, -9, 9, 9, self.pick([(186, 214, 232), (240, 214, 190), (204, 226, 196), (226, 204, 230)]))

    def table(self) -> None:
        self.wall()
        self.box(-9, self.rng.uniform(-0.5, 0.0), 9, 9, self.pick([(164, 112, 70), (128, 84, 56), (190, 144, 96)]))


def smiling_face(c: Canvas) -> None:
    _face(c)
    c.arc(0, 0.08, 0.56, 0.56, 15, 165, 0.15, INK)
    for side in (-1, 1):
        c.ellipse(side * 0.62, 0.2, 0.15, 0.11, (244, 132, 110))


def crying_face(c: Canvas) -> None:
    _face(c)
    c.arc(0, 0.85, 0.5, 0.5, 205, 335, 0.15, INK)
    for side in (-1, 1):
        c.polygon([(side * 0.38, -0.02), (side * 0.38 - 0.15, 0.5), (side * 0.38 + 0.15, 0.5)], (64, 150, 236))
        c.ellipse(side * 0.38, 0.52, 0.16, 0.17, (64, 150, 236))


def _face(c: Canvas) -> None:
    c.wall()
    c.ellipse(0, 0, 1, 1, c.shade((226, 160, 40)))
    c.ellipse(0, 0, 0.92, 0.92, c.shade((252, 208, 72)))
    for side in (-1, 1):
        c.ellipse(side * 0.36, -0.26, 0.12, 0.19, INK)


def steaming_noodles(c: Canvas) -> None:
    c.table()
    for x in (-0.45, 0.0, 0.45):
        c.line([(x, -0.35), (x + 0.14, -0.55), (x - 0.1, -0.75), (x + 0.06, -1.0)], 0.1, (252, 252, 252))
    _bowl(c, c.shade((226, 150, 60)))
    noodle = c.shade((252, 226, 140))
    for x in (-0.55, -0.25, 0.05, 0.35):
        c.arc(x + 0.1, 0.02, 0.3, 0.2, 180, 360, 0.09, noodle)
    c.ellipse(0.42, -0.02, 0.27, 0.15, (255, 255, 255))
    c.ellipse(0.42, -0.02, 0.14, 0.09, (250, 170, 20))
    for x, y in ((-0.5, 0.06), (-0.2, -0.1), (0.05, 0.1)):
        c.ellipse(x, y, 0.09, 0.06, (60, 160, 60))


def fly_in_the_soup(c: Canvas) -> None:
    c.table()
    _bowl(c, c.shade((176, 178, 120)))
    x, y = c.rng.uniform(-0.25, 0.25), 0.06
    for side in (-1, 1):
        c.line([(x, y), (x + side * 0.34, y + 0.17)], 0.06, INK)
        c.line([(x, y), (x + side * 0.36, y - 0.02)], 0.06, INK)
        c.ellipse(x + side * 0.17, y - 0.13, 0.16, 0.1, (236, 240, 246))
    c.ellipse(x, y, 0.13, 0.2, (24, 22, 26))
    c.ellipse(x, y - 0.2, 0.1, 0.09, (170, 30, 30))


def _bowl(c: Canvas, soup: Colour) -> None:
    china, rim = c.pick([(206, 62, 52), (60, 104, 176), (240, 240, 236)]), c.shade((250, 248, 240), 4)
    c.ellipse(0, 0.88, 0.45, 0.12, c.shade((96, 66, 44)))
    c.draw.chord([*c.at([(-0.95, -0.95)]), *c.at([(0.95, 0.95)])], 0, 180, fill=china)
    c.ellipse(0, 0, 0.97, 0.3, rim)
    c.ellipse(0, 0.01, 0.86, 0.23, soup)


def five_stars(c: Canvas) -> None:
    _stars(c, 5)


def one_star(c: Canvas) -> None:
    _stars(c, 1)


def _stars(c: Canvas, count: int) -> None:
    c.wall()
    c.box(-1.0, -0.72, 1.0, 0.72, c.shade((60, 58, 66)))
    for i, (x, y) in enumerate([(-0.62, -0.32), (0, -0.32), (0.62, -0.32), (-0.32, 0.34), (0.32, 0.34)]):
        angles = np.pi * (np.arange(10) / 5 - 0.5)
        reach = np.where(np.arange(10) % 2, 0.13, 0.31)
        points = list(zip(x + reach * np.cos(angles), y + reach * np.sin(angles), strict=True))
        c.polygon(points, GOLD if i < count else (112, 110, 118))


def empty_plate(c: Canvas) -> None:
    c.wall()
    c.box(-9, -9, 9, 9, c.pick([(164, 112, 70), (128, 84, 56), (96, 132, 120), (150, 60, 60)]))
    china = c.pick(CHINA)
    c.ellipse(0, 0, 0.8, 0.8, tuple(v - 30 for v in china))
    c.ellipse(0, -0.03, 0.77, 0.77, china)
    c.ellipse(0, 0, 0.5, 0.5, tuple(v - 14 for v in china))
    for x in (0.92, 1.06):
        c.line([(x, -0.85), (x + 0.04, 0.85)], 0.07, c.shade((226, 190, 130)))


def shop_front(c: Canvas) -> None:
    c.wall()
    c.box(-9, 0.85, 9, 9, c.shade((140, 140, 144)))
    c.box(-0.95, -0.75, 0.95, 0.9, c.pick([(206, 120, 90), (226, 206, 170), (130, 150, 170)]))
    c.box(-0.75, 0.0, -0.02, 0.6, (250, 236, 170))
    c.box(0.2, -0.05, 0.7, 0.9, c.shade((94, 64, 46)))
    c.box(-0.7, -0.98, 0.7, -0.62, c.shade((70, 60, 64)))
    awning = c.pick([(190, 52, 48), (52, 120, 84), (44, 86, 150)])
    for i in range(8):
        left = -1.04 + i * 0.26
        c.box(left, -0.5, left + 0.26, -0.2, awning if i % 2 else (246, 244, 240))


def tea_cup(c: Canvas) -> None:
    c.table()
    china = c.pick(CHINA)
    c.ellipse(0, 0.72, 0.95, 0.2, tuple(v - 36 for v in china))
    c.ellipse(0, 0.68, 0.9, 0.17, tuple(v - 12 for v in china))
    c.arc(0.66, 0.1, 0.3, 0.28, 270, 90, 0.12, tuple(v - 20 for v in china))
    c.polygon([(-0.66, -0.25), (0.66, -0.25), (0.42, 0.68), (-0.42, 0.68)], china)
    c.ellipse(0, -0.25, 0.66, 0.17, tuple(v - 24 for v in china))
    c.ellipse(0, -0.23, 0.57, 0.12, c.pick([(150, 96, 40), (120, 150, 60)]))


def menu(c: Canvas) -> None:
    c.table()
    c.box(-0.68, -0.98, 0.68, 0.98, c.pick([(130, 32, 36), (36, 70, 60), (40, 50, 90)]))
    c.box(-0.56, -0.86, 0.56, 0.86, c.shade((250, 242, 222), 5))
    c.box(-0.3, -0.74, 0.3, -0.54, c.shade((170, 50, 44)))
    for y in np.arange(-0.36, 0.8, 0.24):
        c.box(-0.44, y, c.rng.uniform(0.0, 0.2), y + 0.09, (110, 100, 96))
        c.box(0.3, y, 0.44, y + 0.09, (110, 100, 96))


PICTURES: dict[str, tuple[Callable[[Canvas], None], ...]] = {
    "pleased": (smiling_face, steaming_noodles, five_stars),
    "displeased": (crying_face, fly_in_the_soup, one_star),
    "neutral": (empty_plate, shop_front, tea_cup, menu),
}


def draw_picture(mood: str, rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
    """Draw one of the pictures of a mood: `pleased`, `displeased` or `neutral` (which says nothing either way)."""
    kinds = PICTURES[mood]
    canvas = Canvas(rng)
    kinds[rng.integers(len(kinds))](canvas)
    return np.array(canvas.image.reduce(OVERSAMPLING))
