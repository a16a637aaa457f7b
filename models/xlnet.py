"""XLNet: a transformer trained to predict the tokens of a text in random orders, so that it reads both sides of each.

    from models.xlnet import SIZES, permutation_masks, xlnet, xlnet_lm
    model = xlnet(32000, **SIZES["base"])            # 116,718,336 parameters
    python -m pipelines.text_classification --model xlnet_classifier --learning_rate 0.0005

`models.checkpoints.from_pretrained` loads published weights. Two streams read a text: the content stream knows the
token of its own place; the query stream knows only the place, and so can be asked for the token (`predict_targets`).
Masks are true where a place may look; Hugging Face's `perm_mask` is the opposite. A text may be padded on either side,
since places count from each other. Deviations: those of `models.layers.relative_attention`; one rate for all dropout
within the blocks; and attention in one direction ("uni", with its `same_length`) is a permutation mask, no argument.
"""

from types import SimpleNamespace
from typing import Any, NamedTuple

import keras
from keras import ops

from models.layers.classification import check_choice, check_sizes, token_input
from models.layers.embeddings import PaddingMask, TokenEmbedding, initializer
from models.layers.regularization import check_rate
from models.layers.relative_attention import Apart, RelativeBlock, Views
from models.layers.signatures import with_arguments_of

SIZES: dict[str, dict[str, Any]] = {
    # Yang et al. 2019, section 3.1: as BERT-base; appendix A.4.1, the table of hyperparameters for pretraining
    "base": {"width": 768, "depth": 12, "num_heads": 12, "head_dim": 64, "hidden_dim": 3072},
    "large": {"width": 1024, "depth": 24, "num_heads": 16, "head_dim": 64, "hidden_dim": 4096},
}
HEADS = ("features", "lm", "classification")


@keras.saving.register_keras_serializable("dl_essentials")
class XLNetEmbedding(TokenEmbedding):
    """Vectors of tokens, the one vector that the query stream begins with, and with `reverse=True` scores of tokens.

    Args:
        bias: whether each token's score has a bias.
        query_stream: whether the vector of the query stream is trained.
        **kwargs: of `TokenEmbedding`.

    Input shape: (b, t) int; of the reverse (b, t, d); with `masked=True` the target mapping (b, k, t).
    Output shape: (b, t, d); of the reverse (b, t, v) float32; of `masked` (b, k, d), the same everywhere.

    Reference: Yang et al. 2019, section 2.3.
    """

    def __init__(self, vocab_size: int, width: int, *, bias: bool = False, query_stream: bool = True, **kwargs):
        super().__init__(vocab_size, width, **kwargs)
        self.has_bias, self.query_stream = bias, query_stream

    def build(self, input_shape):
        super().build(input_shape)
        start = initializer(self.stddev)
        self.mask = self.add_weight(shape=(self.width,), initializer=start, trainable=self.query_stream, name="mask")
        if self.has_bias:
            self.bias = self.add_weight(shape=(self.vocab_size,), initializer="zeros", autocast=False, name="bias")

    def call(self, x, reverse=False, masked=False):
        if masked:
            return ops.broadcast_to(self.mask, (*ops.shape(x)[:2], self.width))  # (b, k, d)
        found = super().call(x, reverse)
        return found + self.bias if reverse and self.has_bias else found

    def get_config(self):
        return super().get_config() | {"bias": self.has_bias, "query_stream": self.query_stream}


@keras.saving.register_keras_serializable("dl_essentials")
class LastToken(keras.layers.Layer):
    """The vector of the last token that is no padding, whichever side is padded; of an empty text that of place 0.

    Input shape: (b, t, d) and a mask (b, t) bool
    Output shape: (b, d)
    """

    def call(self, x, mask):
        return ops.einsum("bt,btd->bd", ops.cast(is_last(mask), x.dtype), x)

    def compute_output_shape(self, x_shape, mask_shape=None):
        return (x_shape[0], x_shape[2])


@keras.saving.register_keras_serializable("dl_essentials")
class LastSegment(keras.layers.Layer):
    """Segments of single texts as published tokenizers have them: 0, and 2 for the last token, which is `<cls>`.

    Input shape: a mask (b, t) bool, true where there is no padding
    Output shape: (b, t) int
    """

    def call(self, mask):
        return 2 * ops.cast(is_last(mask), "int32")


