"""Images and masks from files to tensors: the reader and the transform."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from datasets.images import ImageReader
from datasets.transforms import ColorJitter, Transform
from utils.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RNG = np.random.default_rng(0)


def save(path: Path, pixels: np.ndarray) -> None:
    """pixels as OpenCV orders them (BGR)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def plain(size: tuple[int, int], **options) -> Transform:
    """A transform whose tensors are the pixels / 255."""
    return Transform(size, (0, 0, 0), (1, 1, 1), **options)


# --- reader ---


def test_color_mode_decides_the_order_of_channels(tmp_path):
    bgr = noise(5, 7, 3)
    save(tmp_path / "a.png", bgr)
    np.testing.assert_array_equal(ImageReader(tmp_path, "BGR").read("a.png"), bgr)
    np.testing.assert_array_equal(ImageReader(tmp_path).read("a.png"), bgr[..., ::-1])
    grey = ImageReader(tmp_path, "GRAY").read("a.png")
    np.testing.assert_allclose(grey[..., 0], bgr @ [0.114, 0.587, 0.299], atol=1)
    np.testing.assert_array_equal(grey, np.repeat(grey[..., :1], 3, axis=2))


@pytest.mark.parametrize("color_mode", ["RGB", "BGR", "GRAY"])
@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.full((3, 5), 9, np.uint8), 9),
        (np.full((3, 5), 9 * 256 + 3, np.uint16), 9),
        (np.full((3, 5, 4), 9, np.uint8), 9),
        (np.full((3, 5, 3), 9 * 256 + 3, np.uint16), 9),
    ],
    ids=["grey", "grey 16 bit", "alpha", "16 bit"],
)
def test_every_kind_of_png_becomes_three_channels_of_8_bits(tmp_path, pixels, expected, color_mode):
    save(tmp_path / "a.png", pixels)
    image = ImageReader(tmp_path, color_mode).read("a.png")
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.full((3, 5, 3), expected))


@pytest.mark.parametrize("extension", [".png", ".jpg", ".bmp", ".tiff", ".webp"])
def test_names_may_hold_spaces_and_unicode(tmp_path, extension):
    name = f"größe 1/図 a{extension}"
    save(tmp_path / name, np.full((6, 4, 3), 128, np.uint8))
    assert ImageReader(tmp_path).read(name).shape == (6, 4, 3)


def palette_mask(*colours: int) -> Image.Image:
    mask = Image.fromarray(np.eye(4, dtype=np.uint8)).convert("P")
    mask.putpalette(colours)
    return mask


def alpha_mask(colour: int) -> Image.Image:
    return Image.merge("RGBA", [Image.new("L", (4, 4), colour)] * 3 + [Image.fromarray(np.eye(4, dtype=np.uint8) * 255)])


@pytest.mark.parametrize(
    "mask",
    [
        Image.fromarray(np.eye(4, dtype=np.uint8) * 255),
        Image.fromarray(np.eye(4, dtype=np.uint8)),
        Image.fromarray(np.eye(4, dtype=np.uint16)),
        Image.fromarray(np.eye(4, dtype=bool)),
        Image.fromarray(np.eye(4, dtype=np.uint8)[..., None] * np.array([0, 0, 1], np.uint8)),
        Image.merge("RGBA", [Image.fromarray(np.eye(4, dtype=np.uint8))] * 3 + [Image.new("L", (4, 4), 255)]),
        palette_mask(0, 0, 0, 1, 0, 0),
        palette_mask(255, 255, 255, 0, 0, 0),
        alpha_mask(255),
        alpha_mask(0),
        Image.fromarray(np.where(np.eye(4), 255, 1).astype(np.uint8)),
        Image.fromarray(np.diag([1, 2, 7, 12]).astype(np.uint8)),
    ],
    ids=[
        *("255", "1", "16 bit", "1 bit", "blue", "alpha", "palette"),
        *("white palette", "white in alpha", "black in alpha", "background 1", "kinds"),
    ],
)
def test_a_mask_is_1_wherever_a_value_is_above_the_background(tmp_path, mask):
    mask.save(tmp_path / "m.png")
    read = ImageReader(tmp_path).read_mask("m.png")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, np.eye(4))


