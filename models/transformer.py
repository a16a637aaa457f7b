"""The transformer of Vaswani et al. 2017: an encoder reads a source, a decoder writes a target, by attention alone.

    python -m pipelines.translation --model transformer

`SIZES` are those of the paper's table 3. With a shared vocabulary of 37,000 tokens "base" has 63,045,632 parameters and
"big" 214,171,648 (the paper gives 65 and 213 million, for a vocabulary of "about 37000"). The defaults are small enough
to train in minutes. Deviations: dropout as in section 5.4 only, so none of the attention weights; places of padding in
the target may be looked at, but only by padding, since they stand at the end.
"""

from functools import partial
from types import SimpleNamespace
from typing import Any

import keras
from keras import ops

from models.layers.classification import check_sizes
from models.layers.decoding import Beams, beam_search, greedy
from models.layers.embeddings import PaddingMask, PositionEmbedding, TokenEmbedding
from models.layers.transformer_block import TransformerBlock, block_arguments

# Vaswani et al. 2017, table 3. Both share one vocabulary for source, target and output (section 3.4 and 5.1).
SIZES: dict[str, dict] = {
    "base": {
        "width": 512,
        "depth": 6,
        "num_heads": 8,
        "hidden_dim": 2048,
        "dropout": 0.1,
        "shared_embeddings": True,
    },
    "big": {
        "width": 1024,
        "depth": 6,
        "num_heads": 16,
        "hidden_dim": 4096,
        "dropout": 0.3,
        "shared_embeddings": True,
    },
}