def is_last(mask):
    """True at the last true place of each row of a mask (b, t), or at place 0 where no place is."""
    places = ops.arange(ops.shape(mask)[1], dtype="int32")
    return places == ops.max(ops.where(mask, places, 0), axis=1, keepdims=True)  # (b, t)


class Streams(NamedTuple):
    """What was read: content (b, t, d), queries (b, k, d) or None, and what each block remembers, (b, m, d)."""

    content: Any
    queries: Any
    memory: list[Any]


@keras.saving.register_keras_serializable("dl_essentials")
class XLNet(keras.Model):
    """XLNet with one of its heads; made by the builders of this file, where the arguments are described."""

    model_type = "xlnet"

    def __init__(
        self,
        vocab_size: int,
        *,
        head: str,
        num_classes: int,
        width: int,
        depth: int,
        dropout: float,
        classifier_dropout: float,
        stddev: float | None,
        pad_id: int | None,
        pairs: bool,
        clamp_len: int | None,
        bi_data: bool,
        mem_len: int | None,
        reuse_len: int | None,
        block: dict[str, Any],
        dtype: str | None = None,
        name: str = "xlnet",
    ):
        policy = dtype or keras.config.dtype_policy().name
        self.arguments: dict[str, Any] = {
            "vocab_size": vocab_size,
            "head": head,
            "num_classes": num_classes,
            "width": width,
            "depth": depth,
            "dropout": dropout,
            "classifier_dropout": classifier_dropout,
            "stddev": stddev,
            "pad_id": pad_id,
            "pairs": pairs,
            "clamp_len": clamp_len,
            "bi_data": bi_data,
            "mem_len": mem_len,
            "reuse_len": reuse_len,
            "block": dict(block),
            "dtype": policy,
            "name": name,
        }
        self.parts = parts = SimpleNamespace()  # of layers: PyTorch takes none as attributes before `super().__init__`
        noise: dict[str, Any] = {"dropout": dropout, "stddev": stddev, "dtype": policy}
        parts.views = Views(width, pad_id, clamp_len, bi_data, name="views")
        parts.embedding = XLNetEmbedding(
            vocab_size,
            width,
            bias=head == "lm",
            query_stream=head != "classification",
            stddev=stddev,
            dtype=policy,
            name="token_embedding",
        )
        parts.apart = Apart(dtype=policy, name="apart")
        parts.blocks = [RelativeBlock(**block, **noise, name=f"block{index + 1}") for index in range(depth)]
        parts.drops = {
            part: keras.layers.Dropout(dropout, dtype=policy, name=f"{part}_dropout")
            for part in ("embedding", "distance", "output")
            if dropout
        }
        token_ids = token_input(vocab_size, builder="xlnet")  # (b, t)
        inputs: Any = {"token_ids": token_ids}
        if pairs:
            inputs["segment_ids"] = keras.Input((None,), dtype="int32", name="segment_ids")  # (b, t)
        segment_ids = inputs.get("segment_ids")
        if head == "classification":
            mask = PaddingMask(-1 if pad_id is None else pad_id, name="padding_mask")(token_ids)  # (b, t)
            segment_ids = segment_ids if pairs else LastSegment(name="last_segment")(mask)  # (b, t)
            answers = self._classified(self.read(token_ids, segment_ids).content, mask)
        else:
            answers = self._answered(self.read(token_ids, segment_ids).content)
        super().__init__(inputs if pairs else token_ids, answers, name=name)

    def read(
        self,
        token_ids,
        segment_ids=None,
        *,
        permutation_mask=None,
        target_mapping=None,
        memory=None,
        memory_mask=None,
        training=None,
    ) -> Streams:
        """Reads texts, or the next part of texts, by the content stream and, with a target mapping, the query stream.

        Args:
            token_ids: (b, t) int.
            segment_ids: (b, t) int, of which only it matters whether two are equal; the memory's are 0. None for 0.
            permutation_mask: (b, t, t), true where a place may look at another; None for everywhere. The content
                stream sees its own place, too; padding is never looked at.
            target_mapping: (b, k, t), with 1 at the place of each target, no place twice, and 0 elsewhere.
            memory: what the call before remembered, of each block (b, m, d); None for nothing.
            memory_mask: (b, m), false where the memory is of padding; None if nowhere.
            training: whether there is dropout; None for what is called around this.

        Returns:
            `Streams`. Its memory is cut to `mem_len` places, and no gradient goes through it.

        Raises:
            ValueError: a mask or a mapping has not three axes, or the memory is not one tensor for each block.

        Reference: Yang et al. 2019, section 2.3 and 2.4 and appendix A.2; Dai et al. 2019, section 3.2, for the memory.
        """
        depth = self.arguments["depth"]
        for label, one in (
            ("permutation_mask (b, t, t)", permutation_mask),
            ("target_mapping (b, k, t)", target_mapping),
        ):
            if one is not None and len(one.shape) != 3:
                raise ValueError(f"Expected {label}. Received: shape {tuple(one.shape)}")
        if memory is not None and len(memory) != depth:
            raise ValueError(f"Expected the memory of {depth} blocks. Received: {len(memory)}")
        memory = [None] * depth if memory is None else memory
        segment_ids = ops.zeros_like(token_ids) if segment_ids is None else segment_ids
        views = self.parts.views(token_ids, segment_ids, permutation_mask, memory[0], memory_mask=memory_mask)
        views = views | {"distances": self._dropped("distance", views["distances"], training)}
        streams = self.parts.embedding(token_ids)  # (b, t, d)
        if target_mapping is not None:
            target_mapping = ops.cast(target_mapping, "float32")
            queries = self.parts.embedding(target_mapping, masked=True)
            streams = ops.concatenate([streams, queries], axis=1)  # (b, t + k, d)
        streams, remembered = self._dropped("embedding", streams, training), []
        for block, before in zip(self.parts.blocks, memory):
            remembered.append(self._remembered(before, self._apart(streams, target_mapping)[0]))
            known = {"views": views, "memory": before, "target_mapping": target_mapping}
            streams = block(streams, **known, training=training)
        streams = self._dropped("output", streams, training)
        content, queries = self._apart(streams, target_mapping)
        return Streams(content, queries, remembered)

    def predict_targets(
        self,
        token_ids,
        segment_ids,
        permutation_mask,
        target_mapping,
        memory=None,
        *,
        memory_mask=None,
        return_memory=False,
        training=None,
    ):
        """The logits of the tokens at the targets, by the query stream, which has not seen them.

        It takes symbolic inputs, too: `keras.Model(inputs, model.predict_targets(**inputs))` is trained by `fit`.

        Args:
            token_ids, segment_ids, permutation_mask, target_mapping, memory, memory_mask, training: of `read`; the
                masks are made by `permutation_masks`.
            return_memory: whether the new memory is returned, too.

        Returns:
            Logits (b, k, v), or hidden states (b, k, d) of a model without a head; after them, if wanted, the memory.

        Raises:
            ValueError: the model is a classifier, or as `read`.

        Reference: Yang et al. 2019, eq. 3 to 5.
        """
        if self.arguments["head"] == "classification":
            raise ValueError(
                "Expected a model of xlnet or xlnet_lm, since a classifier has no logits of tokens. "
                f"Received: {self.name}"
            )
        streams = self.read(
            token_ids,
            segment_ids,
            permutation_mask=permutation_mask,
            target_mapping=target_mapping,
            memory=memory,
            memory_mask=memory_mask,
            training=training,
        )
        answers = self._answered(streams.queries)
        return (answers, streams.memory) if return_memory else answers

    def _apart(self, streams, target_mapping):
        """Content (b, t, d) and queries (b, k, d) or None."""
        return (streams, None) if target_mapping is None else self.parts.apart(streams, target_mapping)

    def _dropped(self, part, x, training):
        return self.parts.drops[part](x, training=training) if self.parts.drops else x

    def _remembered(self, before, content):
        """What a block remembers, (b, m, d), of what came before it and of what it reads now."""
        now = content[:, : self.arguments["reuse_len"]] if self.arguments["reuse_len"] else content
        whole = now if before is None else ops.concatenate([ops.cast(before, now.dtype), now], axis=1)
        return ops.stop_gradient(whole[:, -self.arguments["mem_len"] :] if self.arguments["mem_len"] else whole)

    def _answered(self, x):
        """What the head makes of each place's hidden state (b, t, d)."""
        return self.parts.embedding(x, reverse=True) if self.arguments["head"] == "lm" else x  # (b, t, v)

    def _classified(self, x, mask):
        """Scores (b, k) of the classes, from the last token of (b, t, d)."""
        given, policy = self.arguments, self.arguments["dtype"]
        start = {"kernel_initializer": initializer(given["stddev"])}
        x = LastToken(dtype=policy, name="last_token")(x, mask)  # (b, d)
        x = keras.layers.Dense(given["width"], "tanh", name="features", dtype=policy, **start)(x)
        if given["classifier_dropout"]:
            x = keras.layers.Dropout(given["classifier_dropout"], dtype=policy, name="dropout")(x)
        return keras.layers.Dense(given["num_classes"], dtype="float32", name="logits", **start)(x)  # (b, k)

    @property
    def head(self) -> str:
        return self.arguments["head"]

    def get_config(self):
        return {**self.arguments, "block": dict(self.arguments["block"])}


