"""What each architecture claims: the property that its paper is about."""

from itertools import pairwise

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.convnet import convnet
from models.efficientnet import RESOLUTION, STAGES, efficientnet, scaled_depth, scaled_width
from models.efficientnet import SIZES as EFFICIENTNETS
from models.inception import inception
from models.layers.regularization import stochastic_depth
from models.lenet import SIZES as LENETS
from models.lenet import lenet
from models.mlp import SIZES as MLPS
from models.mlp import mlp
from models.resnet import SIZES as RESNETS
from models.resnet import PadChannels, resnet
from models.vgg import SIZES as VGGS
from models.vgg import vgg
from models.vit import SIZES as VITS
from models.vit import attention_maps, attention_rollout, resized_positions, vit

NOISE = np.random.default_rng(0)


def part(model, start, end):
    """The part of a model between the outputs of two layers."""
    return keras.Model(model.get_layer(start).output, model.get_layer(end).output)


def layers_of(model, kind):
    return [layer for layer in model.layers if isinstance(layer, kind)]


def test_lenet_5_has_the_classic_count_and_the_papers_map_sizes():
    model = lenet((32, 32, 1), 10, **LENETS["5"])
    assert model.count_params() == 61_706
    shapes = [model.get_layer(name).output.shape[1:] for name in ("c1_conv", "s2_pool", "c3_conv", "s4_pool")]
    assert shapes == [(28, 28, 6), (14, 14, 6), (10, 10, 16), (5, 5, 16)]
    with pytest.raises(ValueError, match="at least 16x16 pixels"):
        lenet((15, 15, 1), 10, **LENETS["5"])


def test_mlp_sizes_have_the_millions_of_weights_of_their_table():
    counts = [mlp((29, 29, 1), 10, **size).count_params() / 1e6 for size in list(MLPS.values())[:3]]
    np.testing.assert_allclose(counts, [1.34, 3.26, 6.69], atol=0.01)


def test_mlp_does_not_care_where_a_pixel_is_and_convnet_does():
    """A fixed shuffle of the pixels and of the first kernel's rows changes nothing."""
    model = mlp((4, 4, 1), 3, hidden_dims=(8,))
    images = NOISE.normal(size=(2, 4, 4, 1)).astype("float32")
    order = NOISE.permutation(16)
    expected = np.asarray(model(images))
    first = model.get_layer("hidden1_dense")
    first.kernel.assign(np.asarray(first.kernel)[order])
    np.testing.assert_allclose(model(images.reshape(2, 16)[:, order].reshape(2, 4, 4, 1)), expected, atol=1e-5)


def test_convnet_features_do_not_move_with_the_image():
    """Convolutions move with the image and the mean forgets where: on a torus, so the borders are kept empty."""
    model = convnet((None, None, 1), 3, widths=(4,), depth=1)
    image = np.zeros((1, 12, 12, 1), "float32")
    image[:, 3:6, 3:6] = NOISE.normal(size=(1, 3, 3, 1))
    features = keras.Model(model.input, model.get_layer("features").output)
    np.testing.assert_allclose(features(image), features(np.roll(image, (3, 2), (1, 2))), atol=1e-6)


def test_convnet_default_is_small():
    assert convnet((8, 8, 1), 10).count_params() == 66_218


def test_vgg_has_the_papers_depth_and_normalizes_only_on_request():
    for size, arguments in VGGS.items():
        model = vgg((32, 32, 3), 2, **(arguments | {"width": 2, "hidden_dims": (4, 4)}))
        weighted = layers_of(model, keras.layers.Conv2D) + layers_of(model, keras.layers.Dense)
        assert len(weighted) == int(size)
        assert not layers_of(model, keras.layers.BatchNormalization)
    assert layers_of(vgg((8, 8, 1), 2, normalization="batch"), keras.layers.BatchNormalization)


