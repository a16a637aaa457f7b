"""T5: an encoder reads a text, a decoder writes the answer, whatever the task; distances of places bias attention.

    from models.t5 import SIZES, t5
    model = t5(32128, **SIZES["base"])                # 222,903,552 parameters
    answers = model.generate(token_ids, max_length=64, beam_width=4)

`models.checkpoints.from_pretrained` loads published weights. Padding is 0 and starts an answer, 1 ends it. Deviations:
kernels begin with normal numbers cut at two deviations; the untied output of v1.1 begins as small as the tied one acts,
by 1 / sqrt(width). Hidden states of the published weights are beyond float16: take bfloat16.
"""

from functools import partial
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
from keras import ops

from models.layers.classification import check_choice, check_sizes
from models.layers.compiled import Compiled, known
from models.layers.decoding import Beams, Special, beam_search, greedy
from models.layers.embeddings import PaddingMask, TokenEmbedding, initializer
from models.layers.regularization import check_rate
from models.layers.relative_bias import RelativeBias
from models.layers.transformer_block import TransformerBlock

_V11 = {"gated": True, "activation": "gelu_tanh", "tied_output": False}
SIZES: dict[str, dict[str, Any]] = {
    # Raffel et al. 2020, section 3.7, the list of model sizes; table 14 has their results.
    "small": {"width": 512, "depth": 6, "num_heads": 8, "head_dim": 64, "hidden_dim": 2048},
    "base": {"width": 768, "depth": 12, "num_heads": 12, "head_dim": 64, "hidden_dim": 3072},
    "large": {"width": 1024, "depth": 24, "num_heads": 16, "head_dim": 64, "hidden_dim": 4096},
    "3b": {"width": 1024, "depth": 24, "num_heads": 32, "head_dim": 128, "hidden_dim": 16384},
    "11b": {"width": 1024, "depth": 24, "num_heads": 128, "head_dim": 128, "hidden_dim": 65536},
    # The release notes of T5 v1.1, with the gates of Shazeer 2020, "GLU variants improve transformer".
    "v1.1-small": {"width": 512, "depth": 8, "num_heads": 6, "head_dim": 64, "hidden_dim": 1024} | _V11,
    "v1.1-base": {"width": 768, "depth": 12, "num_heads": 12, "head_dim": 64, "hidden_dim": 2048} | _V11,
    "v1.1-large": {"width": 1024, "depth": 24, "num_heads": 16, "head_dim": 64, "hidden_dim": 2816} | _V11,
    "v1.1-xl": {"width": 2048, "depth": 24, "num_heads": 32, "head_dim": 64, "hidden_dim": 5120} | _V11,
    "v1.1-xxl": {"width": 4096, "depth": 24, "num_heads": 64, "head_dim": 64, "hidden_dim": 10240} | _V11,
}
HEADS = ("lm", "features")
SPECIAL = Special(pad=0, start=0, end=1, unknown=2, barred=())


