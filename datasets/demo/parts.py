"""Two single parts, drawn: a steel nut on a wooden bench and a two-coloured capsule."""

from __future__ import annotations

import numpy as np

from datasets.demo.flaws import Flaw, blob, crack, dent, scratch, wander
from datasets.demo.surface import Pose, Surface, cover, disc, lettering, noise, polygon, rounded, stick
from datasets.demo.textures import cut, photo

APOTHEM, BORE, CREST = 80.0, 36.0, 47.0  # of the nut: flat to middle, thread's inner radius, thread's outer radius


def nut(rng: np.random.Generator, flaw: Flaw | None) -> Surface:
    """A hexagonal steel nut. Flaws: scratch, rust, chip (a corner broken off)."""
    wood = cut(rng, photo("coffee.png")[:330, 488:], (0.42, 0.44), 0, 0.03)
    surface = Surface.flat(wood * 0.85)
    pose = Pose(rng.uniform(-7, 7), rng.uniform(-7, 7), rng.uniform(-0.2, 0.2), rng.uniform(0.96, 1.03))
    u, v = surface.local(pose)
    radius, turn = np.hypot(u, v), np.arctan2(v, u)
    hexagon = polygon(u, v, APOTHEM, 6)
    if flaw is not None and flaw.kind == "chip":
        corner = np.pi / 3 * flaw.rng.integers(6) + np.pi / 6
        bite = disc(u - np.float32(97 * np.cos(corner)), v - np.float32(97 * np.sin(corner)), flaw.between(13, 32))
        hexagon = np.maximum(hexagon, -bite + 1.3 * noise(flaw.rng, 12))
    body = np.maximum(hexagon, BORE - radius)
    # Turned on a lathe: fine grooves that run around the bore, and a slow play of tone from sector to sector.
    grooves = np.interp(radius, np.arange(0, 140, 0.7), rng.normal(0, 1, 200)).astype(np.float32)
    tone = rng.uniform(0.50, 0.60) + 0.015 * grooves + 0.02 * noise(rng, 30, octaves=3)
    tone += 0.05 * np.cos(2 * turn + np.float32(rng.uniform(0, 6.3)))
    zinc = np.float32([1.0, 0.99, 0.95 + rng.uniform(-0.05, 0.06)])
    metal = cover(body)
    thread = np.clip((CREST - radius) / (CREST - BORE), 0, 1)
    ridge = np.cos(2 * np.pi * (thread * 3 - turn / np.float32(2 * np.pi)))
    height = 15 * rounded(hexagon, 5) - 0.55 * np.maximum(radius - APOTHEM + 1, 0) - thread * 5 + ridge * (thread > 0) * 1.3
    surface.lay(metal, colour=(tone * (1 - 0.45 * thread))[..., None] * zinc, height=height + 0.07 * grooves, gloss=0.5)
    surface.lay(cover(radius - BORE) * np.float32(0.55), colour=(0.05, 0.04, 0.04))
    if flaw is not None and flaw.kind != "chip":
        worn_steel(surface, flaw, pose, metal * (radius > CREST))
    return surface


def worn_steel(surface: Surface, flaw: Flaw, pose: Pose, metal: np.ndarray) -> None:
    """Scratches or rust on the face of the nut."""
    angle, reach = flaw.rng.uniform(0, 2 * np.pi), flaw.rng.uniform(55, 74)
    spot = pose.at(reach * np.cos(angle), reach * np.sin(angle), flaw.rng.uniform(0, np.pi))
    if flaw.kind == "scratch":
        for _ in range(1 + int(flaw.between(0, 3))):
            line = wander(flaw, spot, flaw.between(24, 62), 0.08)
            scratch(surface, line + flaw.rng.uniform(-6, 6, 2), flaw.between(0.8, 1.8), flaw.between(0.5, 1.0), metal)
        return
    alpha = blob(flaw, surface, spot, flaw.between(10, 21), 8, flaw.rng.uniform(1, 2)) * metal
    bloom = np.clip(0.85 + 0.3 * noise(flaw.rng, 5, octaves=3), 0.2, 1) * np.float32(flaw.between(0.4, 0.95))
    crust = np.float32([0.42, 0.25, 0.15]) * (1 + 0.2 * noise(flaw.rng, 4, octaves=2)[..., None])
    surface.lay(alpha * bloom, colour=crust, gloss=0.05)