def test_resnet_sizes_have_the_depth_of_their_name():
    for size, arguments in RESNETS.items():
        convolutions = 3 if arguments.get("bottleneck") else 2
        assert sum(arguments["depths"]) * convolutions + 2 == int(size.removesuffix("v2"))
    for size in ("18", "50", "50v2"):
        model = resnet((32, 32, 3), 2, **(RESNETS[size] | {"width": 2}))
        shortcuts = [layer for layer in model.layers if layer.name.endswith("_0_conv")]
        weighted = layers_of(model, keras.layers.Conv2D) + layers_of(model, keras.layers.Dense)
        assert len(weighted) - len(shortcuts) == int(size.removesuffix("v2"))


def test_resnet_for_small_images_has_the_papers_millions():
    counts = [resnet((32, 32, 3), 10, **RESNETS[size]).count_params() / 1e6 for size in ("20", "56")]
    np.testing.assert_allclose(counts, [0.27, 0.85], atol=0.01)


@pytest.mark.parametrize("preactivation", [False, True])
@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_zero_residual_makes_a_block_the_identity(preactivation, bottleneck):
    model = resnet(
        (8, 8, 1), 2, depths=(2,), width=4, bottleneck=bottleneck, preactivation=preactivation, zero_init_residual=True
    )
    end = "conv2_block{}_add" if preactivation else "conv2_block{}_out"
    x = np.abs(NOISE.normal(size=(2, 8, 8, 16 if bottleneck else 4))).astype("float32")
    np.testing.assert_array_equal(part(model, end.format(1), end.format(2))(x), x)
    plain = resnet((8, 8, 1), 2, depths=(2,), width=4, bottleneck=bottleneck, preactivation=preactivation)
    assert np.abs(part(plain, end.format(1), end.format(2))(x) - x).max() > 0.01


@pytest.mark.parametrize("preactivation", [False, True])
def test_resnet_halves_the_size_once_a_stage(preactivation):
    model = resnet((16, 16, 1), 2, depths=(1, 2, 2), width=4, preactivation=preactivation)
    assert model.get_layer("features").input.shape == (None, 4, 4, 16)


def test_pad_channels_keeps_the_input_and_appends_zeros():
    x = NOISE.normal(size=(2, 3, 3, 2)).astype("float32")
    padded = np.asarray(PadChannels(3)(x))
    np.testing.assert_array_equal(padded[..., :2], x)
    assert padded.shape == (2, 3, 3, 5) and not padded[..., 2:].any()


def test_inception_lays_branches_side_by_side_and_each_one_matters():
    model = inception((8, 8, 1), 2)
    module = model.get_layer("mixed0")
    widths = [branch.shape[-1] for branch in module.input]
    assert widths == [8, 8, 12, 4] and module.output.shape[-1] == sum(widths)
    inside = part(model, "stem2_relu", "mixed0")
    x = np.abs(NOISE.normal(size=(1, 8, 8, 24))).astype("float32")
    before = np.asarray(inside(x))
    edges = np.cumsum([0, *widths])
    for index, name in enumerate(("single", "five2", "double3", "pooled")):
        bias = model.get_layer(f"mixed0_{name}_bn").beta
        bias.assign(bias + 1.0)
        changed = np.abs(np.asarray(inside(x)) - before).max(axis=(0, 1, 2)) > 0
        assert changed.nonzero()[0].min() >= edges[index] and changed.nonzero()[0].max() < edges[index + 1]
        bias.assign(bias - 1.0)


def test_inception_sees_a_larger_neighbourhood_in_longer_branches():
    """A point of light reaches 1, 5 and 5 pixels through the branches, and 3 through the pooled one."""
    model = inception((9, 9, 1), 2)
    inside = part(model, "stem2_relu", "mixed0")
    dark, point = np.zeros((2, 1, 9, 9, 24), "float32")
    point[0, 4, 4] = 1.0
    for layer in layers_of(inside, keras.layers.Conv2D):
        layer.kernel.assign(np.abs(layer.kernel))
    reach = np.any(np.asarray(inside(point)) != np.asarray(inside(dark)), axis=(0, 1))  # (w, c)
    edges = np.cumsum([0, 8, 8, 12, 4])
    assert [int(reach[:, a:b].any(axis=1).sum()) for a, b in pairwise(edges)] == [1, 5, 5, 3]


