"""Four objects, drawn from nothing: a steel nut, a two-coloured capsule, the cut end of a cable and a circuit board."""

import cv2
import numpy as np

from datasets.demo.flaws import Flaw, blob, crack, scratch, wander
from datasets.demo.surface import Pose, Surface, box, cover, disc, lettering, noise, polygon, rounded, stroke
from datasets.demo.textures import cut, photo

APOTHEM, BORE, CREST = 80.0, 36.0, 47.0  # of the nut: middle to flat, inner and outer radius of the thread


def polar(radius: float, angle: float) -> tuple[float, float]:
    return radius * np.cos(angle), radius * np.sin(angle)


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
    # Turned on a lathe: fine grooves around the bore, and a tone that changes slowly with the angle.
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
    spot = pose.at(*polar(reach, angle), flaw.rng.uniform(0, np.pi))
    if flaw.kind == "scratch":
        for _ in range(1 + int(flaw.between(0, 3))):
            line = wander(flaw, spot, flaw.between(24, 62), 0.08)
            scratch(surface, line + flaw.rng.uniform(-6, 6, 2), flaw.between(0.8, 1.8), flaw.between(0.5, 1.0), metal)
        return
    alpha = blob(flaw, surface, spot, flaw.between(10, 21), 8, 2) * metal
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
    body, cap = box(u, v, 100, 38, 38), np.maximum(box(u, v, 101.5, 39.5, 39.5), seam - u)
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
            hollow = blob(flaw, surface, spot, flaw.between(10, 18), 4, 1.6)
            slope = cv2.GaussianBlur(hollow * cover(body), (0, 0), 4.5)
            surface.height -= np.float32(flaw.between(2.6, 5.5)) * slope
    return surface


WIRES = [(0.16, 0.42, 0.20), (0.15, 0.27, 0.52), (0.42, 0.22, 0.13)]  # green, blue, brown
WRONG = [(0.50, 0.45, 0.12), (0.45, 0.16, 0.30), (0.30, 0.30, 0.32)]  # yellow, purple, grey
# Strands of a core as rings of (count, radius in strand diameters).
RINGS = [(1, 0.0), (6, 1.0), (12, 1.95)]
SEATS = [(ring, 2 * np.pi * k / count) for count, ring in RINGS for k in range(count)]


def cable(rng: np.random.Generator, flaw: Flaw | None) -> Surface:
    """The sawn end of a cable. Flaws: strands (some or all missing), insulation (wrong colour), cut (into the sheath)."""
    cloth = 0.30 + 0.02 * noise(rng, 2.5, octaves=2, stretch=2) + 0.015 * noise(rng, 60, octaves=2)
    surface = Surface.flat(cloth[..., None] * np.float32([0.92, 0.98, 1.05]))
    pose = Pose(rng.uniform(-6, 6), rng.uniform(-6, 6), rng.uniform(-0.3, 0.3), rng.uniform(0.96, 1.04))
    u, v = surface.local(pose)
    oval = disc(u * np.float32(rng.uniform(0.98, 1.02)), v * np.float32(rng.uniform(0.98, 1.02)), 108)
    sawn = 1 + 0.025 * noise(rng, 2.5, octaves=2, stretch=12) + 0.03 * noise(rng, 40, octaves=2)
    plastic = np.float32([0.66, 0.66, 0.64]) * np.float32(rng.uniform(0.9, 1.05))
    surface.lay(cover(oval), colour=plastic * sawn[..., None], height=24 * rounded(oval, 5), gloss=0.12)
    surface.lay(cover(oval + 15, 3), colour=(0.10, 0.10, 0.11), height=12)
    victim = int(flaw.rng.integers(3)) if flaw is not None else -1
    for number, colour in enumerate(WIRES):
        middle = pose.at(*polar(48 + rng.uniform(-1.5, 1.5), number * 2 * np.pi / 3 - 0.6 + rng.uniform(-0.06, 0.06)))
        wire(surface, middle, colour, sawn, rng, flaw if number == victim else None)
    if flaw is not None and flaw.kind == "cut":
        notch(surface, flaw, pose, cover(oval))
    return surface


def wire(
    surface: Surface,
    middle: Pose,
    colour: tuple,
    sawn: np.ndarray,
    rng: np.random.Generator,
    flaw: Flaw | None,
) -> None:
    """One insulated wire with nineteen copper strands."""
    u, v = surface.local(middle)
    dye = np.float32(colour) * np.float32(rng.uniform(0.9, 1.1))
    if flaw is not None and flaw.kind == "insulation":
        other = np.float32(WRONG[int(flaw.rng.integers(3))])
        dye += np.float32(flaw.between(0.35, 1)) * (other - dye)
    jacket = disc(u, v, 42)
    surface.lay(cover(jacket), colour=dye * sawn[..., None], height=24 * rounded(jacket, 3), gloss=0.15)
    surface.lay(cover(disc(u, v, 27.5), 2), colour=(0.09, 0.06, 0.05), height=14)
    lost = flaw.rng.permutation(19)[: round(flaw.between(1, 19))] if flaw is not None and flaw.kind == "strands" else []
    spin = rng.uniform(0, 6.3)
    for number, (ring, angle) in enumerate(SEATS):
        seat = middle.at(*polar(11.2 * ring, spin + angle))
        seat = Pose(seat.x + rng.normal(0, 0.5), seat.y + rng.normal(0, 0.5), 0, middle.zoom)
        polish, tilt = np.float32(rng.uniform(0.75, 1.1)), rng.normal(0, 0.12, 2).astype(np.float32)
        if number not in lost:
            spot, u, v = surface.near(seat, 7)
            shape = disc(u, v, 5.5)
            facet = 23 * rounded(shape, 2) + tilt[0] * u + tilt[1] * v  # cut not quite square
            spot.lay(cover(shape), colour=np.float32([0.80, 0.47, 0.29]) * polish, height=facet, gloss=0.5)


