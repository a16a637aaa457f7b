"""Vision transformer: an image as a sentence of patches, read by self-attention.

    python -m pipelines.image_classification --model vit

Expect at least 92 % on the 8x8 digits, less than logistic regression: it has to learn from few images what a
convolution knows (95 % and more with `--augment none --learning_rate 1e-3`). Sizes are those of Dosovitskiy et al. 2021
and Steiner et al. 2022; published Hugging Face checkpoints load through `models.checkpoints`. Deviation: the hidden
layer with tanh that the paper puts before the head in pre-training is left out, as the published classifiers do.
"""

import math

import keras

from models.layers.classification import check_sizes, image_input, logits
from models.layers.regularization import check_rate, stochastic_depth

SIZES: dict[str, dict] = {
    # Steiner et al. 2022, "How to train your ViT?", table 2
    "ti16": {"patch_size": 16, "width": 192, "depth": 12, "num_heads": 3, "hidden_dim": 768},
    "s16": {"patch_size": 16, "width": 384, "depth": 12, "num_heads": 6, "hidden_dim": 1536},
    # Dosovitskiy et al. 2021, table 1
    "b16": {"patch_size": 16, "width": 768, "depth": 12, "num_heads": 12, "hidden_dim": 3072},
    "b32": {"patch_size": 32, "width": 768, "depth": 12, "num_heads": 12, "hidden_dim": 3072},
    "l16": {"patch_size": 16, "width": 1024, "depth": 24, "num_heads": 16, "hidden_dim": 4096},
}
RESOLUTION = dict.fromkeys(SIZES, 224)  # pixels


@keras.saving.register_keras_serializable("dl_essentials")
class ClassToken(keras.layers.Layer):
    """Puts one learned token in front of a sequence.

    Input shape: (b, t, d)
    Output shape: (b, 1 + t, d)

    Reference: Dosovitskiy et al. 2021, eq. 1.
    """

    def build(self, input_shape):
        self.token = self.add_weight(shape=(1, 1, input_shape[-1]), initializer="zeros", name="token")

    def call(self, x):
        tokens = keras.ops.repeat(keras.ops.cast(self.token, x.dtype), keras.ops.shape(x)[0], axis=0)  # (b, 1, d)
        return keras.ops.concatenate([tokens, x], axis=1)  # (b, 1 + t, d)


@keras.saving.register_keras_serializable("dl_essentials")
class PositionEmbedding(keras.layers.Layer):
    """Adds one learned vector for each place of the sequence.

    Input shape: (b, t, d)
    Output shape: (b, t, d)

    Reference: Dosovitskiy et al. 2021, eq. 1 and appendix D.4.
    """

    def build(self, input_shape):
        start = keras.initializers.RandomNormal(stddev=0.02)
        self.positions = self.add_weight(shape=(1, *input_shape[1:]), initializer=start, name="positions")

    def call(self, x):
        return x + keras.ops.cast(self.positions, x.dtype)  # (b, t, d)