def transformer(
    source_vocab_size: int,
    target_vocab_size: int,
    *,
    width: int = 128,
    depth: int = 2,
    num_heads: int = 4,
    hidden_dim: int = 256,
    dropout: float = 0.1,
    normalization: str = "post",
    activation: str = "relu",
    epsilon: float = 1e-6,
    use_bias: bool = False,
    positions: str = "sinusoidal",
    max_length: int = 512,
    shared_embeddings: bool = False,
    tied_output: bool = True,
    attention: str = "full",
    num_kv_heads: int | None = None,
    window: int = 128,
    block_size: int = 64,
    window_blocks: int = 1,
    num_global: int = 1,
    name: str = "transformer",
) -> "Transformer":
    """Builds a transformer that reads one sequence and writes another.

    Args:
        source_vocab_size: number of tokens of the source; 0 is padding.
        target_vocab_size: number of tokens of the target; 0 is padding, 1 starts a text and 2 ends it.
        width: length of a token's vector, d.
        depth: blocks of the encoder, and of the decoder.
        num_heads: attention heads; they share the width equally.
        hidden_dim: width of the hidden dense layer of a block.
        dropout: share dropped in training of the embeddings and of the output of each sub-layer.
        normalization: "post", as in the paper, or "pre", which trains without a warm-up.
        activation: of the hidden dense layers.
        epsilon: added to the variance in layer normalization.
        use_bias: whether the projections of attention have a bias.
        positions: "sinusoidal", "learned", "rotary" or "none".
        max_length: number of learned positions; later places get the last one.
        shared_embeddings: whether source and target share one matrix.
        tied_output: whether the output shares the matrix of the target.
        attention: kind of the attention of a sequence to itself: "full", "window", "block_sparse", "linear" or
            "chunked"; see `models.layers.attention.MultiHeadAttention` for this and the next arguments.
        num_kv_heads: heads of keys and values; None for `num_heads`.
        window: of "window", in tokens.
        block_size: of "block_sparse" and "chunked", in tokens.
        window_blocks: of "block_sparse".
        num_global: of "block_sparse", in tokens.
        name: name of the model.

    Returns:
        A model from `{"source": (b, s), "target": (b, t)}`, token ids of which each target starts with 1, to logits
        (b, t, target_vocab_size) of the token after each.

    Raises:
        ValueError: sizes do not fit each other, or an argument is not as described.

    Reference: Vaswani et al. 2017, "Attention is all you need"; Xiong et al. 2020, figure 1, for "pre".
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
    if shared_embeddings and source_vocab_size != target_vocab_size:
        raise ValueError(
            "shared_embeddings needs one vocabulary for source and target. "
            f"Received: sizes {source_vocab_size} and {target_vocab_size}"
        )
    return Transformer(
        source_vocab_size,
        target_vocab_size,
        width=width,
        depth=depth,
        positions=positions,
        max_length=max_length,
        shared_embeddings=shared_embeddings,
        tied_output=tied_output,
        block=block,
        name=name,
    )


@keras.saving.register_keras_serializable("dl_essentials")
class Transformer(keras.Model):
    """An encoder and a decoder that can also `generate`; made by `transformer`, where the arguments are described."""

    def __init__(
        self,
        source_vocab_size: int,
        target_vocab_size: int,
        *,
        width: int,
        depth: int,
        positions: str,
        max_length: int,
        shared_embeddings: bool,
        tied_output: bool,
        block: dict[str, Any],
        dtype: str | None = None,
        name: str = "transformer",
    ):
        policy = dtype or keras.config.dtype_policy().name
        self.arguments: dict[str, Any] = {
            "source_vocab_size": source_vocab_size,
            "target_vocab_size": target_vocab_size,
            "width": width,
            "depth": depth,
            "positions": positions,
            "max_length": max_length,
            "shared_embeddings": shared_embeddings,
            "tied_output": tied_output,
            "block": dict(block),
            "dtype": policy,
            "name": name,
        }
        self.parts = SimpleNamespace()  # of layers: PyTorch takes none as attributes before `super().__init__`
        prefix = "" if shared_embeddings else "source_"
        self.parts.padding_mask = PaddingMask(name="padding_mask")
        self.parts.source_embedding = TokenEmbedding(
            source_vocab_size, width, scale=True, dtype=policy, name=f"{prefix}embedding"
        )
        self.parts.target_embedding = self.parts.source_embedding
        if not shared_embeddings:
            self.parts.target_embedding = TokenEmbedding(
                target_vocab_size, width, scale=True, dtype=policy, name="target_embedding"
            )
        self.parts.positions = {}
        if positions in ("sinusoidal", "learned"):
            self.parts.positions = {
                side: PositionEmbedding(positions, max_length, dtype=policy, name=f"{side}_position_embedding")
                for side in ("source", "target")
            }
        self.parts.drops = {}
        if block["dropout"]:
            self.parts.drops = {
                side: keras.layers.Dropout(block["dropout"], dtype=policy, name=f"{side}_dropout")
                for side in ("source", "target")
            }
        self.parts.encoder_blocks = [
            TransformerBlock(**block, dtype=policy, name=f"encoder{index + 1}") for index in range(depth)
        ]
        self.parts.decoder_blocks = [
            TransformerBlock(**block, causal=True, memory=True, dtype=policy, name=f"decoder{index + 1}")
            for index in range(depth)
        ]
        self.parts.norms = {}
        if block["normalization"] == "pre":
            self.parts.norms = {
                side: keras.layers.LayerNormalization(epsilon=block["epsilon"], dtype=policy, name=f"{name}_norm")
                for side, name in (("source", "encoder"), ("target", "decoder"))
            }
        self.parts.logits = (
            None if tied_output else keras.layers.Dense(target_vocab_size, dtype="float32", name="logits")
        )

        source = keras.Input((None,), dtype="int32", name="source")  # (b, s)
        target = keras.Input((None,), dtype="int32", name="target")  # (b, t)
        logits = self.decode(target, *self.encode(source))
        super().__init__({"source": source, "target": target}, logits, name=name)

    def encode(self, source):
        """The memory (b, s, d) of a source (b, s), and its mask (b, s), true where there is no padding."""
        mask = self.parts.padding_mask(source)
        x = self._embedded(source, "source", self.parts.source_embedding)  # (b, s, d)
        for block in self.parts.encoder_blocks:
            x = block(x, padding_mask=mask)
        return self._normalized(x, "source"), mask

    def decode(self, target, memory, mask, *, state=None, position=None, return_weights=False):
        """Logits of the tokens after those of a target.

        Args:
            target: (b, t), the first token at `position`.
            memory: (b, s, d), of `encode`; or, with a state, of `remember`: then each of its rows may answer several
                rows of the target.
            mask: (b, s), of `encode`.
            state: caches of the tokens before, of `empty_state`.
            position: scalar; needed with a state.
            return_weights: whether the weights of the last block on the memory are returned.

        Returns:
            Logits (b, t, v); after them, if wanted, weights (b, n, t, s) or, of k rows per row of the memory,
            (b, n, k * t, s); after them, with a state, the new state.
        """
        x = self._embedded(target, "target", self.parts.target_embedding, position)  # (b, t, d)
        weights, caches = None, []
        for index, block in enumerate(self.parts.decoder_blocks):
            last = index == len(self.parts.decoder_blocks) - 1
            known = {} if state is None else {"cache": state[index], "position": position}
            memories = memory if state is None else memory[index]
            found = block(x, memories, memory_mask=mask, return_weights=last and return_weights, **known)
            if state is None and not (last and return_weights):
                found = (found,)
            x, *found = found
            if state is not None:
                caches.append(found.pop())
            weights = found[0] if found else None
        x = self._normalized(x, "target")
        tied = self.parts.logits is None
        logits = self.parts.target_embedding(x, reverse=True) if tied else self.parts.logits(x)  # (b, t, v)
        results = (logits,) + (weights,) * return_weights + (caches,) * (state is not None)
        return results if len(results) > 1 else logits

    def _embedded(self, token_ids, side, embedding, position=None):
        x = embedding(token_ids)
        if self.parts.positions:
            x = self.parts.positions[side](x, position=0 if position is None else position)
        return self.parts.drops[side](x) if self.parts.drops else x

    def _normalized(self, x, side):
        return self.parts.norms[side](x) if self.parts.norms else x

    def remember(self, memory):
        """What each decoder block asks the memory (b, s, d) for, to ask it step by step."""
        return [block.memory_attention.memory_cache(memory) for block in self.parts.decoder_blocks]

    def empty_state(self, rows, length: int):
        """The caches before the first of `length` tokens."""
        return [block.self_attention.empty_cache(rows, length) for block in self.parts.decoder_blocks]

    def generate(
        self,
        source,
        *,
        max_length: int,
        beam_width: int = 4,
        length_penalty: float = 0.6,
        coverage_penalty: float = 0.0,
    ) -> Beams:
        """The best answers to a source, by beam search with a cache.

        Args:
            source: (b, s) token ids.
            max_length: most tokens of an answer, its end counted.
            beam_width: hypotheses kept, k, and answers returned; 1 is greedy search.
            length_penalty: see `models.layers.decoding.penalized`, as for the next one.
            coverage_penalty: above 0 favours answers whose attention has covered the source.

        Returns:
            `Beams`, the best first; the attention (b, k, t, s) is the mean over the heads of the last block.

        Raises:
            ValueError: a size is not a positive whole number, or there are fewer learned positions than `max_length`.
        """
        table = self.arguments["max_length"]
        if self.arguments["positions"] == "learned" and max_length > table:
            raise ValueError(f"max_length must be at most the {table} learned positions. Received: {max_length}")
        source = ops.convert_to_tensor(source, dtype="int32")
        memory, mask = self.encode(source)
        memory, rows = self.remember(memory), ops.shape(source)[0] * beam_width

        def step(token_ids, position, state):
            logits, weights, state = self.decode(
                token_ids[:, None], memory, mask, state=state, position=position, return_weights=True
            )
            attention = ops.mean(weights, axis=1)  # (b, k, s)
            return logits[:, 0], state, ops.reshape(attention, (rows, ops.shape(mask)[1]))  # (b * k, s)

        search = greedy if beam_width == 1 else partial(beam_search, beam_width=beam_width)
        return search(
            step,
            self.empty_state(rows, max_length),
            ops.shape(source)[0],
            vocab_size=self.arguments["target_vocab_size"],
            max_length=max_length,
            length_penalty=length_penalty,
            coverage_penalty=coverage_penalty,
            source_mask=mask,
        )

    def alignments(self, source, target):
        """Where the decoder looks, (b, t, s): the mean over the heads of the last block's attention on the source."""
        memory, mask = self.encode(ops.convert_to_tensor(source, dtype="int32"))
        _, weights = self.decode(ops.convert_to_tensor(target, dtype="int32"), memory, mask, return_weights=True)
        return ops.mean(weights, axis=1)

    def get_config(self):
        return {**self.arguments, "block": dict(self.arguments["block"])}
