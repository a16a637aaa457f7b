"""Recurrent encoder-decoder with attention: one network reads a text, another writes the answer token by token.

    python -m pipelines.translation --model seq2seq

Any cell and any of four attentions, or none. Training takes the truth as input (teacher forcing), or, with
`scheduled_sampling`, more and more of the network's own answers. `generate` searches greedily or with a beam, and
compiles into a SavedModel. Deviations: the attention reads with the decoder's new state, as Luong et al. 2015 do and
Bahdanau et al. 2015 do not, and its answer does not enter the next step, so that training reads the whole target at
once; the first state of each decoder layer is a tanh layer of the encoder's last states.
"""

import keras
from keras import ops

from models.layers.attention import attention as make_attention
from models.layers.classification import check_choice, check_sizes
from models.layers.decoding import START, Beams, beam_search, greedy, repeat
from models.layers.embeddings import PaddingMask, TokenEmbedding
from models.layers.recurrent import Recurrent
from models.layers.regularization import check_rate

SIZES: dict[str, dict] = {
    # Sutskever et al. 2014, section 3.4
    "sutskever": {"cell": "lstm", "width": 1000, "embedding_dim": 1000, "depth": 4}
    | {"bidirectional": False, "attention": "none", "dropout": 0.0},
    # Luong et al. 2015, section 4.1, with the attention that was best
    "luong": {"cell": "lstm", "width": 1000, "embedding_dim": 1000, "depth": 4}
    | {"bidirectional": False, "attention": "general", "dropout": 0.2},
}
ATTENTIONS = ("additive", "dot", "general", "concat", "none")


@keras.saving.register_keras_serializable("dl_essentials")
class Encoder(keras.layers.Layer):
    """Reads a text.

    Input shape: token ids (b, s) int32
    Output shape: the memory (b, s, e), its mask (b, s) bool, and first states for a decoder, as `Recurrent` has them.
    """

    def __init__(
        self, vocab_size, *, cell, width, embedding_dim, depth, bidirectional, dropout, recurrent_dropout, **kwargs
    ):
        super().__init__(**kwargs)
        self.config = {"vocab_size": vocab_size, "cell": cell, "width": width, "embedding_dim": embedding_dim}
        self.config |= {"depth": depth, "bidirectional": bidirectional, "dropout": dropout}
        self.config |= {"recurrent_dropout": recurrent_dropout}
        policy = self.dtype_policy
        self.mask = PaddingMask(name="mask")
        self.embedding = TokenEmbedding(vocab_size, embedding_dim, name="embedding", dtype=policy)
        self.dropout = keras.layers.Dropout(dropout, name="dropout", dtype=policy)
        self.recurrent = Recurrent(
            cell,
            width,
            depth=depth,
            bidirectional=bidirectional,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            name="recurrent",
            dtype=policy,
        )
        names = ("h", "c") if cell == "lstm" else ("h",)
        self.bridge = [
            [keras.layers.Dense(width, "tanh", name=f"bridge{i + 1}_{part}", dtype=policy) for part in names]
            for i in range(depth)
        ]

    def build(self, input_shape):
        self.embedding.build(input_shape)
        self.recurrent.build((*input_shape, self.embedding.width))
        for dense in (dense for layer in self.bridge for dense in layer):
            dense.build((None, self.recurrent.width * len(self.recurrent.directions)))

    def call(self, token_ids, training=False):
        mask = self.mask(token_ids)
        x = self.dropout(self.embedding(token_ids), training=training)  # (b, s, m)
        memory, states = self.recurrent(x, mask=mask, training=training)  # (b, s, e)
        first = []
        for directions, layer in zip(states, self.bridge):
            joined = [ops.concatenate(parts, axis=-1) for parts in zip(*directions)]  # h, and c, of both directions
            first.append([[dense(part) for dense, part in zip(layer, joined)]])  # (b, width) each
        return memory, mask, first

    def get_config(self):
        return super().get_config() | self.config


