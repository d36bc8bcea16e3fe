"""Any bytes as an image or a mask give pixels or one line."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets.images import ImageReader, count_frames
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
