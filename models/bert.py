"""BERT: an encoder that reads whole texts, and the heads that are trained on it; RoBERTa and DistilBERT are its sizes.

    from models.bert import SIZES, bert, bert_classifier
    model = bert(30522, **SIZES["base"])             # 109,482,240 parameters
    python -m pipelines.text_classification --model bert_classifier --learning_rate 0.0005

`models.checkpoints.from_pretrained` loads published weights. RoBERTa is BERT without segments and with a pooler that
only its classifier has; DistilBERT has six blocks, neither segments nor pooler, and a classifier with a ReLU.
Deviation: the places of RoBERTa are counted over all tokens, so padding must stand at the right.
"""

from types import SimpleNamespace
from typing import Any

import keras
from keras import ops

from models.layers import activations
from models.layers.classification import check_choice, check_sizes, token_input
from models.layers.embeddings import PaddingMask, PositionEmbedding, TokenEmbedding, initializer
from models.layers.signatures import with_arguments_of
from models.layers.transformer_block import TransformerBlock, block_arguments

_ROBERTA = {"model_type": "roberta", "num_segments": 1, "max_length": 514, "first_position": 2, "pad_id": 1}
_ROBERTA |= {"epsilon": 1e-5, "pooler": ""}
_DISTILBERT = {"model_type": "distilbert", "num_segments": 0, "pooler": ""}
SIZES: dict[str, dict[str, Any]] = {
    # Devlin et al. 2019, section 3; Turc et al. 2019, "Well-read students learn better", table 1, for the small ones.
    "tiny": {"width": 128, "depth": 2, "num_heads": 2, "hidden_dim": 512},
    "mini": {"width": 256, "depth": 4, "num_heads": 4, "hidden_dim": 1024},
    "small": {"width": 512, "depth": 4, "num_heads": 8, "hidden_dim": 2048},
    "medium": {"width": 512, "depth": 8, "num_heads": 8, "hidden_dim": 2048},
    "base": {"width": 768, "depth": 12, "num_heads": 12, "hidden_dim": 3072},
    "large": {"width": 1024, "depth": 24, "num_heads": 16, "hidden_dim": 4096},
    # Liu et al. 2019, "RoBERTa", table 9; 50,265 tokens.
    "roberta-base": {"width": 768, "depth": 12, "num_heads": 12, "hidden_dim": 3072} | _ROBERTA,
    "roberta-large": {"width": 1024, "depth": 24, "num_heads": 16, "hidden_dim": 4096} | _ROBERTA,
    # Sanh et al. 2019, "DistilBERT", section 3.
    "distilbert": {"width": 768, "depth": 6, "num_heads": 12, "hidden_dim": 3072} | _DISTILBERT,
}
POOLED = ("pretraining", "classification")  # heads on the first token
HEADS = ("features", "masked_lm", "pretraining", "classification", "token_classification", "span")


@keras.saving.register_keras_serializable("dl_essentials")
class LogitBias(keras.layers.Layer):
    """Adds a learned number to the score of every token: (b, t, v) float32."""

    def build(self, input_shape):
        self.bias = self.add_weight(shape=(input_shape[-1],), initializer="zeros", autocast=False, name="bias")

    def call(self, x):
        return x + self.bias


