"""Png frames: colours or transparency, whichever holds the silhouette."""

import numpy as np
import pytest
from PIL import Image

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.sequences import Reading, read_sequence

RNG = np.random.default_rng(0)
MASKS = np.zeros((4, 64, 44), np.uint8)
for number, mask in enumerate(MASKS):
    mask[10:60, 5 + number : 30 + number] = 255
PHOTO = RNG.integers(0, 256, MASKS.shape, np.uint8)
OPAQUE = np.full_like(MASKS, 255)


def rgba(colours, alpha):
    return Image.fromarray(np.dstack([colours] * 3 + [alpha]), "RGBA")


def la(colours, alpha):
    return Image.fromarray(np.dstack([colours, alpha]), "LA")


def write(folder, images, **options):
    for index, image in enumerate(images):
        image.save(folder / f"{index}.png", **options)


def palette(frame):
    image = Image.fromarray(frame // 255, "P")
    image.putpalette([128, 0, 0, 200, 200, 200] + [0] * 762)  # the background is no black
    return image


@pytest.mark.parametrize("make", [rgba, la])
@pytest.mark.parametrize("colours", [PHOTO, OPAQUE, MASKS * 0], ids=["photograph", "white", "black"])
def test_a_cut_out_is_read_from_its_transparency(make, colours, tmp_path):
    write(tmp_path, map(make, colours, MASKS))
    np.testing.assert_array_equal(read_sequence(tmp_path), MASKS)


def test_grey_edges_of_transparency_are_kept(tmp_path):
    soft = np.where(MASKS > 0, MASKS, RNG.integers(0, 90, MASKS.shape)).astype(np.uint8)
    write(tmp_path, map(rgba, PHOTO, soft))
    np.testing.assert_array_equal(read_sequence(tmp_path), soft)


@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.parametrize("make", [rgba, la])
def test_colours_are_read_if_transparency_has_no_shape(make, level, tmp_path):
    write(tmp_path, map(make, MASKS, OPAQUE // 255 * np.uint8(level)))
    np.testing.assert_array_equal(read_sequence(tmp_path), MASKS)


def test_colours_are_read_if_only_the_level_of_transparency_changes(tmp_path):
    write(tmp_path, [rgba(mask, np.full_like(mask, 255 - 10 * i)) for i, mask in enumerate(MASKS)])
    np.testing.assert_array_equal(read_sequence(tmp_path), MASKS)


def test_grey_values_of_16_bits_are_scaled(tmp_path):
    values = np.array([[0, 255, 256, 20000], [32768, 40000, 65279, 65535]], np.uint16)
    write(tmp_path, [Image.fromarray(values)])
    np.testing.assert_array_equal(read_sequence(tmp_path)[0], values // 256)


@pytest.mark.parametrize("largest", [1, 255])
def test_masks_of_16_bits_are_read_like_those_of_8(largest, tmp_path):
    """Some programs store every image with 16 bits."""
    write(tmp_path, [Image.fromarray((mask > 0).astype(np.uint16) * largest) for mask in MASKS])
    np.testing.assert_array_equal(read_sequence(tmp_path), MASKS)


@pytest.mark.parametrize("value", [256, 1023, 4095, 32768, 65535])
def test_masks_of_16_bits_are_read_whatever_their_value(value, tmp_path):
    write(tmp_path, [Image.fromarray((mask > 0).astype(np.uint16) * value) for mask in MASKS])
    np.testing.assert_array_equal(read_sequence(tmp_path), MASKS)
    raw = read_sequence(tmp_path, Reading(raw=True))
    np.testing.assert_array_equal(raw, (MASKS > 0) * np.float32(value >> 8))  # they can be labels


def test_a_dark_spot_in_an_empty_frame_is_noise(tmp_path):
    frames = MASKS.copy()
    frames[2] = 0
    frames[2, 5, 5] = 1
    write(tmp_path, map(Image.fromarray, frames))
    np.testing.assert_array_equal(read_sequence(tmp_path), frames)


def test_an_animation_is_refused_by_name(tmp_path):
    """Only its first frame would be read."""
    first, *others = map(Image.fromarray, MASKS)
    first.save(tmp_path / "0.png", save_all=True, append_images=others)
    with pytest.raises(DataError, match=r"0\.png: .*an animation; save each of its frames as a file"):
        read_sequence(tmp_path)


@pytest.mark.parametrize(
    ("kind", "value", "usual"), [(np.uint8, 1, 255), (np.uint16, 1, 65535), (np.uint16, 255, 65535)]
)
def test_masks_that_are_stored_in_different_ways_are_refused_by_name(kind, value, usual, tmp_path):
    """The frame would be black."""
    values = [usual, usual, value, usual]
    pairs = zip(MASKS, values, strict=True)
    write(tmp_path, [Image.fromarray((mask > 0).astype(kind) * kind(factor)) for mask, factor in pairs])
    with pytest.raises(
        DataError, match=rf"2\.png: its largest value is {value}, but .* is {usual}; save all"
    ):
        read_sequence(tmp_path)
    assert len(read_sequence(tmp_path, Reading(raw=True))) == 4  # label maps have different labels


@pytest.mark.parametrize("empty", [[0], [3], [0, 1, 3]])
def test_a_frame_without_a_person_is_not_read_as_a_photograph(empty, tmp_path):
    masks = MASKS.copy()
    masks[empty] = 0
    write(tmp_path, map(rgba, PHOTO, masks))
    np.testing.assert_array_equal(read_sequence(tmp_path), masks)


@pytest.mark.parametrize("opaque", [0, 2, 3])
def test_frames_with_and_without_transparency_are_refused(opaque, tmp_path):
    images = [rgba(*pair) for pair in zip(PHOTO, MASKS, strict=True)]
    images[opaque] = Image.fromarray(PHOTO[opaque])
    write(tmp_path, images)
    with pytest.raises(DataError, match=r"\d\.png: .*transparency; save all frames in the same way"):
        read_sequence(tmp_path)


@pytest.mark.parametrize("transparency", [0, b"\0\xff"])
def test_a_palette_with_transparency_is_a_cut_out(transparency, tmp_path):
    write(tmp_path, map(palette, MASKS), transparency=transparency)
    np.testing.assert_array_equal(read_sequence(tmp_path), MASKS)


def test_a_transparent_colour_makes_a_cut_out(tmp_path):
    write(tmp_path, [Image.fromarray(np.dstack([np.where(m, 200, 30).astype(np.uint8)] * 3)) for m in MASKS],
          transparency=(30, 30, 30))  # fmt: skip
    np.testing.assert_array_equal(read_sequence(tmp_path), MASKS)


def test_a_palette_without_transparency_is_read_from_its_colours(tmp_path):
    write(tmp_path, map(palette, MASKS))
    read = read_sequence(tmp_path, Reading(raw=True))
    assert set(np.unique(read)) == {38, 200}
    np.testing.assert_array_equal(read > 100, MASKS > 0)


def test_transparency_that_is_no_silhouette_is_refused(tmp_path):
    write(tmp_path, map(rgba, PHOTO, MASKS // 3))
    with pytest.raises(DataError, match="values of 0 to 85 are not silhouettes"):
        read_sequence(tmp_path)