def vit(
    input_shape,
    num_classes: int,
    *,
    patch_size: int = 2,
    width: int = 64,
    depth: int = 4,
    num_heads: int = 4,
    hidden_dim: int = 128,
    epsilon: float = 1e-6,
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
    name: str = "vit",
) -> keras.Model:
    """Builds a vision transformer.

    Args:
        input_shape: (h, w, c), pixels; all three must be known.
        num_classes: number of answers.
        patch_size: side of a patch, in pixels; it must divide height and width.
        width: length of a token.
        depth: number of encoder blocks.
        num_heads: attention heads; they share the width equally.
        hidden_dim: width of the hidden layer after each attention.
        epsilon: added to the variance in layer normalization (1e-12 in Hugging Face checkpoints).
        dropout: share dropped in training after the positions, after every dense layer of a block, and of the features.
        stochastic_depth: rate at which the last block is dropped in training; the rates before it grow linearly.
        name: name of the model.

    Returns:
        A model from `image` (b, h, w, c) to logits (b, num_classes). `features` is the class token after the last
        normalization.

    Raises:
        ValueError: the patch does not divide the image, the heads do not divide the width, or an argument is not as
            described.

    Reference: Dosovitskiy et al. 2021, "An image is worth 16x16 words", eq. 1 to 4 and fig. 1; Hendrycks and Gimpel
        2016, eq. 1, for GELU.
    """
    for argument, value in (("width", width), ("depth", depth), ("num_heads", num_heads), ("hidden_dim", hidden_dim)):
        check_sizes(argument, value)
    check_sizes("patch_size", patch_size)
    check_rate("dropout", dropout)
    check_rate("stochastic_depth", stochastic_depth)
    image = image_input(input_shape, minimum=patch_size, fixed=True, builder="vit")
    rows, columns = image.shape[1] // patch_size, image.shape[2] // patch_size
    if image.shape[1] % patch_size or image.shape[2] % patch_size:
        raise ValueError(f"patch_size must divide height and width. Received: {patch_size} for {tuple(input_shape)}")
    if width % num_heads:
        raise ValueError(f"num_heads must divide width. Received: num_heads={num_heads}, width={width}")

    x = keras.layers.Conv2D(width, patch_size, strides=patch_size, name="patch_embedding")(image)  # (b, rows, cols, d)
    x = keras.layers.Reshape((rows * columns, width), name="patch_tokens")(x)  # (b, t, d)
    x = ClassToken(name="class_token")(x)  # (b, 1 + t, d)
    x = PositionEmbedding(name="position_embedding")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="embedding_dropout")(x)
    for index in range(depth):
        drop = stochastic_depth * index / depth
        x = _block(x, num_heads, hidden_dim, epsilon, dropout, drop, name=f"block{index + 1}")
    x = keras.layers.LayerNormalization(epsilon=epsilon, name="encoder_norm")(x)
    x = keras.layers.Cropping1D((0, rows * columns), name="class_token_output")(x)  # (b, 1, d)
    x = keras.layers.Flatten(name="features")(x)  # (b, d)
    return keras.Model(image, logits(x, num_classes, dropout=dropout), name=name)


