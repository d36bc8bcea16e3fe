"""What every demo picture is made of: a surface with colour, height and gloss, and a lamp that lights it.

Lengths are pixels of the finished image with the origin in its middle. Drawing uses a finer grid, which smooths edges.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

SIZE = 256  # side of a finished image
GRID = 384  # side of the grid it is drawn on
STEP = SIZE / GRID

Colour = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Pose:
    """Where a part lies: its centre, its rotation in radians, and its scale."""

    x: float = 0.0
    y: float = 0.0
    angle: float = 0.0
    zoom: float = 1.0

    def at(self, u: float, v: float, turn: float = 0.0) -> "Pose":
        """Pose of a part that lies at (u, v) in this one's frame."""
        c, s = np.cos(self.angle) * self.zoom, np.sin(self.angle) * self.zoom
        return Pose(self.x + c * u - s * v, self.y + s * u + c * v, self.angle + turn, self.zoom)


@dataclass
class Surface:
    """Maps of one size, H x W: coordinates x and y, albedo (H x W x 3, RGB in 0..1), height in pixels, gloss in 0..1."""

    x: np.ndarray
    y: np.ndarray
    albedo: np.ndarray
    height: np.ndarray
    gloss: np.ndarray

    @classmethod
    def flat(cls, albedo: Colour, gloss: float = 0.0) -> "Surface":
        """A level surface of one colour, or of a GRID x GRID x 3 picture."""
        axis = (np.arange(GRID, dtype=np.float32) + 0.5) * STEP - SIZE / 2
        x, y = np.meshgrid(axis, axis)
        colour = np.broadcast_to(np.asarray(albedo, np.float32), (GRID, GRID, 3)).copy()
        return cls(x, y, colour, np.zeros_like(x), np.full_like(x, gloss))

    def near(self, pose: Pose, reach: float) -> tuple["Surface", np.ndarray, np.ndarray]:
        """The window within `reach` of a pose's centre, on which drawing draws here, and its coordinates in the pose's frame."""
        low = [int(np.clip((c - reach * pose.zoom) / STEP + GRID / 2, 0, GRID)) for c in (pose.x, pose.y)]
        high = [int(np.clip((c + reach * pose.zoom) / STEP + GRID / 2 + 1, 0, GRID)) for c in (pose.x, pose.y)]
        window = np.s_[low[1] : high[1], low[0] : high[0]]
        spot = Surface(self.x[window], self.y[window], self.albedo[window], self.height[window], self.gloss[window])
        return spot, *spot.local(pose)

    def local(self, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates of every pixel in the frame of a pose."""
        c, s = np.cos(pose.angle) / pose.zoom, np.sin(pose.angle) / pose.zoom
        dx, dy = self.x - np.float32(pose.x), self.y - np.float32(pose.y)
        return np.float32(c) * dx + np.float32(s) * dy, np.float32(c) * dy - np.float32(s) * dx

    def lay(
        self,
        alpha: np.ndarray,
        colour: Colour | None = None,
        height: float | np.ndarray | None = None,
        gloss: float | None = None,
    ) -> None:
        """Blend the surface towards new values by alpha (0..1); a property that is None stays unchanged."""
        rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
        if rows.size == 0:
            return
        window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]  # most objects are small: blend only there
        share = alpha[window].astype(np.float32)
        for layer, new in ((self.albedo, colour), (self.height, height), (self.gloss, gloss)):
            if new is not None:
                new = np.asarray(new, np.float32)
                new = new[window] if new.shape[:2] == alpha.shape else new
                layer[window] += (share[..., None] if layer.ndim == 3 else share) * (new - layer[window])


def shade(surface: Surface, rng: np.random.Generator) -> np.ndarray:
    """Picture of a surface under a random lamp, SIZE x SIZE x 3, RGB in 0..1: Lambert and Blinn-Phong with soft shadows."""
    azimuth, elevation = rng.uniform(-2.6, -1.8), rng.uniform(0.8, 1.05)
    ambient, falloff = rng.uniform(0.3, 0.45), rng.uniform(0.0, 0.08)  # light from everywhere; how it fades across the image
    flat = math.cos(elevation)
    lx, ly, lz = flat * math.cos(azimuth), flat * math.sin(azimuth), math.sin(elevation)
    slope_y, slope_x = np.gradient(surface.height, STEP)
    norm = 1 / np.sqrt(1 + slope_x**2 + slope_y**2)
    facing = np.maximum(norm * (lz - slope_x * lx - slope_y * ly), 0)
    glint = np.maximum(norm * (lz + 1 - slope_x * lx - slope_y * ly), 0) / math.hypot(lx, ly, lz + 1)
    open_sky = 1 - 0.75 * cast_shadow(surface.height, azimuth, elevation)
    fading = 1 + falloff * (surface.x * lx + surface.y * ly) / (SIZE / 2)
    diffuse = fading * (ambient + (1 - ambient) * facing / lz * open_sky)
    broad = np.square(np.square(np.square(glint)))  # the 8th power; squaring is much faster than a power
    specular = surface.gloss * open_sky * (0.3 * broad + 0.7 * np.square(np.square(np.square(broad))))
    picture = cv2.merge([surface.albedo[..., channel] * diffuse + specular for channel in range(3)])
    return np.clip(cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA), 0, 1)


def cast_shadow(height: np.ndarray, azimuth: float, elevation: float) -> np.ndarray:
    """Share of the lamp that is hidden from each point, 0..1. A coarse grid is enough: the lamp is wide, its shadows are soft."""
    coarse = cv2.resize(height, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    step, rise = STEP / 0.25, math.tan(elevation)
    hidden = np.zeros_like(coarse)
    for reach in range(1, 9):
        move = np.float32([[1, 0, -reach * math.cos(azimuth)], [0, 1, -reach * math.sin(azimuth)]])
        towards_lamp = cv2.warpAffine(coarse, move, coarse.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
        hidden = np.maximum(hidden, np.clip((towards_lamp - coarse - reach * step * rise) / 3, 0, 1))
    soft = cv2.GaussianBlur(hidden, (0, 0), 0.9)
    return cv2.resize(soft, height.shape[::-1], interpolation=cv2.INTER_LINEAR)


# --- shapes: signed distances in pixels, negative inside ---


def disc(u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    return np.sqrt(u * u + v * v) - np.float32(radius)


def box(u: np.ndarray, v: np.ndarray, half_width: float, half_height: float, corner: float = 0.0) -> np.ndarray:
    du, dv = np.abs(u) - np.float32(half_width - corner), np.abs(v) - np.float32(half_height - corner)
    return np.hypot(np.maximum(du, 0), np.maximum(dv, 0)) + np.minimum(np.maximum(du, dv), 0) - np.float32(corner)


def polygon(u: np.ndarray, v: np.ndarray, inradius: float, sides: int) -> np.ndarray:
    sector = np.float32(2 * np.pi / sides)
    angle = (np.arctan2(v, u) + sector / 2) % sector - sector / 2
    return np.sqrt(u * u + v * v) * np.cos(angle) - np.float32(inradius)


def cover(distance: np.ndarray, soft: float = 1.0) -> np.ndarray:
    """Share of each pixel inside a shape, its edge `soft` pixels wide."""
    return np.clip(0.5 - distance / np.float32(soft), 0, 1)


def rounded(distance: np.ndarray, width: float) -> np.ndarray:
    """Quarter-round edge: 0 outside the shape, 1 from `width` inside on."""
    inside = 1 - np.clip(-distance / np.float32(width), 0, 1)
    return np.sqrt(np.maximum(1 - inside * inside, 0))


# --- randomness and lines ---


def noise(rng: np.random.Generator, scale: float, octaves: int = 1, stretch: float = 1.0) -> np.ndarray:
    """Smooth noise of about unit deviation, GRID x GRID; features `scale` pixels wide and `stretch` times as long along x."""
    total = np.zeros((GRID, GRID), np.float32)
    for octave in range(octaves):
        cells = [max(4, int(SIZE * 2**octave / s) + 3) for s in (scale, scale * stretch)]
        coarse = rng.standard_normal(cells, dtype=np.float32)
        total += 0.55**octave * cv2.resize(coarse, (GRID, GRID), interpolation=cv2.INTER_CUBIC)
    return total * np.float32(1.3 / np.sqrt(sum(0.3**octave for octave in range(octaves))))


def stroke(points: np.ndarray, width: float) -> np.ndarray:
    """Alpha (GRID x GRID) of a line through the points, N x 2."""
    canvas = np.zeros((GRID, GRID), np.uint8)
    fixed_point = np.round((np.asarray(points) / STEP + GRID / 2 - 0.5) * 16).astype(np.int32)
    cv2.polylines(canvas, [fixed_point], False, 255, max(1, round(width / STEP)), cv2.LINE_AA, 4)
    return canvas.astype(np.float32) / 255


def lettering(text: str, pose: Pose, height: float, width: float = 1.5) -> np.ndarray:
    """Alpha (GRID x GRID) of a line of text centred on a pose."""
    scale = 4 * height / 22
    (length, tall), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    canvas = np.zeros((tall + 40, length + 40), np.uint8)
    cv2.putText(canvas, text, (20, tall + 20), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, max(1, round(4 * width)), cv2.LINE_AA)
    c, s = np.cos(pose.angle) * pose.zoom / (4 * STEP), np.sin(pose.angle) * pose.zoom / (4 * STEP)
    mid_x, mid_y = canvas.shape[1] / 2, canvas.shape[0] / 2
    to_x, to_y = pose.x / STEP + GRID / 2, pose.y / STEP + GRID / 2
    matrix = np.float32([[c, -s, to_x - c * mid_x + s * mid_y], [s, c, to_y - s * mid_x - c * mid_y]])
    drawn = cv2.warpAffine(cv2.GaussianBlur(canvas, (0, 0), 1.5), matrix, (GRID, GRID))
    return drawn.astype(np.float32) / 255