@keras.saving.register_keras_serializable("dl_essentials")
class Decoder(keras.layers.Layer):
    """Writes a text: a recurrent layer, what it reads from a memory, and the logits of the next token.

    Call arguments:
        target: (b, t) int32, the tokens written so far, `START` first.
        memory, mask, states: of `Encoder`.

    Output shape: logits (b, t, v) float32; with `return_weights=True` the attention (b, t, s), too.

    Reference: Luong et al. 2015, "Effective approaches to attention-based neural machine translation", eq. 5 and 6;
        Bengio et al. 2015, "Scheduled sampling for sequence prediction with recurrent neural networks", section 2.4.
    """

    def __init__(
        self,
        vocab_size,
        *,
        cell,
        width,
        embedding_dim,
        depth,
        attention,
        dropout,
        recurrent_dropout,
        scheduled_sampling,
        sampling_steps,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.config = {"vocab_size": vocab_size, "cell": cell, "width": width, "embedding_dim": embedding_dim}
        self.config |= {"depth": depth, "attention": attention, "dropout": dropout}
        self.config |= {"recurrent_dropout": recurrent_dropout}
        self.config |= {"scheduled_sampling": scheduled_sampling, "sampling_steps": sampling_steps}
        self.vocab_size, self.sampling, self.sampling_steps = vocab_size, scheduled_sampling, sampling_steps
        policy = self.dtype_policy
        self.embedding = TokenEmbedding(vocab_size, embedding_dim, name="embedding", dtype=policy)
        self.dropout = keras.layers.Dropout(dropout, name="dropout", dtype=policy)
        self.recurrent = Recurrent(
            cell,
            width,
            depth=depth,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            name="recurrent",
            dtype=policy,
        )
        self.attention = self.key = None
        if attention != "none":
            self.attention = make_attention(attention, width, name="attention", dtype=policy)
            self.vector = keras.layers.Dense(width, "tanh", use_bias=False, name="vector", dtype=policy)
            if attention == "dot":  # whose two sides must be of one length
                self.key = keras.layers.Dense(width, use_bias=False, name="memory", dtype=policy)
        self.logits = keras.layers.Dense(vocab_size, name="logits", dtype="float32")
        self.seed = keras.random.SeedGenerator()

    def build(self, target_shape, memory_shape):
        width = self.recurrent.width
        self.embedding.build(target_shape)
        self.recurrent.build((*target_shape, self.embedding.width))
        if self.key:
            self.key.build(memory_shape)
            memory_shape = (*memory_shape[:-1], width)
        if self.attention:
            self.attention.build((*target_shape, width), memory_shape)
            self.vector.build((*target_shape, width + memory_shape[-1]))
        self.logits.build((*target_shape, width))
        if self.sampling:
            self.steps = self.add_weight(shape=(), initializer="zeros", trainable=False, name="sampling_steps")

    def call(self, target, memory, mask, states, return_weights=False, training=False):
        memory = self.prepare(memory)
        if training and self.sampling:
            x, weights = self._sampled(target, memory, mask, states), None  # (b, t, width)
        else:
            x = self.dropout(self.embedding(target), training=training)  # (b, t, m)
            x, _ = self.recurrent(x, initial_state=states, training=training)  # (b, t, width)
            x, weights = self._read(x, memory, mask)
        logits = self.logits(self.dropout(x, training=training))  # (b, t, v)
        return (logits, weights) if return_weights else logits

    def prepare(self, memory):
        """The memory and its keys, computed once for all steps."""
        if not self.attention:
            return ()
        memory = self.key(memory) if self.key else memory
        return memory, self.attention.keys(memory)

    def step(self, token_ids, states, memory, mask):
        """From last tokens (b,), states and a prepared memory to a vector (b, width), states, and weights (b, s)."""
        x, states = self.recurrent.step(self.embedding(token_ids[:, None])[:, 0], states)
        x, weights = self._read(x[:, None], memory, mask)  # (b, 1, width)
        return x[:, 0], states, None if weights is None else weights[:, 0]

    def _read(self, x, memory, mask):
        """The attentional vectors (b, t, width) and the weights (b, t, s)."""
        if not self.attention:
            return x, None
        memory, keys = memory
        context, weights = self.attention(x, memory, mask, keys=keys)  # (b, t, e)
        return self.vector(ops.concatenate([context, x], axis=-1)), weights

    def _sampled(self, target, memory, mask, states):
        """Vectors (b, t, width) where some of the inputs are drawn from the network's own answer of the step before.

        The share of these grows in equal steps from 0 to `scheduled_sampling`; inside of this loop the only dropout is
        that of the embeddings.
        """
        batch, length = ops.shape(target)
        share = self.sampling * ops.minimum(self.steps / self.sampling_steps, 1.0)
        self.steps.assign_add(1.0)
        noise = keras.random.uniform((length, batch, self.vocab_size), 1e-6, 1.0 - 1e-6, seed=self.seed)
        own = keras.random.uniform((length, batch), seed=self.seed) < share
        first = ops.arange(length)[:, None] == 0
        kept = self.dropout(ops.ones((length, batch, self.embedding.width), self.compute_dtype), training=True)

        def step(before, given):
            drawn = ops.argmax(self.logits(before["x"]) - ops.log(-ops.log(given["noise"])), axis=-1)  # (b,), by Gumbel
            token_ids = ops.where(given["own"], ops.cast(drawn, "int32"), given["target"])
            x, found = self.recurrent.step(self.embedding(token_ids[:, None])[:, 0] * given["kept"], before["states"])
            x, _ = self._read(x[:, None], memory, mask)
            now = {"x": x[:, 0], "states": found}
            return now, now

        given = {
            "target": ops.transpose(ops.cast(target, "int32")),
            "own": ops.logical_and(own, ops.logical_not(first)),
            "noise": noise,
            "kept": kept,
        }
        start = {"x": ops.zeros((batch, self.recurrent.width), self.compute_dtype), "states": states}
        _, steps = ops.scan(step, start, given)
        return ops.transpose(steps["x"], (1, 0, 2))

    def get_config(self):
        return super().get_config() | self.config


@keras.saving.register_keras_serializable("dl_essentials")
class Seq2Seq(keras.Model):
    """The model that `seq2seq` builds; see there."""

    def __init__(self, source_vocab_size, target_vocab_size, *, bidirectional, name, **arguments):
        parts = ("cell", "width", "embedding_dim", "depth", "dropout", "recurrent_dropout")
        shared = {part: arguments[part] for part in parts}
        rest = {part: value for part, value in arguments.items() if part not in parts}
        encoder = Encoder(source_vocab_size, bidirectional=bidirectional, name="encoder", **shared)
        decoder = Decoder(target_vocab_size, name="decoder", **shared, **rest)
        source = keras.Input((None,), dtype="int32", name="source")
        target = keras.Input((None,), dtype="int32", name="target")
        super().__init__(
            {"source": source, "target": target}, decoder(target, *encoder(source)), name=name
        )  # (b, t, v)
        self.encoder, self.decoder = encoder, decoder
        self.arguments = {"source_vocab_size": source_vocab_size, "target_vocab_size": target_vocab_size}
        self.arguments |= {"bidirectional": bidirectional, **arguments}

    def generate(
        self,
        source,
        *,
        max_length: int,
        beam_width: int = 4,
        length_penalty: float = 0.6,
        coverage_penalty: float = 0.0,
    ) -> Beams:
        """Writes answers, the best first.

        Args:
            source: (b, s) int32, padded with 0.
            max_length: t, the most tokens of an answer, `END` counted.
            beam_width: hypotheses that are kept; 1 is greedy search.
            length_penalty: above 0 it favours long answers.
            coverage_penalty: above 0 it favours answers that attend to all of the source.

        Returns:
            `Beams`: token ids (b, k, t), scores and lengths (b, k), and attention (b, k, t, s), None without attention.

        Raises:
            ValueError: a number out of range, or a coverage penalty of a model without attention.
        """
        memory, mask, states = self.encoder(source)
        sizes = {"vocab_size": self.arguments["target_vocab_size"], "max_length": max_length}
        penalties = {"length_penalty": length_penalty, "coverage_penalty": coverage_penalty}
        check_sizes("beam_width", beam_width)
        memory, mask_of_rows, states = repeat((self.decoder.prepare(memory), mask, states), beam_width)

        def step(token_ids, position, states):
            x, states, weights = self.decoder.step(token_ids, states, memory, mask_of_rows)
            return self.decoder.logits(x), states, weights

        options = {**sizes, **penalties, "source_mask": mask if self.decoder.attention else None}
        batch = ops.shape(source)[0]
        if beam_width == 1:
            return greedy(step, states, batch, **options)
        return beam_search(step, states, batch, beam_width=beam_width, **options)

    def alignments(self, source, target):
        """How much each token of the target draws from each of the source: (b, t, s), or None without attention.

        Args:
            source: (b, s) int32.
            target: (b, t) int32, `START` first.
        """
        return self.decoder(target, *self.encoder(source), return_weights=True)[1]

    def get_config(self):
        return {**self.arguments, "name": self.name}


def seq2seq(
    source_vocab_size: int,
    target_vocab_size: int,
    *,
    cell: str = "gru",
    width: int = 128,
    embedding_dim: int = 64,
    depth: int = 1,
    bidirectional: bool = True,
    attention: str = "additive",
    dropout: float = 0.1,
    recurrent_dropout: float = 0.0,
    scheduled_sampling: float = 0.0,
    sampling_steps: int = 2000,
    name: str = "seq2seq",
) -> Seq2Seq:
    """Builds an encoder-decoder of recurrent layers.

    Args:
        source_vocab_size: number of tokens of the source, padding (0) and the other special ids counted.
        target_vocab_size: number of tokens of the target.
        cell: "simple_rnn", "lstm" or "gru".
        width: units of a layer, in each direction.
        embedding_dim: length of a token's vector.
        depth: number of layers of either side.
        bidirectional: whether the encoder reads both ways.
        attention: "additive", "dot", "general", "concat", or "none": then all of the source is in the first state.
        dropout: share dropped in training of the embeddings, between layers, and of the vectors before the logits.
        recurrent_dropout: share of the units that a text's steps do not hand to the next.
        scheduled_sampling: largest share of the inputs of training that are the network's own answers.
        sampling_steps: training steps until that share is reached.
        name: name of the model.

    Returns:
        A model from `source` (b, s) and `target` (b, t) int32, padded with 0, `target` beginning with `START`, to the
        logits (b, t, target_vocab_size) of the tokens that follow; with `generate` and `alignments`.

    Raises:
        ValueError: an argument is not as described.

    Reference: Sutskever et al. 2014; Cho et al. 2014; Bahdanau et al. 2015; Luong et al. 2015; Bengio et al. 2015.
    """
    sizes = {"width": width, "embedding_dim": embedding_dim, "depth": depth, "sampling_steps": sampling_steps}
    for argument, size in (sizes | {"source_vocab_size": source_vocab_size}).items():
        check_sizes(argument, size)
    if not isinstance(target_vocab_size, int) or target_vocab_size <= START:
        raise ValueError(f"target_vocab_size must hold the special ids. Received: {target_vocab_size!r}")
    check_choice("attention", attention, ATTENTIONS)
    if not 0 <= scheduled_sampling <= 1:
        raise ValueError(f"scheduled_sampling must be from 0 to 1. Received: {scheduled_sampling}")
    return Seq2Seq(
        source_vocab_size,
        target_vocab_size,
        cell=cell,
        width=width,
        embedding_dim=embedding_dim,
        depth=depth,
        bidirectional=bidirectional,
        attention=attention,
        dropout=check_rate("dropout", dropout),
        recurrent_dropout=check_rate("recurrent_dropout", recurrent_dropout),
        scheduled_sampling=scheduled_sampling,
        sampling_steps=sampling_steps,
        name=name,
    )