def t5(
    vocab_size: int,
    *,
    head: str = "lm",
    width: int = 128,
    depth: int = 2,
    decoder_depth: int | None = None,
    num_heads: int = 4,
    head_dim: int = 32,
    hidden_dim: int = 256,
    num_buckets: int = 32,
    max_distance: int = 128,
    gated: bool = False,
    activation: str = "relu",
    tied_output: bool = True,
    scaled_output: bool | None = None,
    dropout: float = 0.1,
    epsilon: float = 1e-6,
    name: str = "t5",
) -> "T5":
    """Builds a T5.

    Args:
        vocab_size: number of tokens, the sentinels of span corruption counted; 0 is padding and starts an answer, 1
            ends a text.
        head: "lm", which writes an answer, or "features", the encoder alone.
        width: length of a token's vector, d.
        depth: blocks of the encoder.
        decoder_depth: blocks of the decoder; None for `depth`.
        num_heads: attention heads, n.
        head_dim: length of a query, key and value of one head; they need not share the width.
        hidden_dim: width of the hidden dense layer of a block.
        num_buckets: of the relative position bias, see `models.layers.relative_bias`; all blocks of a stack share it.
        max_distance: from which on all distances share a bucket.
        gated: whether the hidden layer is multiplied by a second one without an activation (v1.1).
        activation: of the hidden dense layers: "relu", or "gelu_tanh" of v1.1.
        tied_output: whether the output shares the matrix of the embedding (v1.0).
        scaled_output: whether what the output reads is multiplied by 1 / sqrt(width); None for as it is tied.
        dropout: share dropped in training of the embeddings, of attention weights, of hidden layers, of the output of
            each sub-layer, and of what the last normalization of each stack gives.
        epsilon: added to the mean square in normalization.
        name: name of the model.

    Returns:
        A model from `{"source": (b, s), "target": (b, t)}`, token ids of which each target starts with 0, to float32
        logits (b, t, v) of the token after each; of "features" from `{"source": (b, s)}` to `{"hidden": (b, s, d)}`.

    Raises:
        ValueError: an argument is not as described.

    Reference: Raffel et al. 2020, "Exploring the limits of transfer learning with a unified text-to-text transformer",
        section 2.1 and 3.1; Shazeer 2020, eq. 6, for `gated`.
    """
    check_choice("head", head, HEADS)
    sizes = {"vocab_size": vocab_size, "width": width, "depth": depth, "num_heads": num_heads, "head_dim": head_dim}
    for argument, size in (sizes | {"hidden_dim": hidden_dim}).items():
        check_sizes(argument, size)
    block = {
        "num_heads": num_heads,
        "head_dim": head_dim,
        "hidden_dim": hidden_dim,
        "normalization": "pre",
        "norm": "rms",
        "epsilon": epsilon,
        "dropout": check_rate("dropout", dropout),
        "hidden_dropout": dropout,
        "activation": activation,
        "gated": gated,
        "dense_bias": False,
        "stddev": width**-0.5,
        "output_stddev": (num_heads * head_dim) ** -0.5,
        "attention": {"scale": 1.0, "use_bias": False, "dropout": dropout},
    }
    model = T5(
        vocab_size,
        head=head,
        width=width,
        depth=depth,
        decoder_depth=check_sizes("decoder_depth", decoder_depth or depth)[0],
        num_buckets=num_buckets,
        max_distance=max_distance,
        tied_output=tied_output,
        scaled_output=tied_output if scaled_output is None else scaled_output,
        block=block,
        name=name,
    )
    for weight in model.trainable_weights:  # the others begin as the block's arguments say
        if weight.path.endswith("attention/query/kernel"):
            _begin(weight, (width * head_dim) ** -0.5)  # since products of queries and keys are not scaled
        elif weight.path.endswith("_output/kernel"):
            _begin(weight, hidden_dim**-0.5)
    return model


def _begin(weight, stddev: float) -> None:
    """Draws a weight anew; one that has no value yet (see `from_pretrained`) draws it when it needs it."""
    if weight._value is None:  # Keras has no public name for this
        weight._initializer = initializer(stddev)
    else:
        weight.assign(initializer(stddev)(weight.shape, dtype=weight.dtype))


