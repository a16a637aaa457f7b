"""Images from bytes or pixels to what a model takes: eagerly, in tf.data and in a SavedModel alike."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.config import UsageError
from pipelines.transforms import images

RNG = np.random.default_rng(0)


def encoded(pixels: np.ndarray, format: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(out, format, **options)
    return out.getvalue()


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, "uint8")


@pytest.mark.parametrize("format", ["PNG", "BMP", "GIF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_formats_decode_to_what_pillow_reads(format, channels):
    pixels = noise(5, 7, channels) // 64 * 64  # few colours: a GIF has 256
    contents = encoded(pixels, format)
    expected = np.array(Image.open(io.BytesIO(contents)).convert("RGB"))
    assert np.array_equal(images.convert(images.decode(contents), 3), expected)


def test_a_jpeg_decodes_to_nearly_what_pillow_reads():
    smooth = np.indices((16, 16)).sum(0)[..., None].repeat(3, -1).astype("uint8") * 8
    contents = encoded(smooth, "JPEG", quality=95)
    expected = np.array(Image.open(io.BytesIO(contents))).astype(int)
    difference = np.abs(images.decode(contents).numpy().astype(int) - expected)
    assert difference.max() <= 8 and difference.mean() <= 3  # TensorFlow takes the fast transform, Pillow the exact one


def test_the_first_frame_of_a_gif_and_the_high_byte_of_16_bits_are_taken():
    frames = [Image.new("L", (4, 4), value) for value in (10, 200)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    assert np.all(images.decode(out.getvalue()).numpy() == 10)
    deep = io.BytesIO()
    Image.fromarray(np.full((4, 4), 0x7B2A, "uint16")).save(deep, "PNG")
    assert np.all(images.decode(deep.getvalue()).numpy() == 0x7B)


def test_damaged_bytes_are_an_invalid_argument():
    with pytest.raises(tf.errors.InvalidArgumentError):
        images.decode(encoded(noise(9, 9, 3))[:60])


@given(value=st.integers(0, 255), found=st.integers(1, 4), wanted=st.sampled_from([1, 3]))
def test_grey_survives_every_conversion_and_alpha_never_counts(value, found, wanted):
    pixels = np.full((2, 3, found), value, "uint8")
    if found in (2, 4):
        pixels[..., -1] = 255 - value
    assert np.all(images.convert(tf.constant(pixels), wanted).numpy() == value)
    assert images.convert(tf.constant(pixels), wanted).shape == (2, 3, wanted)


def test_colour_becomes_the_luma_that_pillow_computes():
    pixels = noise(8, 8, 3)
    expected = np.array(Image.fromarray(pixels).convert("L")).astype(int)[..., None]
    assert np.abs(images.convert(tf.constant(pixels), 1).numpy().astype(int) - expected).max() <= 1


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    wanted=st.tuples(st.integers(1, 16), st.integers(1, 16), st.sampled_from([1, 3])),
    resize=st.sampled_from(images.RESIZES),
    value=st.integers(0, 255),
)
def test_any_size_fits_any_shape_and_a_plain_image_stays_plain(size, wanted, resize, value):
    fitted = images.fit(tf.fill((*size, 3), tf.constant(value, tf.uint8)), wanted, resize).numpy()
    assert fitted.shape == wanted and fitted.dtype == np.uint8
    assert set(np.unique(fitted)) <= ({0, value} if resize == "pad" else {value})


def test_the_same_size_changes_nothing():
    pixels = noise(6, 5, 3)
    for resize in images.RESIZES:
        assert np.array_equal(images.fit(tf.constant(pixels), (6, 5, 3), resize), pixels)
        dynamic = tf.function(lambda x, how=resize: images.fit(x, (6, 5, 3), how), [tf.TensorSpec([None] * 3, "uint8")])
        assert np.array_equal(dynamic(pixels), pixels)


def test_stretch_crop_and_pad_keep_what_they_say():
    wide = np.zeros((4, 8, 1), "uint8")
    wide[:, :2], wide[:, -2:] = 50, 200
    assert set(np.unique(images.fit(wide, (4, 4, 1), "crop"))) == {0}
    stretched = images.fit(wide, (4, 4, 1), "stretch").numpy()[0, :, 0]
    assert stretched[0] > 25 and stretched[-1] > 100 and stretched[1] < stretched[0]
    padded = images.fit(np.full((4, 8, 1), 90, "uint8"), (8, 8, 1), "pad").numpy()[:, 0, 0]
    assert padded.tolist() == [0, 0, 90, 90, 90, 90, 0, 0]


def test_shrinking_averages_and_does_not_pick():
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype("uint8")[..., None]
    small = images.fit(board, (8, 8, 1)).numpy().astype(int)
    assert np.abs(small - 127).max() <= 3


def test_bytes_and_pixels_alone_in_batches_in_tf_data_and_in_a_saved_model_agree(tmp_path):
    pixels = noise(3, 11, 9, 3)
    contents = tf.constant([encoded(image) for image in pixels])
    shape = (8, 6, 1)
    alone = np.stack([images.pixels(image, shape) for image in pixels])
    from_bytes = np.stack([images.pixels(one, shape) for one in contents])
    data = tf.data.Dataset.from_tensor_slices(contents).map(lambda one: images.pixels(one, shape))
    module = tf.Module()
    spec = [tf.TensorSpec([None], tf.string)]
    module.serve = tf.function(lambda strings: images.pixels(strings, shape), spec)
    tf.saved_model.save(module, str(tmp_path))
    served = tf.saved_model.load(str(tmp_path)).serve(contents)
    for other in (
        images.pixels(pixels, shape),
        from_bytes,
        images.pixels(contents, shape),
        np.stack(list(data)),
        served,
    ):
        assert np.array_equal(other, alone)
    assert tf.saved_model.load(str(tmp_path)).serve(tf.constant([], tf.string)).shape == (0, *shape)


def test_a_batch_of_unlike_images_becomes_one_shape():
    contents = tf.constant([encoded(noise(3, 4, 1)), encoded(noise(9, 2, 3)), encoded(noise(5, 5, 4))])
    assert images.pixels(contents, (7, 7, 3)).shape == (3, 7, 7, 3)


def test_standardize_is_the_formula_and_bgr_reverses_at_the_end():
    pixels = noise(2, 3, 3, 3)
    mean, std = [10.0, 20.0, 30.0], [2.0, 4.0, 5.0]
    expected = (pixels - np.float32(mean)) / np.float32(std)
    found = images.standardize(pixels, {"mean": mean, "std": std, "order": "rgb"})
    assert found.dtype == tf.float32 and np.allclose(found, expected, atol=1e-6)
    swapped = images.standardize(pixels, {"mean": mean, "std": std, "order": "bgr"})
    assert np.allclose(swapped, expected[..., ::-1], atol=1e-6)


def test_what_is_not_an_image_is_refused():
    with pytest.raises(ValueError, match=r"uint8 pixels .* Received: float32 \(2, 2, 3\)"):
        images.pixels(np.zeros((2, 2, 3), "float32"), (2, 2, 3))
    with pytest.raises(ValueError, match="Received: 4"):
        images.convert(tf.zeros((2, 2, 3), tf.uint8), 4)
    with pytest.raises(UsageError, match="Did you mean 'crop'"):
        images.fit(tf.zeros((2, 2, 3), tf.uint8), (2, 2, 3), "croop")
