"""Any bytes as an image or a mask give pixels or one line."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets.images import ImageReader, count_frames, read_rgb
from datasets.lists import IMAGE_EXTENSIONS
from utils.errors import UserError


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(buffer, kind)
    return buffer.getvalue()


WHOLE = [encoded(kind) for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """An image with some bytes replaced, cut anywhere; or any bytes."""
    content = bytearray(draw(st.sampled_from([*WHOLE, b""])) or draw(st.binary(max_size=200)))
    for place, value in draw(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4)):
        content[place : place + 1] = bytes([value])
    return bytes(content[: draw(st.integers(0, 600))])


@settings(max_examples=150, deadline=None)
@given(damaged())
def test_any_bytes_as_an_image_or_mask_give_pixels_or_one_line(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp()
    (folder / "any.png").write_bytes(content)
    reader = ImageReader(str(folder))
    for read, dimensions in ((reader.read, 3), (reader.read_mask, 2)):
        try:
            pixels = read("any.png")
        except UserError as error:
            assert "any.png" in str(error)  # noqa: PT017
            assert len(str(error).splitlines()) == 1  # noqa: PT017
        else:
            assert (pixels.dtype, pixels.ndim) == (np.uint8, dimensions)
    assert count_frames(folder / "any.png") >= 1


@pytest.mark.parametrize(
    ("ending", "kind"), [(".jfif", "JPEG"), (".jpe", "JPEG"), (".jp2", "JPEG2000"), (".ppm", "PPM"), (".webp", "WEBP")]
)
def test_each_ending_of_an_image_can_be_read(tmp_path, ending, kind):
    assert ending in IMAGE_EXTENSIONS
    (tmp_path / f"a{ending}").write_bytes(encoded(kind))
    assert ImageReader(str(tmp_path)).read(f"a{ending}").shape == (8, 8, 3)


# --- more pixels than fit ---


def claim(path: Path, width: int, height: int) -> Path:
    """A small PNG whose head says that it is large."""
    data = bytearray(encoded("PNG"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    return path


def save_jpeg(path: Path, width: int, height: int, **options) -> np.ndarray:
    down, across = np.linspace(0, 200, height)[:, None], np.linspace(0, 200, width)[None]
    rgb = np.stack([down + 0 * across, across + 0 * down, 200 - down + 0 * across], axis=2).astype(np.uint8)
    Image.fromarray(rgb).save(path, "JPEG", quality=95, subsampling=0, **options)
    return rgb


@pytest.mark.parametrize("size", [(32_000, 32_000), (16_385, 16_385), (2**31 - 1, 1)])
def test_a_head_that_claims_too_many_pixels_is_one_line(tmp_path: Path, size: tuple[int, int]) -> None:
    path = claim(tmp_path / "large.png", *size)
    message = rf"large\.png.* has {size[0]:,} x {size[1]:,} pixels, more than 268,435,456 in all .*max_pixels"
    with pytest.raises(UserError, match=message):
        read_rgb(path)
    with pytest.raises(UserError, match=message):
        ImageReader(str(tmp_path)).read_mask("large.png")


def test_the_limit_is_a_key_and_an_image_of_just_so_many_pixels_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    assert ImageReader(str(tmp_path), max_pixels=600).read("a.png").shape == (20, 30, 3)
    with pytest.raises(UserError, match="30 x 20 pixels, more than 599"):
        ImageReader(str(tmp_path), max_pixels=599).read("a.png")


@pytest.mark.parametrize(("most", "factor"), [(64 * 48, 1), (64 * 48 - 1, 2), (32 * 24 - 1, 4), (16 * 12 - 1, 8)])
def test_a_jpeg_is_decoded_at_a_part_of_its_size(tmp_path: Path, most: int, factor: int) -> None:
    rgb = save_jpeg(tmp_path / "a.jpg", 64, 48)
    found = read_rgb(tmp_path / "a.jpg", max_pixels=most)
    assert found.shape == (48 // factor, 64 // factor, 3)
    means = rgb.reshape(48 // factor, factor, 64 // factor, factor, 3).mean(axis=(1, 3))
    assert np.abs(found - means).mean() < 8
    Image.fromarray(rgb).convert("L").save(tmp_path / "mask.jpg")
    mask = ImageReader(str(tmp_path), max_pixels=most).read_mask("mask.jpg")
    assert mask.shape == found.shape[:2]


@pytest.mark.parametrize(("most", "options"), [(8 * 6 - 1, {}), (64 * 48 - 1, {"progressive": True})])
def test_a_jpeg_that_is_still_too_large_or_is_held_whole_is_refused(tmp_path: Path, most: int, options: dict) -> None:
    save_jpeg(tmp_path / "a.jpg", 64, 48, **options)
    with pytest.raises(UserError, match="64 x 48 pixels"):
        read_rgb(tmp_path / "a.jpg", max_pixels=most)