@keras.saving.register_keras_serializable("dl_essentials")
class Bert(keras.Model):
    """BERT with one of its heads; made by the builders of this file, where the arguments are described."""

    def __init__(
        self,
        vocab_size: int,
        *,
        head: str,
        num_classes: int,
        width: int,
        depth: int,
        num_segments: int,
        max_length: int,
        first_position: int,
        pooler: str,
        pad_id: int,
        positions: str,
        pairs: bool,
        classifier_dropout: float,
        block: dict[str, Any],
        model_type: str,
        dtype: str | None = None,
        name: str = "bert",
    ):
        policy = dtype or keras.config.dtype_policy().name
        self.arguments: dict[str, Any] = {
            "vocab_size": vocab_size,
            "head": head,
            "num_classes": num_classes,
            "width": width,
            "depth": depth,
            "num_segments": num_segments,
            "max_length": max_length,
            "first_position": first_position,
            "pooler": pooler or (("relu" if model_type == "distilbert" else "tanh") if head in POOLED else ""),
            "pad_id": pad_id,
            "positions": positions,
            "pairs": pairs,
            "classifier_dropout": classifier_dropout,
            "block": dict(block),
            "model_type": model_type,
            "dtype": policy,
            "name": name,
        }
        self.model_type = model_type
        self.parts = SimpleNamespace()  # of layers: PyTorch takes none as attributes before `super().__init__`
        self.policy: dict[str, Any] = {"dtype": policy}
        self.start = initializer(block["stddev"])
        token_ids = token_input(vocab_size, builder=model_type)  # (b, t)
        inputs: Any = {"token_ids": token_ids}
        if num_segments > 1 and pairs:
            inputs["segment_ids"] = keras.Input((None,), dtype="int32", name="segment_ids")  # (b, t)
        hidden = self._encoded(inputs)  # (b, t, d)
        answers = self._answered(hidden)
        super().__init__(inputs if len(inputs) > 1 else token_ids, answers, name=name)

    def _encoded(self, inputs):
        """Hidden states (b, t, d) after the last block."""
        given, block = self.arguments, self.arguments["block"]
        width, policy = given["width"], self.policy
        token_ids = inputs["token_ids"]
        mask = PaddingMask(given["pad_id"], name="padding_mask")(token_ids)  # (b, t)
        self.parts.embedding = TokenEmbedding(
            given["vocab_size"], width, stddev=block["stddev"], name="token_embedding", **policy
        )
        x = self.parts.embedding(token_ids)  # (b, t, d)
        if given["num_segments"]:
            segment_ids = inputs.get("segment_ids", ops.zeros_like(token_ids))
            table = keras.layers.Embedding(given["num_segments"], width, self.start, name="segment_embedding", **policy)
            x = x + table(segment_ids)
        if given["positions"] in ("learned", "sinusoidal"):
            places = PositionEmbedding(given["positions"], given["max_length"], name="position_embedding", **policy)
            x = places(x, position=given["first_position"])
        x = keras.layers.LayerNormalization(epsilon=block["epsilon"], name="embedding_norm", **policy)(x)
        if block["dropout"]:
            x = keras.layers.Dropout(block["dropout"], name="embedding_dropout", **policy)(x)
        for index in range(given["depth"]):
            x = TransformerBlock(**block, name=f"block{index + 1}", **policy)(x, padding_mask=mask)
        return x

    def _answered(self, hidden):
        """What the head makes of hidden states (b, t, d)."""
        head, classes = self.arguments["head"], self.arguments["num_classes"]
        if head == "features":
            return {"hidden": hidden} | ({"pooled": self._pooled(hidden)} if self.arguments["pooler"] else {})
        if head in ("masked_lm", "pretraining"):
            scores = self._tokens(hidden)  # (b, t, v)
            if head == "masked_lm":
                return scores
            return {"masked_lm": scores, "next_sentence": self._dense(2, "next_sentence")(self._pooled(hidden))}
        if head == "classification":
            return self._dense(classes, "logits")(self._dropped(self._pooled(hidden)))  # (b, k)
        return self._dense(2 if head == "span" else classes, "logits")(self._dropped(hidden))  # (b, t, k)

    def _pooled(self, hidden):
        """The first token's hidden state after a dense layer, (b, d)."""
        first = hidden[:, 0]  # (b, d)
        if self.model_type == "roberta" and self.head == "classification":
            first = keras.layers.Dropout(self.arguments["classifier_dropout"], name="pooler_dropout")(first)
        width, activation = self.arguments["width"], self.arguments["pooler"]
        return keras.layers.Dense(width, activation, kernel_initializer=self.start, name="features", **self.policy)(
            first
        )

    def _tokens(self, hidden):
        """Scores (b, t, v) of all tokens at every place, by the embeddings' own matrix."""
        block = self.arguments["block"]
        activation = activations.get(block["activation"])
        x = keras.layers.Dense(
            self.arguments["width"], activation, kernel_initializer=self.start, name="masked_lm_dense", **self.policy
        )(hidden)  # (b, t, d)
        x = keras.layers.LayerNormalization(epsilon=block["epsilon"], name="masked_lm_norm", **self.policy)(x)
        return LogitBias(name="masked_lm_bias", dtype="float32")(self.parts.embedding(x, reverse=True))

    def _dense(self, units, name):
        return keras.layers.Dense(units, kernel_initializer=self.start, dtype="float32", name=name)

    def _dropped(self, x):
        rate = self.arguments["classifier_dropout"]
        return keras.layers.Dropout(rate, name="dropout", **self.policy)(x) if rate and self.head != "span" else x

    @property
    def head(self) -> str:
        return self.arguments["head"]

    def get_config(self):
        return {**self.arguments, "block": dict(self.arguments["block"])}