@pytest.mark.parametrize(("ending", "background"), [("png", "white"), ("png", "blue"), ("jpg", "white")])
def test_a_mask_without_a_dark_background_is_named(tmp_path, ending, background):
    mask = Image.new("RGB", (32, 32), background)
    mask.paste("red", (8, 8, 16, 16))
    mask.save(tmp_path / f"m.{ending}", quality=95)
    with pytest.raises(UserError, match=rf"^m\.{ending} in image_dir .*equally bright; make its background black$"):
        ImageReader(tmp_path).read_mask(f"m.{ending}")
    Image.new("RGB", (32, 32), "red").save(tmp_path / f"full.{ending}", quality=95)
    assert ImageReader(tmp_path).read_mask(f"full.{ending}").all()


@pytest.mark.parametrize(("ending", "quality"), [("jpg", 95), ("jpg", 30), ("webp", 50)])
def test_a_lossy_mask_has_the_regions_of_the_mask_it_was_made_of(tmp_path, ending, quality):
    mask = np.zeros((128, 128), np.uint8)
    for centre, radius in (((30, 30), 12), ((90, 40), 5), ((60, 100), 20)):
        cv2.circle(mask, centre, radius, 1, -1)
    Image.fromarray(mask * 255).save(tmp_path / f"m.{ending}", quality=quality)
    read = ImageReader(tmp_path).read_mask(f"m.{ending}")
    assert cv2.connectedComponents(read)[0] == 1 + 3
    assert (read != mask).mean() < 0.005


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    save(tmp_path / "cut.png", noise(20, 20, 3))
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:40])
    reader = ImageReader(tmp_path)
    for name, problem in {
        "none.png": "there is no file",
        "folder.png": "cannot read",
        "text.png": "is not an image",
        "empty.png": "is not an image",
        "cut.png": "is not an image",
    }.items():
        for read in (reader.read, reader.read_mask):
            with pytest.raises(UserError, match=problem) as caught:
                read(name)
            assert name in str(caught.value)
            assert str(tmp_path) in str(caught.value)


def test_a_missing_image_dir_or_unknown_color_mode_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere is not a folder; set dataset\.image_reader\.kwargs\.image_dir"):
        ImageReader(tmp_path / "nowhere")
    with pytest.raises(UserError, match="'HSV' is not one of RGB, BGR, GRAY"):
        ImageReader(tmp_path, "HSV")


# --- transform ---


@pytest.mark.parametrize("size", [(23, 31), (64, 64)])
@pytest.mark.parametrize("resample", ["bilinear", "lanczos"])
def test_images_are_resized_scaled_and_normalised(size, resample):
    image = noise(41, 57, 3)
    filters = {"bilinear": transforms.InterpolationMode.BILINEAR, "lanczos": transforms.InterpolationMode.LANCZOS}
    expected = transforms.Compose(
        [transforms.Resize(size, filters[resample]), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )(Image.fromarray(image))
    tensor, _ = Transform(size, MEAN, STD, resample=resample)(image, None, None)
    assert tensor.dtype == torch.float32
    assert torch.equal(tensor, expected)


def test_masks_are_resized_to_the_nearest_pixel_and_stay_0_or_1():
    mask = (noise(41, 57) > 128).astype(np.uint8)
    _, tensor = plain((23, 31))(noise(41, 57, 3), mask, None)
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor[0], np.asarray(Image.fromarray(mask).resize((31, 23), Image.Resampling.NEAREST)))
    assert set(tensor.unique().tolist()) == {0.0, 1.0}