@keras.saving.register_keras_serializable("dl_essentials")
class T5(keras.Model):
    """An encoder and a decoder that can also `generate`; made by `t5`, where the arguments are described."""

    model_type = "t5"

    def __init__(
        self,
        vocab_size: int,
        *,
        head: str,
        width: int,
        depth: int,
        decoder_depth: int,
        num_buckets: int,
        max_distance: int,
        tied_output: bool,
        scaled_output: bool,
        block: dict[str, Any],
        dtype: str | None = None,
        name: str = "t5",
    ):
        policy: dict[str, Any] = {"dtype": dtype or keras.config.dtype_policy().name}
        self.arguments: dict[str, Any] = {
            "vocab_size": vocab_size,
            "head": head,
            "width": width,
            "depth": depth,
            "decoder_depth": decoder_depth,
            "num_buckets": num_buckets,
            "max_distance": max_distance,
            "tied_output": tied_output,
            "scaled_output": scaled_output,
            "block": dict(block),
            **policy,
            "name": name,
        }
        self.parts = SimpleNamespace(searches={})  # of layers: PyTorch takes none as attributes before super().__init__
        self.parts.padding_mask = PaddingMask(SPECIAL.pad, name="padding_mask")
        self.parts.embedding = TokenEmbedding(vocab_size, width, stddev=1.0, name="embedding", **policy)
        self.parts.blocks, self.parts.bias, self.parts.norm, self.parts.drops = {}, {}, {}, {}
        stacks = {"encoder": depth} | ({"decoder": decoder_depth} if head == "lm" else {})
        for side, count in stacks.items():
            own = block | policy | ({"causal": True, "memory": True} if side == "decoder" else {})
            self.parts.blocks[side] = [TransformerBlock(**own, name=f"{side}{index + 1}") for index in range(count)]
            self.parts.bias[side] = RelativeBias(
                block["num_heads"],
                num_buckets,
                max_distance,
                bidirectional=side == "encoder",
                stddev=width**-0.5,
                name=f"{side}_relative_bias",
                **policy,
            )
            self.parts.norm[side] = keras.layers.RMSNormalization(
                epsilon=block["epsilon"], name=f"{side}_norm", **policy
            )
            for place in ("embedding", "norm") if block["dropout"] else ():
                name_of_drop = f"{side}_{place}_dropout"
                self.parts.drops[side, place] = keras.layers.Dropout(block["dropout"], name=name_of_drop, **policy)
        self.parts.logits = None
        if head == "lm" and not tied_output:
            start = initializer(width**-0.5)
            self.parts.logits = keras.layers.Dense(
                vocab_size, use_bias=False, kernel_initializer=start, dtype="float32", name="logits"
            )

        source = keras.Input((None,), dtype="int32", name="source")  # (b, s)
        memory, mask = self.encode(source)
        if head == "features":
            super().__init__({"source": source}, {"hidden": memory}, name=name)
        else:
            target = keras.Input((None,), dtype="int32", name="target")  # (b, t)
            super().__init__({"source": source, "target": target}, self.decode(target, memory, mask), name=name)

    def encode(self, source):
        """The memory (b, s, d) of a source (b, s), and its mask (b, s), true where there is no padding."""
        mask = self.parts.padding_mask(source)
        x = self._dropped(self.parts.embedding(source), "encoder", "embedding")  # (b, s, d)
        bias = self.parts.bias["encoder"](x)  # (1, n, s, s)
        for block in self.parts.blocks["encoder"]:
            x = block(x, padding_mask=mask, bias=bias)
        return self._dropped(self.parts.norm["encoder"](x), "encoder", "norm"), mask

    def decode(self, target, memory, mask, *, state=None, position=None, return_weights=False):
        """Logits of the tokens after those of a target.

        Args:
            target: (b, t), the first token at `position`.
            memory: (b, s, d), of `encode`; or, with a state, of `remember`: then each of its rows may answer several
                rows of the target.
            mask: (b, s), of `encode`.
            state: caches of the tokens before, of `empty_state`.
            position: scalar; needed with a state.
            return_weights: whether the weights of the last block on the memory are returned; not with a state.

        Returns:
            Logits (b, t, v); after them, if wanted, weights (b, n, t, s); or, with a state, the new state.
        """
        x = self._dropped(self.parts.embedding(target), "decoder", "embedding")  # (b, t, d)
        caches, places, weights = [], {}, None
        if state is not None:
            places = {"length": ops.shape(state[0]["key"])[2], "position": position}
        bias = self.parts.bias["decoder"](x, **places)  # (1, n, t, t or the length of the caches)
        for index, block in enumerate(self.parts.blocks["decoder"]):
            if state is None:
                last = return_weights and index == len(self.parts.blocks["decoder"]) - 1
                x = block(x, memory, memory_mask=mask, bias=bias, return_weights=last)
                x, weights = x if last else (x, None)
            else:
                known_before = {"cache": state[index], "position": position}
                x, cache = block(x, memory[index], memory_mask=mask, bias=bias, **known_before)
                caches.append(cache)
        logits = self._scores(self._dropped(self.parts.norm["decoder"](x), "decoder", "norm"))  # (b, t, v)
        if return_weights:
            return logits, weights
        return logits if state is None else (logits, caches)

    def _scores(self, x):
        """Logits of all tokens, (b, t, d) to (b, t, v) float32."""
        x = ops.cast(x, "float32")
        x = x / self.arguments["width"] ** 0.5 if self.arguments["scaled_output"] else x
        return self.parts.logits(x) if self.parts.logits else self.parts.embedding(x, reverse=True)

    def _dropped(self, x, side, place):
        return self.parts.drops[side, place](x) if self.parts.drops else x

    def remember(self, memory):
        """What each decoder block asks the memory (b, s, d) for, to ask it step by step."""
        return [block.memory_attention.memory_cache(memory) for block in self.parts.blocks["decoder"]]

    def empty_state(self, rows, length: int):
        """The caches before the first of `length` tokens."""
        return [block.self_attention.empty_cache(rows, length) for block in self.parts.blocks["decoder"]]

    def alignments(self, source, target):
        """Where the decoder looks, (b, t, s): the mean over the heads of the last block's attention on the source."""
        memory, mask = self.encode(ops.convert_to_tensor(source, dtype="int32"))
        _, weights = self.decode(ops.convert_to_tensor(target, dtype="int32"), memory, mask, return_weights=True)
        return ops.mean(weights, axis=1)

    def generate(
        self,
        source,
        *,
        max_length: int,
        beam_width: int = 1,
        length_penalty: float = 1.0,
        early_stopping: bool | str = False,
        normalization: str = "power",
    ) -> Beams:
        """Answers to a source, one token at a time with a cache: greedily, or by beam search.

        The rules are those of Hugging Face's `generate`, token by token: any token may be written, an answer may be cut
        off at `max_length`, and an answer of a beam is rated by its logarithm of probability / length^length_penalty.
        Arrays, and tensors with values, are searched by a compiled function, which is kept for the next call with the
        same options; inside a graph that is being traced the search becomes a part of it.

        Args:
            source: (b, s) token ids.
            max_length: most tokens of an answer, its end counted and its start not (their `max_new_tokens`).
            beam_width: hypotheses kept, k, and answers returned; 1 is greedy search.
            length_penalty: see `models.layers.decoding.penalized`, as for `normalization`; of a beam alone.
            early_stopping: when a beam is done, see `models.layers.decoding.beam_search`.
            normalization: "power", or "wu" for that of Wu et al. 2016.

        Returns:
            `Beams`, the best first, without attention. Arrays, unless it is traced.

        Raises:
            ValueError: the model is an encoder alone, the source is not as described, or a size is no positive number.
        """
        if self.arguments["head"] != "lm":
            raise ValueError(f'Only a T5 with head="lm" writes answers. Received: {self.arguments["head"]!r}')
        options: dict[str, Any] = {"max_length": max_length, "beam_width": beam_width}
        options |= {"length_penalty": length_penalty, "early_stopping": early_stopping, "normalization": normalization}
        values = known(source)
        if values is None:
            return self.search(source, **options)
        vocab_size = self.arguments["vocab_size"]
        if values.ndim != 2 or values.size == 0 or values.min() < 0 or values.max() >= vocab_size:
            raise ValueError(
                f"source must hold token ids (b, s) from 0 to {vocab_size - 1}. Received: shape {values.shape}"
                + (f", ids {values.min()} to {values.max()}" if values.size else "")
            )
        key = tuple(options.values())
        if key not in self.parts.searches:
            self.parts.searches[key] = Compiled(self, lambda ids: _without_attention(self.search(ids, **options)))
        found = self.parts.searches[key].predict_on_batch(values.astype(np.int32))
        return Beams(**found, attention=None)

    def search(self, source, *, max_length, beam_width, length_penalty, early_stopping, normalization) -> Beams:
        """What `generate` compiles."""
        check_sizes("beam_width", beam_width)
        source = ops.cast(source, "int32")
        memory, mask = self.encode(source)
        memory, batch = self.remember(memory), ops.shape(source)[0]

        def step(token_ids, position, state):
            logits, state = self.decode(token_ids[:, None], memory, mask, state=state, position=position)
            return logits[:, 0], state, None

        find: Any = greedy
        if beam_width > 1:
            find = partial(beam_search, beam_width=beam_width, early_stopping=early_stopping)
        return find(
            step,
            self.empty_state(batch * beam_width, max_length),
            batch,
            vocab_size=self.arguments["vocab_size"],
            max_length=max_length,
            length_penalty=length_penalty,
            special=SPECIAL,
            normalization=normalization,
            complete=False,
        )

    def get_config(self):
        return {**self.arguments, "block": dict(self.arguments["block"])}


def _without_attention(beams: Beams) -> dict[str, Any]:
    return {name: value for name, value in beams._asdict().items() if name != "attention"}
