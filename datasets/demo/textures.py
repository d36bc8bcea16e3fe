"""Three textures cut from photographs that the scikit-image package contains, free of copyright restrictions."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from datasets.demo.flaws import Flaw, blob, crack, stain, wander
from datasets.demo.surface import GRID, SIZE, STEP, Pose, Surface, cover, disc, noise, polygon, rounded
from utils.errors import UserError

# Centre (x, y) and radius of some coins in coins.png, in its pixels.
COINS = [(155, 51, 22), (216, 51, 21), (46, 124, 20), (206, 125, 18), (337, 125, 18), (212, 193, 20), (102, 195, 20)]


@cache
def photo(name: str) -> np.ndarray:
    """A photograph of scikit-image, H x W x 3, RGB in 0..1. UserError if the package or the file is missing."""
    package = find_spec("skimage")
    folder = Path(package.origin).parent / "data" if package and package.origin else None
    picture = cv2.imread(str(folder / name), cv2.IMREAD_COLOR) if folder else None
    if picture is None:
        raise UserError(f"the demo set needs scikit-image's photograph {name}: pip install -r requirements.txt")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB).astype(np.float32) / 255


def cut(rng: np.random.Generator, source: np.ndarray, zoom: tuple[float, float], turn: float, swing: float) -> np.ndarray:
    """A random window of a photograph, GRID x GRID x 3. `zoom`: source pixels per pixel; rotation `turn` +- `swing` (radians)."""
    tall, wide = source.shape[:2]
    angle, scale = turn + rng.uniform(-swing, swing), rng.uniform(*zoom)
    # Half the side of the upright box around the turned window; the photograph is mirrored beyond its edges.
    half = scale * SIZE / 2 * (abs(np.cos(angle)) + abs(np.sin(angle)))
    x, y = (
        c if high <= low else rng.uniform(low, high)
        for c, low, high in ((wide / 2, half, wide - half), (tall / 2, half, tall - half))
    )
    c, s, mid = np.cos(angle) * scale * STEP, np.sin(angle) * scale * STEP, (GRID - 1) / 2
    matrix = np.float32([[c, -s, x - c * mid + s * mid], [s, c, y - s * mid - c * mid]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(source, matrix, (GRID, GRID), flags=flags, borderMode=cv2.BORDER_REFLECT)


def ramp(tone: np.ndarray, stops: list[tuple[float, tuple[float, float, float]]]) -> np.ndarray:
    """Colour of a grey picture: linear between (grey, colour) stops."""
    greys, colours = zip(*stops, strict=True)
    return np.stack([np.interp(tone, greys, channel) for channel in zip(*colours, strict=True)], -1).astype(np.float32)


def brick(rng: np.random.Generator, flaw: Flaw | None) -> Surface:
    """Paving bricks with light joints. Flaws: crack, stain (damp or salt), smear (mortar over bricks and joints)."""
    tone = cut(rng, photo("brick.png"), (0.72, 0.85), np.pi / 2, 0.05)[..., 0]
    stops = [(0.28, (0.22, 0.13, 0.10)), (0.38, (0.55, 0.30, 0.22)), (0.44, (0.63, 0.38, 0.29)), (0.75, (0.83, 0.78, 0.71))]
    firing = 1 + 0.05 * noise(rng, 60, octaves=2)[..., None] * np.float32([1, 0.8, 0.7])
    surface = Surface.flat(ramp(tone, stops) * firing)
    if flaw is None:
        return surface
    pose = flaw.place(85)
    if flaw.kind == "crack":
        line = wander(flaw, pose, flaw.rng.uniform(80, 150), 0.45)
        crack(surface, line, flaw.between(1.2, 3.0), flaw.between(0.5, 2.0), (0.17, 0.12, 0.10), flaw.between(0.6, 0.95))
    elif flaw.kind == "stain":
        alpha = blob(flaw, surface, pose, flaw.rng.uniform(22, 42), 8, 1.8)
        if flaw.rng.random() < 0.5:  # damp
            stain(surface, alpha, (0.40, 0.38, 0.40), flaw.between(0.6, 1.0))
        else:
            surface.lay(alpha * np.float32(flaw.between(0.45, 0.85)), colour=(0.80, 0.76, 0.72))
    else:
        alpha = blob(flaw, surface, pose, flaw.rng.uniform(20, 38), 3, 2)
        grain = 1 + 0.05 * noise(flaw.rng, 5, octaves=3)[..., None]
        surface.lay(alpha * np.float32(flaw.between(0.6, 0.97)), colour=np.float32([0.66, 0.60, 0.53]) * grain)
    return surface


def gravel(rng: np.random.Generator, flaw: Flaw | None) -> Surface:
    """A pan of grey stone chippings. Flaws: sand (a patch of fines), oil, chip (a piece of wood lying on top)."""
    tone = cut(rng, photo("gravel.png"), (1.26, 1.32), 0, 0.06)[..., 0]
    warmth = np.float32([1.02 + rng.uniform(-0.02, 0.02), 1, 0.97 + rng.uniform(-0.02, 0.02)])
    mineral = 1 + 0.04 * noise(rng, 9)[..., None] * np.float32([1, 0, -1])
    surface = Surface.flat((0.08 + 0.85 * tone[..., None]) * warmth * mineral)
    if flaw is not None:
        pose = flaw.place(60)
        if flaw.kind == "sand":
            alpha = blob(flaw, surface, pose, flaw.rng.uniform(18, 38), 7, 1.8)
            grain = 1 + 0.05 * noise(flaw.rng, 2.2, octaves=2)[..., None]
            surface.lay(alpha * np.float32(flaw.between(0.72, 0.98)), colour=np.float32([0.60, 0.49, 0.34]) * grain)
        elif flaw.kind == "oil":
            alpha = blob(flaw, surface, pose, flaw.rng.uniform(17, 36), 6, 1.6)
            stain(surface, alpha, (0.24, 0.21, 0.17), flaw.between(0.5, 0.95))
        else:
            wooden_chip(surface, flaw, pose)
    pan(surface, rng)
    return surface


def pan(surface: Surface, rng: np.random.Generator) -> None:
    """The rim of a round steel pan; a rubber mat covers everything outside it."""
    middle = Pose(rng.uniform(-3, 3), rng.uniform(-3, 3))
    u, v = surface.local(middle)
    mat = 0.25 + 0.02 * noise(rng, 2.5, octaves=2)
    rim = np.abs(disc(u, v, 115)) - 7
    surface.lay(1 - cover(disc(u, v, 115)), colour=mat[..., None] * np.float32([0.95, 1.0, 1.0]), height=-8)
    surface.lay(cover(rim), colour=np.float32([0.60, 0.61, 0.62]), height=9 * rounded(rim, 7), gloss=0.4)


def wooden_chip(surface: Surface, flaw: Flaw, pose: Pose) -> None:
    """A flat splinter of wood; subtle ones are small and as grey as the stones."""
    u, v = surface.local(pose)
    size = flaw.between(8, 16)
    shape = polygon(u / np.float32(flaw.rng.uniform(1.3, 2.6)), v, size, int(flaw.rng.integers(4, 6)))
    shape += 1.2 * noise(flaw.rng, 9, octaves=2)
    wood = cut(flaw.rng, photo("coffee.png")[:390, 490:], (0.5, 0.7), 0, 0.3)
    grey = wood.mean(axis=2, keepdims=True) + np.float32([0.16, 0.12, 0.08])
    surface.lay(cover(shape), colour=grey + np.float32(flaw.between(0.25, 0.9)) * (wood - grey))
    surface.height += 4 * rounded(shape, 2.5)


def grass(rng: np.random.Generator, flaw: Flaw | None) -> Surface:
    """A lawn from above. Flaws: bare (soil), dry (straw-coloured blades), coin."""
    tone = cut(rng, photo("grass.png"), (1.65, 1.75), rng.integers(2) * np.pi, 0.06)[..., 0]
    stops = [(0.0, (0.10, 0.16, 0.06)), (0.45, (0.31, 0.43, 0.19)), (0.8, (0.60, 0.70, 0.40)), (1.0, (0.80, 0.85, 0.66))]
    growth = 1 + 0.03 * noise(rng, 70, octaves=2)[..., None] * np.float32([1, 0.4, 0.6])
    surface = Surface.flat(ramp(tone, stops) * growth)
    if flaw is None:
        return surface
    pose = flaw.place(85)
    if flaw.kind == "bare":
        alpha = blob(flaw, surface, pose, flaw.rng.uniform(17, 38), 7, 1.8)
        crumbs = 1 + 0.16 * noise(flaw.rng, 6, octaves=3)[..., None]
        surface.lay(alpha * np.float32(flaw.between(0.6, 0.97)), colour=np.float32([0.36, 0.28, 0.20]) * crumbs)
    elif flaw.kind == "dry":
        alpha = blob(flaw, surface, pose, flaw.rng.uniform(22, 44), 9, 1.6)
        stain(surface, alpha, (2.0, 1.3, 0.9), flaw.between(0.65, 1.0))
    else:
        lost_coin(surface, flaw, pose)
    return surface


def lost_coin(surface: Surface, flaw: Flaw, pose: Pose) -> None:
    """An old coin among the blades; subtle ones are small, dark and half overgrown."""
    left, top, reach = COINS[int(flaw.rng.integers(len(COINS)))]
    u, v = surface.local(pose)
    radius = flaw.between(12, 19)
    per_pixel = np.float32(reach / radius)
    face = cv2.remap(photo("coins.png"), left + u * per_pixel, top + v * per_pixel, cv2.INTER_LINEAR)
    blades = np.clip(0.5 + (0.9 - 1.6 * flaw.strength) * noise(flaw.rng, 3.5, octaves=2), 0, 1) * np.float32(0.9)
    shape = disc(u, v, radius * 0.95)
    surface.lay(cover(shape) * (1 - blades), colour=face * np.float32([0.84, 0.76, 0.58]) * flaw.between(0.7, 1.1))
    surface.height += np.float32(flaw.between(0.5, 2.0)) * rounded(shape, 2)