def xlnet(
    vocab_size: int,
    *,
    head: str = "features",
    num_classes: int = 2,
    width: int = 128,
    depth: int = 2,
    num_heads: int = 4,
    head_dim: int | None = None,
    hidden_dim: int = 512,
    dropout: float = 0.1,
    classifier_dropout: float = 0.1,
    activation: str = "gelu",
    epsilon: float = 1e-12,
    stddev: float | None = 0.02,
    pad_id: int | None = 5,
    pairs: bool = True,
    clamp_len: int | None = None,
    bi_data: bool = False,
    mem_len: int | None = None,
    reuse_len: int | None = None,
    name: str = "xlnet",
) -> XLNet:
    """Builds XLNet.

    Args:
        vocab_size: number of tokens, v.
        head: what it answers. "features": hidden states; "lm": scores of the tokens; "classification" of a text.
        num_classes: k, of the classification.
        width: length of a token's vector, d, an even number.
        depth: number of blocks.
        num_heads: attention heads.
        head_dim: length of a query, key and value of one head; None for the width over the heads.
        hidden_dim: width of the hidden dense layer of a block.
        dropout: share dropped in training of the embeddings, the encodings of distances, the attention weights, the
            hidden dense layers, the output of each sub-layer and of the last block.
        classifier_dropout: share dropped in training of what the classification reads.
        activation: of the hidden dense layers.
        epsilon: added to the variance in layer normalization.
        stddev: of the normal distribution that kernels, biases of attention and embeddings begin with.
        pad_id: id of padding, which is not looked at; None for no padding.
        pairs: whether `segment_ids` are an input. Without, all tokens are of one segment, but for the last one that a
            classification reads, which is of its own.
        clamp_len: greatest distance between two tokens; all beyond it are alike. None for no bound.
        bi_data: whether the second half of a batch is of texts that read backwards, as in pretraining.
        mem_len: most places that are remembered of the segments before; None for all.
        reuse_len: first places of a segment that are remembered; None for all.
        name: name of the model.

    Returns:
        A model from `{"token_ids": (b, t), "segment_ids": (b, t)}`, or from token ids (b, t) without `pairs`, the
        content stream's, to (b, t, d) of "features", (b, t, v) of "lm" or (b, k) of "classification". Logits are
        float32 under every policy.

    Raises:
        ValueError: sizes do not fit each other, or an argument is not as described.

    Reference: Yang et al. 2019, "XLNet: generalized autoregressive pretraining for language understanding", section 2;
        Dai et al. 2019, "Transformer-XL: attentive language models beyond a fixed-length context", section 3.
    """
    check_choice("head", head, HEADS)
    sizes = {"width": width, "depth": depth, "num_heads": num_heads, "num_classes": num_classes}
    optional = {"head_dim": head_dim, "clamp_len": clamp_len, "mem_len": mem_len, "reuse_len": reuse_len}
    for argument, size in (sizes | {key: value for key, value in optional.items() if value is not None}).items():
        check_sizes(argument, size)
    if head_dim is None and width % num_heads:
        raise ValueError(f"num_heads must divide width. Received: num_heads={num_heads}, width={width}")
    return XLNet(
        vocab_size,
        head=head,
        num_classes=num_classes,
        width=width,
        depth=depth,
        dropout=check_rate("dropout", dropout),
        classifier_dropout=check_rate("classifier_dropout", classifier_dropout),
        stddev=stddev,
        pad_id=pad_id,
        pairs=pairs,
        clamp_len=clamp_len,
        bi_data=bi_data,
        mem_len=mem_len,
        reuse_len=reuse_len,
        block={
            "num_heads": num_heads,
            "head_dim": head_dim or width // num_heads,
            "hidden_dim": hidden_dim,
            "activation": activation,
            "epsilon": epsilon,
        },
        name=name,
    )