# Each side's difference is even or odd: an odd one leaves a pixel more at the bottom or at the right.
@pytest.mark.parametrize(("size", "crop"), [((8, 10), (4, 4)), ((9, 12), (4, 5)), ((9, 9), (8, 9)), ((7, 7), (7, 7))])
def test_a_crop_is_the_middle_of_the_resized_image_and_its_mask(size, crop):
    image, mask = noise(30, 20, 3), noise(30, 20) // 128
    whole, part = plain(size), plain(size, crop=crop)
    top, left = (size[0] - crop[0]) // 2, (size[1] - crop[1]) // 2
    assert 0 <= size[0] - crop[0] - 2 * top <= 1
    for given, cropped in zip(whole(image, mask, None), part(image, mask, None), strict=True):
        assert torch.equal(cropped, given[:, top : top + crop[0], left : left + crop[1]])
    assert part(image, None, None)[1].shape == (1, *crop)


def test_the_part_of_the_original_picture_that_a_crop_shows_is_in_proportion():
    part = plain((10, 20), crop=(5, 10))
    picture = noise(40, 30, 3)
    np.testing.assert_array_equal(part.middle(picture), picture[10:30, 7:22])  # 15 of 30 columns, after (30 - 15) // 2


def test_a_crop_is_what_must_be_square_to_be_rotated():
    assert plain((8, 10), crop=(6, 6), rotate=True)(noise(9, 9, 3), None, np.random.default_rng(0))[0].shape == (3, 6, 6)
    with pytest.raises(UserError, match=r"needs a square input_size, not 6 x 4"):
        plain((8, 8), crop=(6, 4), rotate=True)


def test_no_mask_is_a_mask_of_zeros():
    _, tensor = plain((8, 6), hflip=True)(noise(9, 9, 3), None, np.random.default_rng(0))
    assert torch.equal(tensor, torch.zeros(1, 8, 6))


def paired(transform: Transform, mask: np.ndarray, epoch: int) -> torch.Tensor:
    """Augment a mask and its picture together; they must still be the same."""
    image, augmented = transform(np.repeat(mask[..., None] * 255, 3, axis=2), mask, np.random.default_rng([1, epoch]))
    assert torch.equal(image, augmented.expand(3, -1, -1))
    return augmented[0]


TURNS = {
    "none": {lambda mask: mask},
    "hflip": {lambda mask: mask, lambda mask: mask.flip(1)},
    "vflip": {lambda mask: mask, lambda mask: mask.flip(0)},
    "rotate": {lambda mask, quarter=quarter: mask.rot90(quarter) for quarter in range(4)},
}


@pytest.mark.parametrize("name", TURNS)
def test_image_and_mask_are_turned_together_and_each_way_equally_often(name):
    mask = np.triu(np.ones((8, 8), np.uint8), 3)
    mask[0, 0] = 1  # no two ways look alike
    transform = plain((8, 8), **({} if name == "none" else {name: True}))
    results = [paired(transform, mask, epoch) for epoch in range(400)]
    for turn in TURNS[name]:
        share = sum(torch.equal(result, turn(torch.from_numpy(mask).float())) for result in results) / len(results)
        assert share == pytest.approx(1 / len(TURNS[name]), abs=0.1)


def test_all_augmentations_together_keep_image_and_mask_paired():
    mask = (noise(16, 16) > 200).astype(np.uint8)
    transform = plain((16, 16), hflip=True, vflip=True, rotate=True)
    assert len({paired(transform, mask, epoch).numpy().tobytes() for epoch in range(60)}) == 8


def test_flips_also_suit_images_that_are_not_square():
    mask = (noise(6, 9) > 200).astype(np.uint8)
    assert len({paired(plain((6, 9), hflip=True, vflip=True), mask, epoch).numpy().tobytes() for epoch in range(40)}) == 4


def test_rotation_needs_a_square_input_size():
    with pytest.raises(UserError, match="needs a square input_size, not 6 x 9"):
        plain((6, 9), rotate=True)


