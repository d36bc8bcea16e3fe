"""Image files as they come from anywhere: of many formats, whole, cut off, damaged, or no images at all."""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image


def whole_images(rng: np.random.Generator) -> list[bytes]:
    """Small images of each format and form that people have."""
    rgb = Image.fromarray(rng.integers(0, 256, (24, 36, 3), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, (24, 36)).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    forms = [
        (rgb, "jpeg", {"exif": exif}),
        (rgb, "jpeg", {"progressive": True}),
        (rgb.convert("CMYK"), "jpeg", {}),
        (rgb.convert("L"), "jpeg", {"icc_profile": bytes(200)}),
        (rgb, "png", {"icc_profile": b"no profile"}),
        (rgb.convert("P"), "png", {"transparency": 3}),
        (rgb.convert("RGBA"), "png", {}),
        (rgb.convert("1"), "png", {}),
        (deep, "png", {}),
        (deep, "tiff", {}),
        (rgb, "tiff", {"compression": "tiff_lzw"}),
        (rgb, "tiff", {"save_all": True, "append_images": [rgb] * 3}),
        (rgb, "gif", {"save_all": True, "append_images": [rgb.rotate(180)] * 3}),
        (rgb, "webp", {"lossless": True}),
        (rgb, "webp", {"save_all": True, "append_images": [rgb.rotate(180)] * 3}),
        (rgb, "bmp", {}),
        (rgb, "ppm", {}),
        (Image.new("L", (1, 1)), "png", {}),
        (Image.new("1", (20_000, 20_000)), "png", {}),  # a bomb
        (Image.new("1", (1, 60_000)), "tiff", {"compression": "group4"}),
    ]
    files = []
    for image, format, options in forms:
        file = io.BytesIO()
        image.save(file, format, **options)
        files.append(file.getvalue())
    return files


def hostile_images(count: int, seed: int = 0) -> Iterator[bytes]:
    """Whole ones first, then cut, damaged, joined and random ones."""
    rng = np.random.default_rng(seed)
    whole = whole_images(rng)
    yield from whole
    yield b""
    for _ in range(count - len(whole) - 1):
        data = bytearray(whole[rng.integers(len(whole))])
        kind = rng.integers(4)
        if kind == 0:
            data = data[: rng.integers(len(data))]
        elif kind == 1:
            for place in rng.integers(0, len(data), rng.integers(1, 20)):
                data[place] = rng.integers(256)
        elif kind == 2:
            data = data[:20] + bytearray(rng.bytes(int(rng.integers(2000))))
        else:
            data += whole[rng.integers(len(whole))]
        yield bytes(data)