@with_arguments_of(xlnet, "head", "num_classes")
def xlnet_lm(vocab_size: int, **arguments) -> XLNet:
    """`xlnet` with the scores of all tokens, (b, t, v), by the embeddings' own matrix and a bias.

    The model itself answers what the content stream says, which has seen the tokens; `predict_targets` is what is
    trained: the query stream at the targets, (b, k, v).

    Reference: Yang et al. 2019, eq. 4.
    """
    return xlnet(vocab_size, head="lm", **arguments)


@with_arguments_of(xlnet, "head")
def xlnet_classifier(vocab_size: int, num_classes: int, *, pairs: bool = False, **arguments) -> XLNet:
    """`xlnet` with a class for each text, (b, k), from its last token, which published tokenizers let be `<cls>`.

    Their texts are padded on the left, so that it is at the last place. Here it is the last token that is no padding,
    whichever side is padded. `features` is a dense layer with tanh before the scores. With `pairs=True` it reads pairs
    of texts, and takes `segment_ids` too.

    Reference: Yang et al. 2019, section 2.5 and 3.
    """
    return xlnet(vocab_size, head="classification", num_classes=num_classes, pairs=pairs, **arguments)


class PermutationMasks(NamedTuple):
    """What a factorization order lets be seen and predicted, of `permutation_masks`."""

    permutation_mask: Any
    target_mapping: Any
    places: Any
    weights: Any