def test_without_a_generator_nothing_is_augmented():
    image, mask = noise(8, 8, 3), (noise(8, 8) > 128).astype(np.uint8)
    transform = plain((8, 8), hflip=True, vflip=True, rotate=True, colorjitter={"prob": 1})
    augmented, augmented_mask = transform(image, mask, None)
    expected, expected_mask = plain((8, 8))(image, mask, None)
    assert torch.equal(augmented, expected)
    assert torch.equal(augmented_mask, expected_mask)


def test_colour_jitter_changes_the_image_and_never_the_mask():
    image, mask = noise(8, 8, 3), (noise(8, 8) > 128).astype(np.uint8)
    jittered, jittered_mask = plain((8, 8), colorjitter={"prob": 1})(image, mask, np.random.default_rng(0))
    expected, expected_mask = plain((8, 8))(image, mask, None)
    assert not torch.equal(jittered, expected)
    assert torch.equal(jittered_mask, expected_mask)


OFF = {"brightness": 0, "contrast": 0, "hue": 0, "saturation": 0}


@pytest.mark.parametrize("name", OFF)
def test_each_adjustment_is_made_with_its_probability(name):
    image = noise(8, 8, 3)
    jitter = ColorJitter(**{**OFF, name: 0.5}, prob=0.3)
    changed = sum(not np.array_equal(jitter(image, np.random.default_rng(i)), image) for i in range(300))
    assert changed / 300 == pytest.approx(0.3, abs=0.08)


def test_the_brightness_factor_is_uniform_around_1():
    image = np.full((2, 2, 3), 200, np.uint8)
    jitter = ColorJitter(**{**OFF, "brightness": 0.1}, prob=1)
    factors = np.array([jitter(image, np.random.default_rng(i)).mean() for i in range(300)]) / 200
    assert factors.min() == pytest.approx(0.9, abs=0.01)
    assert factors.max() == pytest.approx(1.1, abs=0.01)
    assert factors.mean() == pytest.approx(1, abs=0.01)


def test_hue_and_saturation_leave_grey_grey_and_hue_keeps_the_brightest_channel():
    grey, colour = np.full((4, 4, 3), 90, np.uint8), noise(4, 4, 3)
    for i in range(10):
        rng = np.random.default_rng(i)
        np.testing.assert_array_equal(ColorJitter(0, 0, 0.5, 0.5, prob=1)(grey, rng), grey)
        turned = ColorJitter(0, 0, 0.5, 0, prob=1)(colour, rng)
        np.testing.assert_array_equal(turned.max(axis=2), colour.max(axis=2))


def test_adjustments_come_in_random_order():
    image = noise(8, 8, 3)
    jitter = ColorJitter(brightness=(2, 2), contrast=(2, 2), hue=0, saturation=0, prob=1)
    adjust = transforms.functional.adjust_brightness, transforms.functional.adjust_contrast
    picture = Image.fromarray(image)
    orders = {np.asarray(b(a(picture, 2), 2)).tobytes() for a, b in (adjust, adjust[::-1])}
    assert len(orders) == 2
    assert {jitter(image, np.random.default_rng(i)).tobytes() for i in range(20)} == orders


def test_colour_jitter_means_the_same_colours_in_bgr():
    image = noise(8, 8, 3)
    options = {"input_size": (8, 8), "pixel_mean": (0, 0, 0), "pixel_std": (1, 1, 1), "colorjitter": {"prob": 1}}
    rgb, _ = Transform(**options)(image, None, np.random.default_rng(3))
    bgr, _ = Transform(**options, color_mode="BGR")(image[..., ::-1], None, np.random.default_rng(3))
    assert torch.equal(bgr.flip(0), rgb)


def test_an_impossible_colour_jitter_is_an_error():
    for options in ({"hue": 0.7}, {"brightness": -1}):
        with pytest.raises(UserError, match="colorjitter"):
            plain((8, 8), colorjitter=options)