def bert(
    vocab_size: int,
    *,
    head: str = "features",
    num_classes: int = 2,
    width: int = 128,
    depth: int = 2,
    num_heads: int = 2,
    hidden_dim: int = 512,
    num_segments: int = 2,
    pairs: bool = True,
    max_length: int = 512,
    first_position: int = 0,
    pooler: str = "tanh",
    pad_id: int = 0,
    dropout: float = 0.1,
    attention_dropout: float = 0.1,
    classifier_dropout: float | None = None,
    activation: str = "gelu",
    epsilon: float = 1e-12,
    stddev: float | None = 0.02,
    positions: str = "learned",
    attention: str = "full",
    num_kv_heads: int | None = None,
    window: int = 128,
    block_size: int = 64,
    window_blocks: int = 1,
    num_global: int = 1,
    model_type: str = "bert",
    name: str = "bert",
) -> Bert:
    """Builds BERT.

    Args:
        vocab_size: number of tokens, v.
        head: what it answers. "features": hidden states; "masked_lm": scores of the tokens at every place;
            "pretraining": these and whether the second sentence follows the first; "classification" of a text;
            "token_classification"; "span": scores of every place as the start and as the end of an answer.
        num_classes: k, of both classifications.
        width: length of a token's vector, d.
        depth: number of blocks.
        num_heads: attention heads; they share the width equally.
        hidden_dim: width of the hidden dense layer of a block.
        num_segments: kinds of segments, of which each has an embedding.
        pairs: whether `segment_ids` are an input where there are several kinds; without, all tokens are of the first.
        max_length: number of learned positions; longer texts are refused by the pipelines that feed it.
        first_position: number of the first token's position.
        pooler: activation of the dense layer on the first token; with "" there is none in "features", and the heads
            that need one take "tanh", or "relu" of DistilBERT.
        pad_id: id of padding, which is not looked at.
        dropout: share dropped in training of the embeddings and of the output of each sub-layer.
        attention_dropout: share dropped in training of the attention weights; of `attention="full"` only.
        classifier_dropout: of what the classifications read; None for `dropout`.
        activation: of the hidden dense layers.
        epsilon: added to the variance in layer normalization.
        stddev: of the normal distribution that kernels and embeddings begin with.
        positions: "learned", "sinusoidal", "rotary" or "none".
        attention: kind of attention, see `models.layers.attention.MultiHeadAttention` for this and the next arguments.
        num_kv_heads: heads of keys and values; None for `num_heads`.
        window: of "window", in tokens.
        block_size: of "block_sparse" and "chunked", in tokens.
        window_blocks: of "block_sparse".
        num_global: of "block_sparse", in tokens.
        model_type: "bert", "roberta" or "distilbert": how a published checkpoint names the same layers.
        name: name of the model.

    Returns:
        A model from `{"token_ids": (b, t), "segment_ids": (b, t)}`, or from token ids (b, t) without `pairs` or without
        several kinds of segments, to: `{"hidden": (b, t, d), "pooled": (b, d)}` of "features" (the latter with a
        pooler); (b, t, v) of "masked_lm"; `{"masked_lm": (b, t, v), "next_sentence": (b, 2)}` of "pretraining", where
        class 0 is "it follows"; (b, k), (b, t, k), or (b, t, 2) of the others. Logits are always float32.

    Raises:
        ValueError: sizes do not fit each other, or an argument is not as described.

    Reference: Devlin et al. 2019, "BERT: pre-training of deep bidirectional transformers", section 3 and figure 1 to 4.
    """
    check_choice("head", head, HEADS)
    check_choice("positions", positions, ("learned", "sinusoidal", "rotary", "none"))
    sizes = {"depth": depth, "max_length": max_length, "num_classes": num_classes, "vocab_size": vocab_size}
    for argument, size in sizes.items():
        check_sizes(argument, size)
    if min(num_segments, first_position) < 0 or first_position >= max_length:
        raise ValueError(
            "num_segments must be at least 0, first_position below max_length. "
            f"Received: {num_segments}, and {first_position} of {max_length}"
        )
    block = block_arguments(
        width=width,
        num_heads=num_heads,
        hidden_dim=hidden_dim,
        dropout=dropout,
        normalization="post",
        activation=activation,
        epsilon=epsilon,
        use_bias=True,
        positions=positions,
        attention=attention,
        num_kv_heads=num_kv_heads,
        window=window,
        block_size=block_size,
        window_blocks=window_blocks,
        num_global=num_global,
    )
    if attention == "full":
        block["attention"]["dropout"] = attention_dropout
    return Bert(
        vocab_size,
        head=head,
        num_classes=num_classes,
        width=width,
        depth=depth,
        num_segments=num_segments,
        max_length=max_length,
        first_position=first_position,
        pooler=pooler,
        pad_id=pad_id,
        positions=positions,
        pairs=pairs,
        classifier_dropout=dropout if classifier_dropout is None else classifier_dropout,
        block={**block, "stddev": stddev},
        model_type=model_type,
        name=name,
    )