def permutation_masks(order, num_targets: int, candidates=None) -> PermutationMasks:
    """Masks of permutation language modelling with partial prediction: the last tokens of an order are predicted.

    The tokens before them are context, which all places see and which sees only itself; the k-th target sees the
    context and the targets before it. An order is sampled by `ops.argsort(keras.random.uniform((b, t)))`; to predict
    one token of K, `num_targets` is t / K. In the paper's eq. 5 the context is ordered, too; here, as in the authors'
    code, it reads itself in both directions.

    Args:
        order: (b, t) int, the places of each text in the order in which its tokens are predicted.
        num_targets: k, number of tokens that are predicted.
        candidates: (b, t) bool, true where a token may be predicted, so not at padding and separators; None for
            everywhere. The last k candidates of the order are the targets.

    Returns:
        `PermutationMasks`: `permutation_mask` (b, t, t) bool and `target_mapping` (b, k, t) float32 for
        `XLNet.predict_targets`; `places` (b, k) of the targets, in their order; and `weights` (b, k) float32 of their
        losses, 0 where a text has fewer than k candidates.

    Raises:
        ValueError: the order has not two axes, or `num_targets` is not from 1 to its known length.

    Reference: Yang et al. 2019, eq. 3 and 5, section 2.3.
    """
    order = ops.cast(ops.convert_to_tensor(order), "int32")
    if len(order.shape) != 2:
        raise ValueError(f"Expected an order (b, t). Received: shape {tuple(order.shape)}")
    if check_sizes("num_targets", num_targets)[0] > (order.shape[1] or num_targets):
        raise ValueError(f"num_targets must be at most {order.shape[1]}, the places. Received: {num_targets}")
    rank = ops.argsort(order, axis=1)  # (b, t), the step at which a place is predicted
    times = ops.shape(order)[1]
    allowed = ops.ones_like(rank, "bool") if candidates is None else ops.cast(ops.convert_to_tensor(candidates), "bool")
    order = ops.argsort(ops.where(allowed, rank + times, rank), axis=1)  # candidates last, otherwise as before
    rank = ops.argsort(order, axis=1)
    targets = ops.logical_and(allowed, rank >= times - num_targets)  # (b, t)
    before = rank[:, None] < rank[:, :, None]  # (b, t, t), true where the second place comes before the first
    places = ops.cast(order[:, times - num_targets :], "int32")  # (b, k)
    weights = ops.cast(ops.take_along_axis(targets, places, axis=1), "float32")
    mapping = ops.cast(places[:, :, None] == ops.arange(times, dtype="int32"), "float32") * weights[:, :, None]
    return PermutationMasks(ops.logical_or(before, ops.logical_not(targets)[:, None]), mapping, places, weights)
