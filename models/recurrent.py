"""Recurrent networks: simple RNN, LSTM and GRU, one way or both ways, stacked; as text classifiers and as a layer.

    python -m pipelines.text_classification --model lstm
    python -m pipelines.token_classification --model lstm_tagger

`simple_rnn`, `lstm` and `gru` put the layer `Recurrent` between token embeddings and logits; `lstm_tagger` answers at
every token. Padding never changes an answer. A classifier that reads one way can be streamed: `Stream` takes a text
piece by piece and answers after each as one long call would. Deviations: the GRU has its reset gate after the product
(as cuDNN and PyTorch; Cho et al. 2014 have it before), LSTMs have no peepholes, and no conditional random field is put
on top of the tagger (Huang et al. 2015 compare both).
"""

from typing import Any

import keras
from keras import ops

from models.layers.classification import check_choice, check_sizes, logits, token_input
from models.layers.decoding import PAD
from models.layers.embeddings import PaddingMask, TokenEmbedding
from models.layers.recurrent import Recurrent
from models.layers.regularization import check_rate

SIZES: dict[str, dict] = {}  # none is published for classifiers of this kind
POOLINGS = ("last", "mean", "max")


@keras.saving.register_keras_serializable("dl_essentials")
class SequencePooling(keras.layers.Layer):
    """One vector for a padded sequence: the mean or the maximum over its tokens, or its last state.

    Args:
        kind: "last", "mean" or "max".

    Input shape: outputs (b, t, d), the states of `Recurrent`, and a mask (b, t) bool.
    Output shape: (b, d); zeros for a sequence without tokens.
    """

    def __init__(self, kind: str = "last", **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True  # the mask is an input
        self.kind = check_choice("pooling", kind, POOLINGS)

    def compute_mask(self, *inputs, **masks):
        """None: what comes out has no time."""

    def call(self, x, states, mask):
        if self.kind == "last":
            return ops.concatenate([state[0] for state in states[-1]], axis=-1)
        real = ops.cast(mask[:, :, None], x.dtype)  # (b, t, 1)
        if self.kind == "mean":
            return ops.sum(x * real, axis=1) / ops.maximum(ops.sum(real, axis=1), 1.0)
        return ops.max(ops.where(mask[:, :, None], x, -1.0), axis=1) * ops.max(real, axis=1)  # outputs are above -1

    def get_config(self):
        return super().get_config() | {"kind": self.kind}


def classifier(
    cell: str,
    vocab_size: int,
    num_classes: int,
    *,
    embedding_dim: int,
    width: int,
    depth: int,
    bidirectional: bool,
    pooling: str,
    normalization: str,
    dropout: float,
    recurrent_dropout: float,
    name: str,
) -> keras.Model:
    """The text classifier of any cell; `simple_rnn`, `lstm` and `gru` tell about its arguments."""
    token_ids = token_input(vocab_size, builder=name)  # (b, t)
    check_sizes("embedding_dim", embedding_dim)
    check_choice("pooling", pooling, POOLINGS)
    mask = PaddingMask(name="mask")(token_ids)
    x = TokenEmbedding(vocab_size, embedding_dim, name="embedding")(token_ids)  # (b, t, m)
    if check_rate("dropout", dropout):
        x = keras.layers.Dropout(dropout, name="embedding_dropout")(x)
    x, states = Recurrent(
        cell,
        width,
        depth=depth,
        bidirectional=bidirectional,
        normalization=normalization,
        dropout=dropout,
        recurrent_dropout=recurrent_dropout,
        name="recurrent",
    )(x, mask=mask)  # (b, t, d)
    x = SequencePooling(pooling, name="features")(x, states, mask)  # (b, d)
    return keras.Model(token_ids, logits(x, num_classes, dropout=dropout), name=name)


def lstm(
    vocab_size: int,
    num_classes: int,
    *,
    embedding_dim: int = 64,
    width: int = 64,
    depth: int = 1,
    bidirectional: bool = True,
    pooling: str = "last",
    normalization: str = "none",
    dropout: float = 0.3,
    recurrent_dropout: float = 0.0,
    name: str = "lstm",
) -> keras.Model:
    """Builds a classifier of texts from LSTM layers.

    Args:
        vocab_size: number of tokens, padding (0) and the other special ids counted.
        num_classes: number of answers.
        embedding_dim: length of a token's vector.
        width: units of a layer in each direction.
        depth: number of layers.
        bidirectional: whether every layer reads both ways.
        pooling: what stands for the text: the "last" states, or the "mean" or "max" over its tokens.
        normalization: "none", or "layer" for layer normalization inside of the cells.
        dropout: share dropped in training of the embeddings, between layers, and of the features.
        recurrent_dropout: share of the units that a text's steps do not hand to the next.
        name: name of the model.

    Returns:
        A model from `token_ids` (b, t) int32 to logits (b, num_classes). `features` is the text's vector.

    Raises:
        ValueError: an argument is not as described.

    Reference: Hochreiter and Schmidhuber 1997, "Long short-term memory"; Gers et al. 2000 for the
        forget gate.
    """
    return classifier(
        "lstm",
        vocab_size,
        num_classes,
        embedding_dim=embedding_dim,
        width=width,
        depth=depth,
        bidirectional=bidirectional,
        pooling=pooling,
        normalization=normalization,
        dropout=dropout,
        recurrent_dropout=recurrent_dropout,
        name=name,
    )


def gru(
    vocab_size: int,
    num_classes: int,
    *,
    embedding_dim: int = 64,
    width: int = 64,
    depth: int = 1,
    bidirectional: bool = True,
    pooling: str = "last",
    normalization: str = "none",
    dropout: float = 0.3,
    recurrent_dropout: float = 0.0,
    name: str = "gru",
) -> keras.Model:
    """Builds a classifier of texts from layers of gated recurrent units.

    Args, returns and errors: as of `lstm`.

    Reference: Cho et al. 2014, "Learning phrase representations using RNN encoder-decoder", eq. 5 to 8.
    """
    return classifier(
        "gru",
        vocab_size,
        num_classes,
        embedding_dim=embedding_dim,
        width=width,
        depth=depth,
        bidirectional=bidirectional,
        pooling=pooling,
        normalization=normalization,
        dropout=dropout,
        recurrent_dropout=recurrent_dropout,
        name=name,
    )


def simple_rnn(
    vocab_size: int,
    num_classes: int,
    *,
    embedding_dim: int = 64,
    width: int = 64,
    depth: int = 1,
    bidirectional: bool = True,
    pooling: str = "last",
    normalization: str = "none",
    dropout: float = 0.3,
    recurrent_dropout: float = 0.0,
    name: str = "simple_rnn",
) -> keras.Model:
    """Builds a classifier of texts from simple recurrent layers, h' = tanh(W x + U h + b).

    Args, returns and errors: as of `lstm`.

    Reference: Elman 1990, "Finding structure in time".
    """
    return classifier(
        "simple_rnn",
        vocab_size,
        num_classes,
        embedding_dim=embedding_dim,
        width=width,
        depth=depth,
        bidirectional=bidirectional,
        pooling=pooling,
        normalization=normalization,
        dropout=dropout,
        recurrent_dropout=recurrent_dropout,
        name=name,
    )


def lstm_tagger(
    vocab_size: int,
    num_classes: int,
    *,
    embedding_dim: int = 64,
    width: int = 64,
    depth: int = 1,
    normalization: str = "none",
    dropout: float = 0.3,
    recurrent_dropout: float = 0.0,
    name: str = "lstm_tagger",
) -> keras.Model:
    """Builds a tagger of tokens from LSTM layers that read both ways.

    Args and errors: as of `lstm`.

    Returns:
        A model from `token_ids` (b, t) int32 to logits (b, t, num_classes).

    Reference: Huang et al. 2015, "Bidirectional LSTM-CRF models for sequence tagging", section 2.2.
    """
    token_ids = token_input(vocab_size, builder=name)  # (b, t)
    check_sizes("embedding_dim", embedding_dim)
    mask = PaddingMask(name="mask")(token_ids)
    x = TokenEmbedding(vocab_size, embedding_dim, name="embedding")(token_ids)  # (b, t, m)
    if check_rate("dropout", dropout):
        x = keras.layers.Dropout(dropout, name="embedding_dropout")(x)
    x, _ = Recurrent(
        "lstm",
        width,
        depth=depth,
        bidirectional=True,
        normalization=normalization,
        dropout=dropout,
        recurrent_dropout=recurrent_dropout,
        name="recurrent",
    )(x, mask=mask)  # (b, t, d)
    return keras.Model(token_ids, logits(x, num_classes, dropout=dropout), name=name)  # (b, t, k)


class Stream:
    """Reads texts piece by piece with a classifier that reads one way.

        stream = Stream(lstm(1000, 2, bidirectional=False))
        for piece in pieces:  # (b, t) int32 of any t
            logits = stream(piece)  # (b, k), as of one call with all pieces so far

    Args:
        model: a model of `simple_rnn`, `lstm` or `gru` with `bidirectional=False` and `pooling="last"`.

    Raises:
        ValueError: the model reads both ways or pools otherwise, or the number of texts changes without a `reset`.
    """

    def __init__(self, model: keras.Model):
        self.embedding, self.recurrent = model.get_layer("embedding"), model.get_layer("recurrent")
        self.logits = model.get_layer("logits")
        pooling = model.get_layer("features").kind
        if self.recurrent.bidirectional or pooling != "last":
            raise ValueError(
                'Stream expects a model with bidirectional=False and pooling="last". Received: '
                f"bidirectional={self.recurrent.bidirectional}, pooling={pooling!r}"
            )
        self.state: Any = None

    def step(self, token_ids, state=None):
        """The answer after a piece, and the state to hand to the next; without memory, so that it can be compiled.

        Args:
            token_ids: (b, t) int32; padding is passed over.
            state: what the last call returned; None at the start of a text.

        Returns:
            Logits (b, k), and the state.
        """
        _, state = self.recurrent(self.embedding(token_ids), mask=ops.not_equal(token_ids, PAD), initial_state=state)
        return self.logits(state[-1][0][0]), state

    def __call__(self, token_ids):
        token_ids = ops.convert_to_tensor(token_ids, "int32")
        if self.state is not None and self.state[0][0][0].shape[0] != token_ids.shape[0]:
            raise ValueError(
                f"Expected a piece of each of {self.state[0][0][0].shape[0]} texts; call reset() to begin new ones. "
                f"Received: {token_ids.shape[0]}"
            )
        answer, self.state = self.step(token_ids, self.state)
        return answer

    def reset(self) -> None:
        """Begins new texts."""
        self.state = None