def notch(surface: Surface, flaw: Flaw, pose: Pose, within: np.ndarray) -> None:
    """A knife's cut into the sheath."""
    angle = flaw.rng.uniform(0, 2 * np.pi)
    spot = pose.at(*polar(100, angle), angle + flaw.rng.normal(0, 0.5))
    u, v = surface.local(spot)
    gap = box(u, v, flaw.between(5, 18), flaw.between(1.2, 7), 1) + 0.8 * noise(flaw.rng, 6, octaves=2)
    surface.lay(cover(gap, 1.5) * within, colour=(0.13, 0.13, 0.14), height=8, gloss=0.0)


# The board: parts as (kind, u, v, turn), tracks as corners (u, v), printed labels as (text, u, v, height).
PARTS = [
    ("chip", -22, -8, 0.0), ("can", 62, -48, 0.0), ("can", 62, 4, 0.0), ("crystal", -18, 64, 0.0),
    ("resistor", 22, 48, 0.0), ("resistor", 22, 68, 0.0), ("resistor", -80, -62, 1.5708), ("resistor", -60, -62, 1.5708),
    ("capacitor", -40, -70, 1.5708), ("capacitor", 0, -72, 0.0), ("capacitor", 62, 50, 1.5708), ("capacitor", 84, 50, 1.5708),
    ("resistor", -84, 40, 0.0), ("capacitor", -84, 62, 0.0),
]  # fmt: skip
TRACKS = [
    [(-96, -30), (-64, -30), (-56, -22)], [(-96, -16), (-60, -16)], [(-96, 0), (-56, 0)], [(-84, 40), (-66, 22), (-56, 10)],
    [(10, -22), (30, -42), (62, -42)], [(10, -10), (44, -10), (62, 8)], [(10, 4), (34, 28), (34, 48)],
    [(10, 16), (12, 40), (12, 68)], [(-80, -50), (-40, -50), (-30, -40)],
    [(-60, -76), (-60, -92), (40, -92), (62, -70)], [(0, -72), (24, -72), (38, -58)],
    [(-18, 64), (-50, 64), (-74, 62)], [(32, 68), (50, 68), (62, 58)], [(62, 38), (62, 20)], [(84, 40), (84, -80)],
    [(84, 60), (84, 88), (-60, 88), (-84, 72)], [(-8, 30), (-8, 44), (-16, 56)], [(-30, 30), (-30, 56)], [(-96, 84), (-70, 84)],
]  # fmt: skip
PADS = {"resistor": (10, 5.5), "capacitor": (9, 6), "can": (13, 4), "crystal": (15, 4)}  # distance from the middle, half width
LABELS = [("IC1", -24, 26, 7), ("C1", 86, -62, 7), ("R12", 22, 33, 7), ("REV B", -70, 94, 7), ("X1", 8, 58, 6)]


def circuit(rng: np.random.Generator, flaw: Flaw | None) -> Surface:
    """A populated circuit board. Flaws: missing (a part), shifted (a part out of place), solder (a splash)."""
    glass = 1 + 0.03 * noise(rng, 2, octaves=1) + 0.03 * noise(rng, 60, octaves=2)
    mask = np.float32([0.07, 0.30, 0.17]) * np.float32(rng.uniform(0.85, 1.15))
    surface = Surface.flat(mask * glass[..., None], gloss=0.15)
    pose = Pose(rng.uniform(-3, 3), rng.uniform(-3, 3), rng.uniform(-0.03, 0.03), rng.uniform(1.1, 1.14))
    for track in TRACKS:
        corners = [pose.at(*point) for point in track]
        line = stroke([(corner.x, corner.y) for corner in corners], 3.2)
        surface.lay(line * np.float32(0.8), colour=mask * np.float32([1.6, 1.45, 1.3]))
        surface.height += np.float32(0.5) * line
        for via in (corners[0], corners[-1]):
            spot, u, v = surface.near(via, 6)
            spot.lay(cover(disc(u, v, 4)), colour=(0.70, 0.66, 0.52), height=0.8, gloss=0.3)
            spot.lay(cover(disc(u, v, 1.8)), colour=(0.08, 0.08, 0.07), height=-1)
    for text, u, v, size in LABELS:
        surface.lay(lettering(text, pose.at(u, v), size, 0.9) * np.float32(0.75), colour=(0.85, 0.87, 0.83))
    victim = int(flaw.rng.integers(len(PARTS))) if flaw is not None else -1
    for number, (kind, u, v, turn) in enumerate(PARTS):
        seat = pose.at(u, v, turn)
        tone, slack = rng.uniform(0.85, 1.15), rng.normal(0, 0.5, 2)
        pads(surface, seat, kind)
        seat = seat.at(slack[0], slack[1], rng.normal(0, 0.02))
        if number == victim and flaw.kind == "missing":
            continue
        if number == victim and flaw.kind == "shifted":
            away = polar(flaw.between(1.5, 8), flaw.rng.uniform(0, 2 * np.pi))
            seat = seat.at(*away, flaw.between(0.1, 0.9) * flaw.rng.choice([-1, 1]))
        component(surface, seat, kind, np.float32(tone))
    if flaw is not None and flaw.kind == "solder":
        splash(surface, flaw, flaw.place(100))
    return surface


