"""Convolution over words: filters that each look for a phrase, and how strongly they find it anywhere in the text.

    python -m pipelines.text_classification --model text_cnn

The network of Kim 2014: one layer of filters of several widths over word vectors, the maximum over time of each,
dropout, and a linear layer. Padding never changes an answer, and a text of one word is long enough. Deviations: places
that see nothing but padding are left out of the maximum, where the paper's program counts those within its longest
text; the paper's bound of 3 on the weights of an answer is an argument, off by default.
"""

import keras
from keras import ops

from models.layers.classification import check_choice, check_sizes, logits, token_input
from models.layers.embeddings import PaddingMask, TokenEmbedding
from models.layers.regularization import check_rate

VECTORS = ("trained", "static", "multichannel")
SIZES: dict[str, dict] = {  # Kim 2014, section 3.1, and the variants of section 3.3, table 2
    variant: {
        "embedding_dim": 300,
        "kernel_sizes": (3, 4, 5),
        "filters": 100,
        "dropout": 0.5,
        "max_norm": 3.0,
        "vectors": vectors,
    }
    for variant, vectors in {"non_static": "trained", "static": "static", "multichannel": "multichannel"}.items()
}


@keras.saving.register_keras_serializable("dl_essentials")
class PhraseFilters(keras.layers.Layer):
    """Filters over all places of a text that see one token or more, and the maximum of each over time.

    Args:
        filters: number of filters, c.
        kernel_size: tokens that a filter sees.

    Input shape: vectors (b, t, d) and a mask (b, t) bool, false for padding.
    Output shape: (b, c); zeros for a text without tokens.

    Reference: Kim 2014, eq. 2 to 4.
    """

    def __init__(self, filters: int, kernel_size: int, **kwargs):
        super().__init__(**kwargs)
        self.filters, self.kernel_size = filters, kernel_size
        self.convolution = keras.layers.Conv1D(
            filters, kernel_size, activation="relu", name="convolution", dtype=self.dtype_policy
        )

    def build(self, input_shape):
        self.convolution.build(input_shape)

    def call(self, x, mask):
        real = ops.cast(mask[:, :, None], x.dtype)  # (b, t, 1)
        beyond = [[0, 0], [self.kernel_size - 1] * 2, [0, 0]]
        found = self.convolution(ops.pad(x * real, beyond))  # (b, t + kernel_size - 1, c)
        seen = ops.max_pool(ops.pad(real, beyond), self.kernel_size, strides=1, data_format="channels_last")
        return ops.max(found * seen, axis=1)  # what relu answers is at least 0

    def get_config(self):
        return super().get_config() | {"filters": self.filters, "kernel_size": self.kernel_size}


def text_cnn(
    vocab_size: int,
    num_classes: int,
    *,
    embedding_dim: int = 64,
    kernel_sizes=(3, 4, 5),
    filters: int = 100,
    vectors: str = "trained",
    max_norm: float | None = None,
    dropout: float = 0.5,
    name: str = "text_cnn",
) -> keras.Model:
    """Builds a convolutional classifier of texts.

    Args:
        vocab_size: number of tokens, padding (0) and the other special ids counted.
        num_classes: number of answers.
        embedding_dim: length of a word vector.
        kernel_sizes: widths of the filters, in tokens.
        filters: filters of each width.
        vectors: "trained" with the rest, "static", which stay as they are (for vectors of another training, set by
            `model.get_layer("static_embedding").set_weights`), or "multichannel": both, seen by the same filters.
        max_norm: longest weight vector of an answer, to which longer ones are cut after each update; None for no bound.
        dropout: share of the features dropped in training.
        name: name of the model.

    Returns:
        A model from `token_ids` (b, t) int32 to logits (b, num_classes). `features` holds the maximum of every filter.

    Raises:
        ValueError: an argument is not as described.

    Reference: Kim 2014, "Convolutional neural networks for sentence classification", section 2 and fig. 1.
    """
    token_ids = token_input(vocab_size, builder="text_cnn")  # (b, t)
    check_sizes("embedding_dim", embedding_dim)
    check_sizes("filters", filters)
    check_choice("vectors", vectors, VECTORS)
    kernel_sizes = check_sizes("kernel_sizes", kernel_sizes)
    if len(set(kernel_sizes)) < len(kernel_sizes):
        raise ValueError(f"kernel_sizes must differ. Received: {kernel_sizes}")
    check_rate("dropout", dropout)
    mask = PaddingMask(name="mask")(token_ids)
    channels = []
    if vectors != "trained":
        channels.append(TokenEmbedding(vocab_size, embedding_dim, trainable=False, name="static_embedding")(token_ids))
    if vectors != "static":
        channels.append(TokenEmbedding(vocab_size, embedding_dim, name="embedding")(token_ids))  # (b, t, d)
    # A filter is applied to both channels and its answers are added: the same as a filter of their sum.
    x = channels[0] if len(channels) == 1 else keras.layers.Add(name="channels")(channels)
    maxima = [PhraseFilters(filters, size, name=f"filters{size}")(x, mask) for size in kernel_sizes]  # (b, c) each
    features = maxima[0] if len(maxima) == 1 else keras.layers.Concatenate(name="joined")(maxima)
    features = keras.layers.Identity(name="features")(features)  # (b, len(kernel_sizes) * c)
    return keras.Model(token_ids, logits(features, num_classes, dropout=dropout, max_norm=max_norm), name=name)