@with_arguments_of(bert, "head")
def bert_masked_lm(vocab_size: int, **arguments) -> Bert:
    """`bert` with the scores of all tokens at every place, (b, t, v), by the embeddings' own matrix.

    Reference: Devlin et al. 2019, section 3.1, task 1; Press and Wolf 2017, section 3, for the tied matrix.
    """
    return bert(vocab_size, head="masked_lm", **arguments)


@with_arguments_of(bert, "head")
def bert_pretraining(vocab_size: int, **arguments) -> Bert:
    """`bert` with the two heads that it was trained by: masked tokens, and next-sentence prediction.

    Reference: Devlin et al. 2019, section 3.1.
    """
    return bert(vocab_size, head="pretraining", **arguments)


@with_arguments_of(bert, "head")
def bert_classifier(vocab_size: int, num_classes: int, *, pairs: bool = False, **arguments) -> Bert:
    """`bert` with a class for each text, (b, k), from its first token; `features` is the layer before.

    With `pairs=True` it reads pairs of texts, and takes `segment_ids` too.

    Reference: Devlin et al. 2019, section 4.1 and figure 4, a and b.
    """
    return bert(vocab_size, head="classification", num_classes=num_classes, pairs=pairs, **arguments)


@with_arguments_of(bert, "head")
def bert_token_classifier(vocab_size: int, num_classes: int, *, pairs: bool = False, **arguments) -> Bert:
    """`bert` with a class for each token, (b, t, k).

    With `pairs=True` it reads pairs of texts, and takes `segment_ids` too.

    Reference: Devlin et al. 2019, section 5.3 and figure 4, d.
    """
    return bert(vocab_size, head="token_classification", num_classes=num_classes, pairs=pairs, **arguments)


@with_arguments_of(bert, "head")
def bert_question_answering(vocab_size: int, **arguments) -> Bert:
    """`bert` with scores of every token as the start and as the end of an answer, (b, t, 2).

    Reference: Devlin et al. 2019, section 4.2 and figure 4, c.
    """
    return bert(vocab_size, head="span", **arguments)
