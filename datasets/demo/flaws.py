"""Defects that any class can use: each changes a surface in one place."""

from dataclasses import dataclass

import cv2
import numpy as np

from datasets.demo.surface import Colour, Pose, Surface, disc, noise, stroke


@dataclass(frozen=True)
class Flaw:
    """A defect to draw: its kind, its strength (0 subtle, 1 obvious), and its own random numbers."""

    kind: str
    strength: float
    rng: np.random.Generator

    def between(self, low: float, high: float) -> float:
        """A value that grows with the strength, with a jitter of a tenth of the range."""
        return low + (high - low) * float(np.clip(self.strength + self.rng.uniform(-0.1, 0.1), 0, 1))

    def place(self, reach: float) -> Pose:
        """A random pose whose centre is at most `reach` pixels from the image's centre on either axis."""
        x, y = self.rng.uniform(-reach, reach, 2)
        return Pose(x, y, self.rng.uniform(0, 2 * np.pi))


def blob(flaw: Flaw, surface: Surface, pose: Pose, radius: float, soft: float, longest: float) -> np.ndarray:
    """Alpha of an irregular spot: `soft` is the width of its edge in pixels, `longest` the largest ratio of length to width."""
    stretch = flaw.rng.uniform(1, longest)
    u, v = surface.local(pose)
    distance = disc(u / np.float32(stretch**0.5), v * np.float32(stretch**0.5), radius)
    ragged = distance + np.float32(0.28 * radius) * noise(flaw.rng, radius, octaves=3)
    ramp = np.clip(0.5 - ragged / np.float32(soft), 0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def wander(flaw: Flaw, pose: Pose, length: float, bend: float, joints: int = 14) -> np.ndarray:
    """Points (joints x 2) of a crooked line around a pose; `bend` is the standard deviation of its turns in radians."""
    angles = pose.angle + np.cumsum(flaw.rng.normal(0, bend, joints))
    steps = np.stack([np.cos(angles), np.sin(angles)], axis=1) * (length / joints)
    return np.array([pose.x, pose.y]) + np.cumsum(steps, axis=0) - steps.sum(axis=0) / 2


def stain(surface: Surface, alpha: np.ndarray, tint: Colour, opacity: float) -> None:
    """A tint that multiplies the colour, so that the texture stays visible."""
    surface.lay(alpha * np.float32(opacity), colour=surface.albedo * np.asarray(tint, np.float32))


def crack(surface: Surface, points: np.ndarray, width: float, depth: float, colour: Colour, opacity: float = 0.8) -> None:
    """A gap along a line, thin at its ends, with walls that catch the light."""
    gap = np.maximum(stroke(points, 0.5 * width), stroke(points[len(points) // 5 : -(len(points) // 4)], width))
    surface.lay(gap * np.float32(opacity), colour=colour)
    surface.height -= np.float32(depth) * cv2.GaussianBlur(gap, (0, 0), 0.8)


def scratch(surface: Surface, points: np.ndarray, width: float, opacity: float, within: np.ndarray) -> None:
    """A bright groove, drawn where `within` (alpha) allows."""
    groove = stroke(points, width) * within
    surface.lay(groove * np.float32(opacity), colour=np.minimum(surface.albedo * 1.5 + 0.15, 1))
    surface.height -= np.float32(0.9 * opacity) * groove