def pads(surface: Surface, seat: Pose, kind: str) -> None:
    """The solder under both ends of a part."""
    spot, u, v = surface.near(seat, 44)
    if kind == "chip":
        rows = np.abs((v + 24.5) % 7 - 3.5)
        shape = np.maximum(box(np.abs(u) - 30, v, 5.5, 26), rows - 2.2)
    else:
        reach, width = PADS[kind]
        shape = box(np.abs(u) - reach, v, 4.5, width, 1)
    spot.lay(cover(shape), colour=(0.66, 0.66, 0.64), height=0.6 + 1.2 * rounded(shape, 3), gloss=0.5)


def component(surface: Surface, seat: Pose, kind: str, tone: np.float32) -> None:
    """The body of a part; `tone` scales its colour."""
    spot, u, v = surface.near(seat, 44)
    if kind == "chip":
        legs = np.maximum(box(u, v, 34, 26), np.abs((v + 24.5) % 7 - 3.5) - 1.3)
        spot.lay(cover(legs), colour=(0.72, 0.72, 0.72), height=3, gloss=0.5)
        shape = box(u, v, 24, 29, 1)
        spot.lay(cover(shape), colour=np.float32([0.11, 0.11, 0.12]) * tone, height=9 * rounded(shape, 3), gloss=0.15)
        spot.lay(cover(disc(u + 17, v + 22, 2.6)), colour=(0.05, 0.05, 0.05), height=8)
        surface.lay(lettering("74HC04", seat.at(2, -5, 1.5708), 8, 0.9) * np.float32(0.7), colour=(0.62, 0.62, 0.60))
        surface.lay(lettering("2231", seat.at(-10, -5, 1.5708), 7, 0.9) * np.float32(0.6), colour=(0.62, 0.62, 0.60))
    elif kind == "can":
        base = box(u, v, 16, 16, 3)
        spot.lay(cover(base), colour=np.float32([0.10, 0.10, 0.11]), height=3 * rounded(base, 1.5), gloss=0.1)
        shape = disc(u, v, 15)
        spot.lay(cover(shape), colour=np.float32([0.66, 0.66, 0.68]) * tone, height=14 * rounded(shape, 3), gloss=0.4)
        spot.lay(cover(np.maximum(shape + 1.5, u + 6)), colour=(0.13, 0.13, 0.16))
    elif kind == "crystal":
        shape = box(u, v, 21, 8.5, 8)
        spot.lay(cover(shape), colour=np.float32([0.68, 0.67, 0.64]) * tone, height=8 * rounded(shape, 3), gloss=0.5)
        spot.lay(cover(np.abs(box(u, v, 16, 4.5, 4)) - 0.5) * np.float32(0.4), colour=(0.3, 0.3, 0.3))
    else:
        half_length, width = PADS[kind]
        colour = (0.10, 0.10, 0.11) if kind == "resistor" else (0.55, 0.42, 0.30)
        shape = box(u, v, half_length, width, 0.8)
        spot.lay(cover(shape), colour=(0.74, 0.74, 0.73), height=4.5 * rounded(shape, 1.5), gloss=0.4)
        spot.lay(cover(box(u, v, half_length - 3.5, width)), colour=np.float32(colour) * tone, gloss=0.1)


def splash(surface: Surface, flaw: Flaw, pose: Pose) -> None:
    """Drops of solder in the wrong place."""
    for _ in range(1 + int(flaw.between(0, 3))):
        drop = Pose(pose.x + 9 * flaw.rng.normal(), pose.y + 9 * flaw.rng.normal())
        u, v = surface.local(drop)
        radius = flaw.between(2, 8)
        shape = disc(u, v, radius) + np.float32(0.15 * radius) * noise(flaw.rng, radius * 1.5, octaves=2)
        bead = surface.height + np.float32(0.8 * radius) * rounded(shape, radius)
        surface.lay(cover(shape), colour=(0.68, 0.68, 0.66), height=bead, gloss=0.5)