def tray(rng: np.random.Generator) -> Surface:
    """Perforated sheet steel over a dark gap."""
    sheet = 0.62 + 0.012 * noise(rng, 2.5, octaves=2, stretch=6) + 0.015 * noise(rng, 50, octaves=2)
    surface = Surface.flat(sheet[..., None] * np.float32([0.97, 0.99, 1.0]), gloss=0.1)
    u, v = surface.local(Pose(rng.uniform(-3, 3), rng.uniform(-3, 3), rng.uniform(-0.02, 0.02)))
    row = np.round(v / 19)
    across = u - 11 * (row % 2)  # every other row is shifted by half a pitch
    hole = disc(across - 22 * np.round(across / 22), v - 19 * row, 6)
    surface.lay(cover(hole, 1.5), colour=(0.16, 0.17, 0.18), gloss=0.0)
    surface.height -= 3 * rounded(hole, 2)
    return surface


def capsule(rng: np.random.Generator, flaw: Flaw | None) -> Surface:
    """A hard capsule, dark cap on an ochre body, with its strength printed on. Flaws: crack, dent, print."""
    surface = tray(rng)
    pose = Pose(rng.uniform(-7, 7), rng.uniform(-8, 8), rng.uniform(-0.1, 0.1), rng.uniform(0.95, 1.04))
    u, v = surface.local(pose)
    seam = np.float32(rng.uniform(-6, 6))
    body, cap = stick(u, v, 62, 38), np.maximum(stick(u, v, 62, 39.5), seam - u)
    shell = 1 + 0.02 * noise(rng, 14, octaves=3)[..., None]
    ochre = np.float32([0.80, 0.50, 0.15]) * (1 + rng.uniform(-0.05, 0.05)) * shell
    wine = np.float32([0.33, 0.09, 0.10]) * (1 + rng.uniform(-0.1, 0.1)) * shell
    surface.lay(cover(body), colour=ochre, height=np.sqrt(np.maximum(-body * (76 + body), 0)), gloss=0.55)
    surface.lay(cover(cap), colour=wine, height=np.sqrt(np.maximum(-(body - 1.5) * (77.5 + body), 0)), gloss=0.6)
    number, unit = pose.at(seam + 46, 0), pose.at(seam - 45, 0)
    worn = np.zeros_like(u)
    if flaw is not None and flaw.kind == "print":
        worn = np.clip(0.5 + 1.5 * (noise(flaw.rng, 14, octaves=2) + np.float32(flaw.between(-0.8, 0.8))), 0, 1)
        number = number.at(*(flaw.between(0, 6) * flaw.rng.normal(size=2)), flaw.rng.normal(0, 0.2))
    surface.lay(lettering("500", number, 20, 2.6) * (1 - worn) * np.float32(0.85), colour=(0.90, 0.86, 0.82))
    surface.lay(lettering("mg", unit, 17, 2.2) * np.float32(0.8), colour=(0.25, 0.10, 0.07))
    if flaw is not None and flaw.kind != "print":
        spot = pose.at(flaw.rng.uniform(-75, 75), flaw.rng.uniform(-22, 22), flaw.rng.uniform(0, np.pi))
        if flaw.kind == "crack":
            line = wander(flaw, spot, flaw.between(24, 64), 0.3)
            crack(surface, line, flaw.between(1.0, 2.0), flaw.between(0.6, 1.6), (0.95, 0.88, 0.78), flaw.between(0.5, 0.9))
        else:
            hollow = blob(flaw, surface, spot, flaw.between(10, 18), 4, flaw.rng.uniform(1, 1.6))
            dent(surface, hollow * cover(body), flaw.between(2.6, 5.5))
    return surface
