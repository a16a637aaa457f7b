"""A transformer that reads a text and names its class: the encoder's blocks, the mean of their answers, a linear head.

    python -m pipelines.text_classification --model text_transformer

Deviations from Vaswani et al. 2017, of whom it takes the encoder: normalization comes before each sub-layer by default
("pre"), so that it trains without a warm-up, and the mean over all tokens is what is classified.
"""

import keras
from keras import ops

from models.layers.classification import check_sizes, logits
from models.layers.embeddings import PaddingMask, PositionEmbedding, TokenEmbedding
from models.layers.transformer_block import TransformerBlock, block_arguments

SIZES: dict[str, dict] = {
    # The encoder of Vaswani et al. 2017, table 3.
    "base": {"width": 512, "depth": 6, "num_heads": 8, "hidden_dim": 2048, "dropout": 0.1, "normalization": "post"},
    # Turc et al. 2019, "Well-read students learn better", table 1: the small sizes of BERT.
    "tiny": {"width": 128, "depth": 2, "num_heads": 2, "hidden_dim": 512},
    "mini": {"width": 256, "depth": 4, "num_heads": 4, "hidden_dim": 1024},
    "small": {"width": 512, "depth": 4, "num_heads": 8, "hidden_dim": 2048},
}


@keras.saving.register_keras_serializable("dl_essentials")
class MaskedMean(keras.layers.Layer):
    """The mean over the places where a mask is true; zeros where there are none.

    Input shape: (b, t, d), and `padding_mask` (b, t) bool.
    Output shape: (b, d)
    """

    def call(self, x, padding_mask):
        shares = ops.cast(padding_mask, "float32")  # (b, t)
        shares = shares / ops.maximum(ops.sum(shares, axis=1, keepdims=True), 1.0)
        return ops.cast(ops.einsum("bt,btd->bd", shares, ops.cast(x, "float32")), x.dtype)  # (b, d)


def text_transformer(
    vocab_size: int,
    num_classes: int,
    *,
    width: int = 64,
    depth: int = 2,
    num_heads: int = 4,
    hidden_dim: int = 128,
    dropout: float = 0.1,
    normalization: str = "pre",
    activation: str = "gelu",
    epsilon: float = 1e-6,
    use_bias: bool = True,
    positions: str = "sinusoidal",
    max_length: int = 512,
    attention: str = "full",
    num_kv_heads: int | None = None,
    window: int = 128,
    block_size: int = 64,
    window_blocks: int = 1,
    num_global: int = 1,
    name: str = "text_transformer",
) -> keras.Model:
    """Builds a transformer that classifies texts.

    Args:
        vocab_size: number of tokens; 0 is padding.
        num_classes: number of answers.
        width: length of a token's vector, d.
        depth: number of blocks.
        num_heads: attention heads; they share the width equally.
        hidden_dim: width of the hidden dense layer of a block.
        dropout: share dropped in training of the embeddings, of the output of each sub-layer and of the features.
        normalization: "pre", before each sub-layer, or "post", after each shortcut.
        activation: of the hidden dense layers.
        epsilon: added to the variance in layer normalization.
        use_bias: whether the projections of attention have a bias.
        positions: "sinusoidal", "learned", "rotary" or "none".
        max_length: number of learned positions; later places get the last one.
        attention: kind of attention: "full", "window", "block_sparse", "linear" or "chunked"; see
            `models.layers.attention.MultiHeadAttention` for this and the next arguments.
        num_kv_heads: heads of keys and values; None for `num_heads`.
        window: of "window", in tokens.
        block_size: of "block_sparse" and "chunked", in tokens.
        window_blocks: of "block_sparse".
        num_global: of "block_sparse", in tokens.
        name: name of the model.

    Returns:
        A model from `token_ids` (b, t) to logits (b, num_classes). `features` is the mean over the tokens after the
        last block, zeros of a text without tokens.

    Raises:
        ValueError: sizes do not fit each other, or an argument is not as described.

    Reference: Vaswani et al. 2017, section 3.1; Xiong et al. 2020, figure 1, for "pre".
    """
    block = block_arguments(
        width=width,
        num_heads=num_heads,
        hidden_dim=hidden_dim,
        dropout=dropout,
        normalization=normalization,
        activation=activation,
        epsilon=epsilon,
        use_bias=use_bias,
        positions=positions,
        attention=attention,
        num_kv_heads=num_kv_heads,
        window=window,
        block_size=block_size,
        window_blocks=window_blocks,
        num_global=num_global,
    )
    check_sizes("depth", depth)
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")  # (b, t)
    mask = PaddingMask(name="padding_mask")(token_ids)
    x = TokenEmbedding(vocab_size, width, scale=True, name="token_embedding")(token_ids)  # (b, t, d)
    if positions in ("sinusoidal", "learned"):
        x = PositionEmbedding(positions, max_length, name="position_embedding")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="embedding_dropout")(x)
    for index in range(depth):
        x = TransformerBlock(**block, name=f"block{index + 1}")(x, padding_mask=mask)
    if normalization == "pre":
        x = keras.layers.LayerNormalization(epsilon=epsilon, name="encoder_norm")(x)
    x = MaskedMean(name="features")(x, mask)  # (b, d)
    return keras.Model(token_ids, logits(x, num_classes, dropout=dropout), name=name)
