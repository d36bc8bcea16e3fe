"""Tiles: where they lie, and that their maps make the map of the photograph."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from datasets.images import ImageReader
from datasets.roi import WHOLE, Roi
from datasets.tiles import Tiles, starts
from utils.errors import UserError

SIZES = [(64, 64), (64, 200), (150, 97), (40, 30), (40, 130), (1, 1), (65, 64), (129, 127)]


@given(st.integers(1, 3000), st.integers(1, 500), st.data())
def test_tiles_cover_an_axis_and_overlap_as_asked(length: int, side: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, side - 1))
    found = starts(length, side, overlap)
    assert found[0] == 0
    assert found[-1] == max(0, length - side)
    steps = np.diff(found)
    assert (steps > 0).all()
    assert (steps <= side - overlap).all()
    assert len(set(steps.tolist())) <= 2  # evenly, to the nearest pixel


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("overlap", [0, 1, 16, 63])
def test_what_is_cut_joins_to_what_it_was(size: tuple[int, int], overlap: int) -> None:
    layout = Tiles((64, 64), overlap).layout(size)
    picture = np.random.default_rng(0).random(size, np.float32)
    tiles = [layout.cut(picture, number) for number in range(len(layout.places))]
    assert all(tile.shape == (64, 64) for tile in tiles)
    np.testing.assert_allclose(layout.join(tiles, (64, 64)), picture, atol=5e-5)
    mask = (picture > 0.99).astype(np.uint8)
    masks = [layout.cut(mask, number) for number in range(len(tiles))]
    np.testing.assert_array_equal(layout.join_masks(masks, (64, 64)), mask)


@pytest.mark.parametrize("size", SIZES)
def test_maps_of_another_size_join_to_the_picture_at_that_scale(size: tuple[int, int]) -> None:
    """A map that says where its pixels are: the joined one says so too, to the nearest pixel."""
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    layout = Tiles((64, 48), 16).layout(size)
    for coordinates in (rows, columns):
        maps = [cv2.resize(layout.cut(coordinates, n), (12, 16), interpolation=cv2.INTER_AREA) for n in range(len(layout.places))]
        joined = layout.join(maps, (16, 12))
        assert joined.shape == layout.joined_size((16, 12))
        assert joined.shape == tuple(max(1, round(side / 4)) for side in size)
        wanted = 4 * np.mgrid[: joined.shape[0], : joined.shape[1]][0 if coordinates is rows else 1] + 1.5
        inner = tuple(slice(0, side // 4) for side in size)
        assert np.abs(joined - wanted)[inner].max(initial=0) <= 2.001


def test_there_is_no_seam_between_tiles_that_disagree() -> None:
    layout = Tiles((64, 64), 32).layout((64, 96))
    joined = layout.join([np.zeros((64, 64)), np.ones((64, 64))], (64, 64))
    np.testing.assert_allclose(joined, joined[:1].repeat(64, axis=0), atol=1e-6)
    assert (joined[:, :32] == 0).all()
    assert (joined[:, 64:] == 1).all()
    np.testing.assert_allclose(np.diff(joined[0, 31:65]), 1 / 33, atol=1e-6)


def test_a_photograph_of_one_tile_keeps_its_map_bit_for_bit() -> None:
    layout = Tiles((64, 64), 20).layout((64, 64))
    anomaly_map = np.random.default_rng(1).random((33, 21), np.float32)
    np.testing.assert_array_equal(layout.join([anomaly_map], (33, 21)), anomaly_map)


@pytest.mark.parametrize("size", [(200, 150), (64, 64), (40, 150), (40, 30)])
def test_the_region_of_interest_of_a_tile_is_that_of_the_photograph(size: tuple[int, int]) -> None:
    mask = np.zeros((100, 100), bool)
    mask[:, 30:] = True
    roi, layout = Roi({"": mask}), Tiles((64, 64), 16).layout(size)
    whole = roi.part(None, size, WHOLE)
    for number in range(len(layout.places)):
        differs = layout.inside(roi, None, number, (64, 64)) != layout.cut(whole, number)
        assert differs.mean() <= 1 / 64  # a column at the edge


@pytest.mark.parametrize("scale", [16, 32, 64])
def test_tiles_of_a_bent_region_are_blended_to_their_own_values(scale: int) -> None:
    """Where a neighbour is missing, the others have all of the weight."""
    mask = np.zeros((100, 100), bool)
    mask[:60, :20] = mask[50:60] = True
    roi = Roi({"": mask})
    layout = Tiles((64, 64), 40).layout((300, 260)).inspected(roi, None, (64, 64))
    assert 1 < len(layout.places) < len(Tiles((64, 64), 40).layout((300, 260)).places)
    joined = layout.join(np.ones((len(layout.places), scale, scale)), (scale, scale))
    np.testing.assert_allclose(joined[roi.of_map(None, joined.shape)], 1, atol=1e-5)


def test_the_region_of_interest_of_a_small_map_is_never_empty() -> None:
    mask = np.zeros((100, 100), bool)
    mask[10:13] = True
    inside = Roi({"": mask}).of_map(None, (8, 8))
    assert inside[0].all() or inside[1].all()
    assert inside.sum() <= 16


def test_tiles_outside_of_the_region_of_interest_are_left_out() -> None:
    mask = np.zeros((100, 100), bool)
    mask[:, 80:] = True
    roi, tiles = Roi({"": mask}), Tiles((50, 50), 0)
    layout = tiles.layout((100, 100)).inspected(roi, None, (32, 32))
    assert layout.places == ((0, 50), (50, 50))
    joined = layout.join(np.ones((2, 32, 32)), (32, 32))
    inside = roi.part(None, joined.shape, WHOLE)
    assert joined.shape == (64, 64)
    assert (joined[inside] == 1).all()
    with pytest.raises(UserError, match="no tile shows anything of the region of 'cup'"):
        tiles.layout((100, 100)).inspected(Roi({"": np.eye(100) > 0}), "cup", (32, 32))


def test_more_tiles_than_a_machine_bears_are_one_line() -> None:
    with pytest.raises(UserError, match=r"of 1000 x 2000 pixels has 2,000,000 tiles: make dataset\.tiles\.size larger"):
        Tiles((1, 1), 0).layout((2000, 1000))


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


FILES = {
    "plain.jpg": {},
    "plain.png": {},
    "plain.bmp": {},
    "plain.tif": {},
    "turned.tif": {"tiffinfo": {0x0112: 6}},
    "plain.webp": {},
    **{f"turned{n}.jpg": {"exif": exif(n)} for n in (1, 3, 6, 8)},
    **{f"turned{n}.png": {"exif": exif(n)} for n in (1, 6)},
    "large.jpg": {},
}


@pytest.mark.parametrize("name", FILES)
def test_the_size_is_that_of_the_image_that_is_read(tmp_path, name: str) -> None:
    sides = (301, 203) if name.startswith("large") else (50, 31)
    Image.new("RGB", sides, "red").save(tmp_path / name, **FILES[name])
    reader = ImageReader(str(tmp_path), max_pixels=40_000)
    assert reader.size(name) == reader.read(name).shape[:2]


def test_tiles_go_from_left_to_right_and_from_top_to_bottom() -> None:
    assert Tiles((4, 4), 1).layout((9, 6)).places == ((0, 0), (0, 2), (2, 0), (2, 2), (5, 0), (5, 2))


def test_a_small_photograph_is_continued_by_its_mirror_image() -> None:
    tile = Tiles((3, 5), 0).layout((2, 3)).cut(np.array([[1, 2, 3], [4, 5, 6]]), 0)
    assert tile.tolist() == [[1, 2, 3, 3, 2], [4, 5, 6, 6, 5], [4, 5, 6, 6, 5]]
