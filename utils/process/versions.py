"""The software versions that a result depends on."""

import platform
from importlib.metadata import PackageNotFoundError, version

BACKBONES = ("efficientnet_pytorch", "efficientnet_lite_pytorch", "timm")
PACKAGES = ("torch", "torchvision", "numpy", "opencv-python", "pillow", *BACKBONES)


def versions() -> dict[str, str]:
    """Versions of Python and of each package that affects the numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # e.g. opencv-python-headless is installed instead
            found[package] = "not installed under this name"
    return found