@given(channels=st.integers(8, 2000), coefficient=st.floats(0.3, 3.0))
def test_scaled_width_is_a_multiple_of_eight_near_what_was_wanted(channels, coefficient):
    width, wanted = scaled_width(channels, coefficient), channels * coefficient
    assert width % 8 == 0 and width >= max(8, 0.9 * wanted)
    assert width <= max(8, wanted + 8)


@given(blocks=st.integers(1, 10), coefficient=st.integers(100, 320).map(lambda hundredths: hundredths / 100))
def test_scaled_depth_never_loses_a_block(blocks, coefficient):
    assert blocks * coefficient <= scaled_depth(blocks, coefficient) < blocks * coefficient + 1


def test_efficientnet_b0_is_the_network_of_table_1():
    model = efficientnet((32, 32, 3), 2, **EFFICIENTNETS["b0"])
    ends = [max(n for n in (layer.name for layer in model.layers) if n.startswith(f"block{s}")) for s in range(1, 8)]
    assert [ord(name[6]) - ord("a") + 1 for name in ends] == [row[1] for row in STAGES]
    assert [model.get_layer(f"{n[:7]}_project_bn").output.shape[-1] for n in ends] == [16, 24, 40, 80, 112, 192, 320]
    assert RESOLUTION["b0"] == 224 and set(RESOLUTION) == set(EFFICIENTNETS)


def test_efficientnet_coefficients_follow_the_compound_rule():
    """Width grows as 1.1 ** phi and depth as 1.2 ** phi (section 3.3): both give nearly the same phi, size by size."""
    width = np.log([size["width_coefficient"] for size in EFFICIENTNETS.values()]) / np.log(1.1)
    depth = np.log([size["depth_coefficient"] for size in EFFICIENTNETS.values()]) / np.log(1.2)
    assert np.abs(width - depth).max() < 1.2 and np.abs(depth - np.arange(8)).max() < 1.2
    assert (np.diff(width) >= 0).all() and (np.diff(depth) > 0).all()


def test_efficientnet_rescales_pixels_itself():
    model = efficientnet((8, 8, 3), 2, rescaling=True)
    plain = efficientnet((8, 8, 3), 2)
    plain.set_weights(model.get_weights()[3:])  # all but the scaling's mean, variance and count
    pixels = NOISE.uniform(0, 255, (2, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(model(pixels), plain(pixels / 255), atol=1e-5)


def test_stochastic_depth_drops_whole_examples_and_keeps_the_mean():
    keras.utils.set_random_seed(0)
    x = keras.Input((2, 2, 3))
    model = keras.Model(x, stochastic_depth(x, 0.25, name="drop"))
    ones = np.ones((4000, 2, 2, 3), "float32")
    kept = np.asarray(model(ones, training=True)).reshape(4000, -1)
    assert set(np.unique(kept.round(4))) == {np.float32(0.0), np.float32(1.3333)}
    assert (kept == kept[:, :1]).all(), "an example is dropped whole or not at all"
    assert abs(kept.mean() - 1) < 0.03
    np.testing.assert_array_equal(model(ones), ones)
    assert stochastic_depth(x, 0.0, name="none") is x


def test_stochastic_depth_grows_linearly_with_depth():
    model = resnet((8, 8, 1), 2, depths=(2, 2), width=4, stochastic_depth=0.4)
    rates = [layer.rate for layer in model.layers if layer.name.endswith("_drop")]
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.3])