def _block(x, num_heads, hidden_dim, epsilon, dropout, drop, *, name):
    """An encoder block: attention, then two dense layers, each normalized before and beside a shortcut (eq. 2, 3)."""
    width = x.shape[-1]
    y = keras.layers.LayerNormalization(epsilon=epsilon, name=f"{name}_attention_norm")(x)
    y = keras.layers.MultiHeadAttention(num_heads, width // num_heads, name=f"{name}_attention")(y, y)  # (b, t, d)
    if dropout:
        y = keras.layers.Dropout(dropout, name=f"{name}_attention_dropout")(y)
    y = stochastic_depth(y, drop, name=f"{name}_attention_drop")
    x = keras.layers.Add(name=f"{name}_attention_add")([x, y])
    y = keras.layers.LayerNormalization(epsilon=epsilon, name=f"{name}_mlp_norm")(x)
    y = keras.layers.Dense(hidden_dim, name=f"{name}_mlp_hidden")(y)  # (b, t, hidden_dim)
    y = keras.layers.Activation("gelu", name=f"{name}_mlp_gelu")(y)
    if dropout:
        y = keras.layers.Dropout(dropout, name=f"{name}_mlp_hidden_dropout")(y)
    y = keras.layers.Dense(width, name=f"{name}_mlp_output")(y)  # (b, t, d)
    if dropout:
        y = keras.layers.Dropout(dropout, name=f"{name}_mlp_dropout")(y)
    y = stochastic_depth(y, drop, name=f"{name}_mlp_drop")
    return keras.layers.Add(name=f"{name}_mlp_add")([x, y])


def attention_maps(model: keras.Model, images):
    """How much each token looks at each other token, in every block and head.

    Args:
        model: a model of `vit`.
        images: (b, h, w, c), as the model expects them.

    Returns:
        (b, depth, n, 1 + t, 1 + t); token 0 is the class token, and every last row sums to 1.
    """
    blocks = [layer for layer in model.layers if isinstance(layer, keras.layers.MultiHeadAttention)]
    entries = [model.get_layer(f"{layer.name}_norm").output for layer in blocks]
    tokens = keras.Model(model.input, entries)(images, training=False)
    maps = [layer(x, x, return_attention_scores=True)[1] for layer, x in zip(blocks, tokens)]  # each (b, n, t, t)
    return keras.ops.stack(maps, axis=1)  # (b, depth, n, 1 + t, 1 + t)


def attention_rollout(maps):
    """How much the class token draws from each patch, through all blocks.

    Args:
        maps: (b, depth, n, 1 + t, 1 + t), of `attention_maps`.

    Returns:
        (b, t), whose rows are at most 1 in sum: the rest is what the class token keeps of itself.

    Reference: Abnar and Zuidema 2020, "Quantifying attention flow in transformers", section 3.
    """
    mean = keras.ops.mean(maps, axis=2)  # (b, depth, t, t)
    steps = 0.5 * mean + 0.5 * keras.ops.eye(mean.shape[-1], dtype=mean.dtype)
    total = steps[:, 0]  # (b, t, t)
    for block in range(1, steps.shape[1]):
        total = keras.ops.matmul(steps[:, block], total)
    return total[:, 0, 1:]  # (b, t)


def hugging_face_weights(model: keras.Model) -> dict:
    """The weights of a model of `vit` by Hugging Face's names of them, without the prefix `vit.`."""

    def pair(key, layer):
        return {f"{key}.weight": layer.weights[0], f"{key}.bias": layer.weights[1]}

    get = model.get_layer
    names = {"embeddings.cls_token": get("class_token").weights[0]}
    names["embeddings.position_embeddings"] = get("position_embedding").weights[0]
    names |= pair("embeddings.patch_embeddings.projection", get("patch_embedding"))
    depth = sum(isinstance(layer, keras.layers.MultiHeadAttention) for layer in model.layers)
    for index in range(depth):
        theirs, block = f"encoder.layer.{index}", f"block{index + 1}"
        attention = get(f"{block}_attention")
        names |= pair(f"{theirs}.layernorm_before", get(f"{block}_attention_norm"))
        for part in ("query", "key", "value"):
            names |= pair(f"{theirs}.attention.attention.{part}", getattr(attention, f"{part}_dense"))
        names |= pair(f"{theirs}.attention.output.dense", attention.output_dense)
        names |= pair(f"{theirs}.layernorm_after", get(f"{block}_mlp_norm"))
        names |= pair(f"{theirs}.intermediate.dense", get(f"{block}_mlp_hidden"))
        names |= pair(f"{theirs}.output.dense", get(f"{block}_mlp_output"))
    return names | pair("layernorm", get("encoder_norm")) | pair("classifier", get("logits"))


def hugging_face_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a weight of ours has in the file: outputs before inputs, heads joined."""
    if "patch_embeddings" in key and len(shape) == 4:
        return (shape[3], shape[2], *shape[:2])
    if ".attention.attention." in key:
        joined = (shape[0], math.prod(shape[1:])) if len(shape) == 3 else (math.prod(shape),)
        return joined[::-1]
    if len(shape) == 3 and "attention.output" in key:
        return (shape[2], shape[0] * shape[1])
    return shape if key.startswith("embeddings.") else shape[::-1]


def from_hugging_face(key: str, array):
    """An array of the file with its axes in our order."""
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)  # (d, c, h, w) -> (h, w, c, d)
    return array if key.startswith("embeddings.") else array.T


def resized_positions(positions, grid: tuple[int, int]):
    """Position embeddings of a square image, interpolated to another grid of patches.

    Args:
        positions: (1, 1 + side * side, d), the class token first.
        grid: rows and columns of patches wanted.

    Returns:
        (1, 1 + rows * columns, d), an array of NumPy.

    Raises:
        ValueError: the given patches do not form a square.

    Reference: Dosovitskiy et al. 2021, section 3.2.
    """
    side = math.isqrt(positions.shape[1] - 1)
    if side**2 != positions.shape[1] - 1:
        raise ValueError(f"Positions must be of a square of patches. Received: {positions.shape[1] - 1} patches")
    patches = keras.ops.reshape(positions[:, 1:], (1, side, side, -1))  # (1, side, side, d)
    patches = keras.ops.image.resize(patches, grid, interpolation="bilinear", data_format="channels_last")
    patches = keras.ops.reshape(patches, (1, math.prod(grid), -1))  # (1, t, d)
    both = keras.ops.concatenate([keras.ops.convert_to_tensor(positions[:, :1]), patches], axis=1)  # (1, 1 + t, d)
    return keras.ops.convert_to_numpy(both)