def shuffled_patches(images, order, size):
    """The same patches in another order."""
    b, h, w, c = images.shape
    rows, columns = h // size, w // size
    patches = images.reshape(b, rows, size, columns, size, c).transpose(0, 1, 3, 2, 4, 5)
    patches = patches.reshape(b, rows * columns, size, size, c)[:, order].reshape(b, rows, columns, size, size, c)
    return patches.transpose(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)


def test_vit_without_positions_does_not_see_the_order_of_patches():
    model = vit((8, 8, 1), 3, patch_size=2, width=16, depth=2, hidden_dim=16)
    images = NOISE.normal(size=(2, 8, 8, 1)).astype("float32")
    moved = shuffled_patches(images, NOISE.permutation(16), 2)
    positions = model.get_layer("position_embedding").positions
    positions.assign(NOISE.normal(size=positions.shape))
    assert np.abs(model(images) - model(moved)).max() > 1e-3
    positions.assign(np.zeros(positions.shape))
    np.testing.assert_allclose(model(images), model(moved), atol=1e-5)


def test_vit_published_sizes_have_their_counts():
    assert vit((224, 224, 3), 1000, **VITS["ti16"]).count_params() == 5_717_416
    assert vit((32, 32, 3), 2, **(VITS["b32"] | {"depth": 1})).get_layer("position_embedding").count_params() == 1536


@settings(max_examples=10, deadline=None)
@given(side=st.integers(1, 4), rows=st.integers(1, 6), columns=st.integers(1, 6))
def test_resized_positions_keep_the_token_and_stay_in_range(side, rows, columns):
    positions = NOISE.normal(size=(1, 1 + side**2, 3)).astype("float32")
    resized = resized_positions(positions, (rows, columns))
    assert resized.shape == (1, 1 + rows * columns, 3)
    np.testing.assert_array_equal(resized[:, 0], positions[:, 0])
    assert resized[:, 1:].min() >= positions[:, 1:].min() - 1e-5
    assert resized[:, 1:].max() <= positions[:, 1:].max() + 1e-5


def test_resized_positions_need_a_square():
    with pytest.raises(ValueError, match="Received: 6 patches"):
        resized_positions(np.zeros((1, 7, 2), "float32"), (2, 2))


def test_attention_maps_are_those_that_the_model_uses():
    model = vit((4, 6, 1), 3, patch_size=2, width=8, depth=2, num_heads=2, hidden_dim=8)
    images = 3 * NOISE.normal(size=(3, 4, 6, 1)).astype("float32")
    maps = np.asarray(attention_maps(model, images))
    assert maps.shape == (3, 2, 2, 7, 7) and maps.min() >= 0
    np.testing.assert_allclose(maps.sum(axis=-1), 1, atol=1e-5)
    layer = model.get_layer("block2_attention")
    tokens = np.asarray(part(model, "image", "block2_attention_norm")(images))
    values = np.einsum("btd,dnk->btnk", tokens, layer.value_dense.kernel) + layer.value_dense.bias
    mixed = np.einsum("bnts,bsnk->btnk", maps[:, 1], values)
    answer = np.einsum("btnk,nkd->btd", mixed, layer.output_dense.kernel) + layer.output_dense.bias
    np.testing.assert_allclose(answer, part(model, "image", "block2_attention")(images), atol=1e-5)


def test_rollout_sums_to_at_most_one_and_follows_a_certain_gaze():
    maps = NOISE.dirichlet(np.ones(5), size=(2, 3, 4, 5)).astype("float32")
    rollout = np.asarray(attention_rollout(maps))
    assert rollout.shape == (2, 4) and (rollout.sum(axis=1) <= 1 + 1e-5).all()
    gaze = np.broadcast_to(np.eye(5, dtype="float32"), (1, 3, 4, 5, 5)).copy()
    gaze[0, 0, :, 0] = np.eye(5)[2]  # in the first block, the class token looks at token 2 alone
    np.testing.assert_allclose(attention_rollout(gaze), [[0, 0.5, 0, 0]], atol=1e-6)
