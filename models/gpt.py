"""GPT-2: a decoder that writes on; causal attention, normalization before each sub-layer, an output tied to the input.

    from models.gpt import SIZES, gpt
    model = gpt(50257, **SIZES["small"])             # 124,439,808 parameters
    answer = model.generate(prompt_ids, max_new_tokens=64, temperature=0.8, top_k=40)

`models.checkpoints.from_pretrained` loads published weights. `models.llama` builds another decoder on the same class.
Deviations: none of the published model; by default it is small, and other positions and kinds of attention are options.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import keras

from models.layers import streaming
from models.layers.classification import check_choice, check_sizes, token_input
from models.layers.embeddings import PositionEmbedding, TokenEmbedding, initializer
from models.layers.regularization import check_rate
from models.layers.sampling import Generated
from models.layers.transformer_block import TransformerBlock, block_arguments
from models.layers.writing import Writer

SIZES: dict[str, dict[str, Any]] = {
    # Radford et al. 2019, "Language models are unsupervised multitask learners", table 2, and the released weights.
    "small": {"width": 768, "depth": 12, "num_heads": 12, "hidden_dim": 3072, "max_length": 1024},
    "medium": {"width": 1024, "depth": 24, "num_heads": 16, "hidden_dim": 4096, "max_length": 1024},
    "large": {"width": 1280, "depth": 36, "num_heads": 20, "hidden_dim": 5120, "max_length": 1024},
    "xl": {"width": 1600, "depth": 48, "num_heads": 25, "hidden_dim": 6400, "max_length": 1024},
}
HEADS = ("lm", "features")


@keras.saving.register_keras_serializable("dl_essentials")
class CausalLM(keras.Model):
    """A decoder that can `generate`; made by `gpt` and by `models.llama.llama`, where the arguments are described."""

    def __init__(
        self,
        vocab_size: int,
        *,
        head: str,
        width: int,
        depth: int,
        positions: str,
        max_length: int,
        tied_output: bool,
        embedding_dropout: float,
        block: dict[str, Any],
        model_type: str,
        dtype: str | None = None,
        name: str = "gpt",
    ):
        policy = dtype or keras.config.dtype_policy().name
        self.arguments: dict[str, Any] = {
            "vocab_size": vocab_size,
            "head": head,
            "width": width,
            "depth": depth,
            "positions": positions,
            "max_length": max_length,
            "tied_output": tied_output,
            "embedding_dropout": embedding_dropout,
            "block": dict(block),
            "model_type": model_type,
            "dtype": policy,
            "name": name,
        }
        self.model_type = model_type
        self.parts = SimpleNamespace(writers={})  # and layers, which PyTorch takes as attributes only after `super()`
        kinds = {"layer": keras.layers.LayerNormalization, "rms": keras.layers.RMSNormalization}
        self.parts.embedding = TokenEmbedding(
            vocab_size, width, stddev=block["stddev"], dtype=policy, name="token_embedding"
        )
        self.parts.positions = None
        if positions in ("learned", "sinusoidal"):
            self.parts.positions = PositionEmbedding(positions, max_length, dtype=policy, name="position_embedding")
        self.parts.dropout = None
        if embedding_dropout:
            self.parts.dropout = keras.layers.Dropout(embedding_dropout, dtype=policy, name="embedding_dropout")
        self.parts.blocks = [
            TransformerBlock(**block, causal=True, dtype=policy, name=f"block{index + 1}") for index in range(depth)
        ]
        self.parts.norm = kinds[block["norm"]](epsilon=block["epsilon"], dtype=policy, name="decoder_norm")
        self.parts.logits = None
        if not tied_output and head == "lm":
            start = initializer(block["stddev"])
            self.parts.logits = keras.layers.Dense(
                vocab_size, use_bias=False, kernel_initializer=start, dtype="float32", name="logits"
            )
        token_ids = token_input(vocab_size, builder=model_type)  # (b, t)
        super().__init__(token_ids, self.decode(token_ids), name=name)

    def decode(self, token_ids, *, state=None, position=None, places=None, mask=None):
        """Logits of the tokens after those given, (b, t, v); without a head, hidden states (b, t, d).

        Args:
            token_ids: (b, t), the first at `position`.
            state: caches of the tokens before, of `empty_state`.
            position: scalar, place in the caches; needed with a state.
            places: (b, t), places of the tokens in their texts; None where all rows begin at `position`.
            mask: (b, s) bool, which places of the caches hold no padding.

        Returns:
            The logits; with a state, the new state after them.
        """
        hidden = self.hidden(token_ids, state=state, position=position, places=places, mask=mask)
        return self.score(hidden) if state is None else (self.score(hidden[0]), hidden[1])

    def hidden(self, token_ids, *, state=None, position=None, places=None, mask=None):
        """Hidden states (b, t, d) after the last normalization; arguments and the new state as of `decode`."""
        x = self.parts.embedding(token_ids)  # (b, t, d)
        if self.parts.positions:
            x = self.parts.positions(x, position=0 if position is None else position, places=places)
        if self.parts.dropout:
            x = self.parts.dropout(x)
        caches = []
        for index, block in enumerate(self.parts.blocks):
            if state is None:
                x = block(x)
            else:
                x, cache = block(x, cache=state[index], position=position, places=places, self_mask=mask)
                caches.append(cache)
        x = self.parts.norm(x)
        return x if state is None else (x, caches)

    def score(self, hidden):
        """Logits (b, t, v) of hidden states (b, t, d); without a head, these."""
        if self.arguments["head"] == "features":
            return hidden
        return self.parts.embedding(hidden, reverse=True) if self.parts.logits is None else self.parts.logits(hidden)

    def empty_state(self, rows, length: int):
        """The caches before the first of `length` tokens."""
        return [block.self_attention.empty_cache(rows, length) for block in self.parts.blocks]

    def generate(
        self,
        prompt,
        lengths=None,
        *,
        max_new_tokens: int,
        temperature: Any = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        end_ids: tuple[int, ...] = (),
        stop: tuple[tuple[int, ...], ...] = (),
        pad_id: int = 0,
        prompt_policy: str = "error",
        seed: int | None = None,
        noise=None,
    ) -> Generated:
        """Writes on, one token at a time, with a cache.

        Arrays, and tensors with values, are written on by a compiled function, which is kept for the next call with the
        same options (another temperature, seed or length of prompts is no other option); inside a graph that is being
        traced the loop becomes a part of it.

        Args:
            prompt: (b, p) token ids, padded at the right with anything.
            lengths: (b,), tokens of each prompt, at least 1; None for p.
            max_new_tokens: most tokens written.
            temperature: what logits are divided by, a number or a scalar tensor; 0 takes the likeliest token, and then
                it must be a number.
            top_k: of so many likeliest tokens one is drawn; 0 for all.
            top_p: one is drawn of the fewest likeliest tokens whose probabilities sum to this.
            repetition_penalty: logits of tokens that were there are divided by this, or multiplied where negative.
            end_ids: tokens that end a text; they are part of it.
            stop: sequences of tokens that end a text; they are part of it.
            pad_id: what stands after the end.
            prompt_policy: of a prompt for which, with the answer, there are not enough positions (`max_length`):
                "error", or "left", which drops its first tokens. Rotary positions have no table, so that "error" lets
                all prompts pass there; "left" keeps to the length that the model was trained for.
            seed: of the draws; the same seed gives the same text.
            noise: (max_new_tokens, b) uniform numbers in [0, 1) in place of a seed.

        Returns:
            `Generated`: token ids (b, max_new_tokens), lengths (b,), and log probabilities (b, max_new_tokens) of the
            tokens under the model itself. Arrays, unless it is traced.

        Raises:
            ValueError: an argument is not as described, a token id is not of the vocabulary, or there are fewer learned
                positions than tokens.

        Reference: Radford et al. 2019, section 3 of the model card, for top-k; Holtzman et al. 2020, "The curious case
            of neural text degeneration", section 3.1, for top-p; Keskar et al. 2019, "CTRL", section 4.1, for the
            penalty.
        """
        writer = Writer(
            self,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            prompt_policy=prompt_policy,
            end_ids=end_ids,
            stop=stop,
            pad_id=pad_id,
        )
        return writer.generate(prompt, lengths, seed, noise)

    def stream(self, prompt, lengths=None, *, max_new_tokens: int, **options: Any) -> Iterator[Any]:
        """The tokens of `generate`, as they are written.

            for piece in text_pieces(model.stream([ids], max_new_tokens=64), tokenizer.decode):
                print(piece, end="", flush=True)

        A compiled step writes each token. It is kept for the next stream with the same options and shape of prompts;
        streams may run at the same time. Arguments and errors are those of `generate`, and values must be known.

        Returns:
            An iterator of token ids (b,), which ends with the last text; texts that ended before have `pad_id`.
        """
        return streaming.stream(self, prompt, lengths, max_new_tokens=max_new_tokens, **options)

    def get_config(self):
        return {**self.arguments, "block": dict(self.arguments["block"])}


def gpt(
    vocab_size: int,
    *,
    head: str = "lm",
    width: int = 128,
    depth: int = 2,
    num_heads: int = 4,
    hidden_dim: int = 512,
    max_length: int = 256,
    dropout: float = 0.1,
    attention_dropout: float = 0.1,
    embedding_dropout: float = 0.1,
    activation: str = "gelu_tanh",
    epsilon: float = 1e-5,
    stddev: float | None = 0.02,
    positions: str = "learned",
    tied_output: bool = True,
    attention: str = "full",
    num_kv_heads: int | None = None,
    window: int = 128,
    block_size: int = 64,
    window_blocks: int = 1,
    num_global: int = 1,
    name: str = "gpt",
) -> CausalLM:
    """Builds GPT-2.

    Args:
        vocab_size: number of tokens, v.
        head: "lm", the scores of the next token, or "features", hidden states.
        width: length of a token's vector, d.
        depth: number of blocks.
        num_heads: attention heads; they share the width equally.
        hidden_dim: width of the hidden dense layer of a block.
        max_length: number of learned positions.
        dropout: share dropped in training of the output of each sub-layer.
        attention_dropout: of the attention weights; of `attention="full"` only.
        embedding_dropout: of the embeddings.
        activation: of the hidden dense layers.
        epsilon: added to the variance in layer normalization.
        stddev: of the normal distribution that kernels and embeddings begin with; those before a shortcut begin with
            this over sqrt(2 * depth).
        positions: "learned", "sinusoidal", "rotary" or "none".
        tied_output: whether the output shares the matrix of the embeddings.
        attention: kind of attention, see `models.layers.attention.MultiHeadAttention` for this and the next arguments.
        num_kv_heads: heads of keys and values; None for `num_heads`.
        window: of "window", in tokens.
        block_size: of "block_sparse" and "chunked", in tokens.
        window_blocks: of "block_sparse".
        num_global: of "block_sparse", in tokens.
        name: name of the model.

    Returns:
        A model from `token_ids` (b, t) to logits (b, t, v) of the token after each, float32 under every policy; or to
        hidden states (b, t, d).

    Raises:
        ValueError: sizes do not fit each other, or an argument is not as described.

    Reference: Radford et al. 2019, section 2.3; Radford et al. 2018, "Improving language understanding by generative
        pre-training", section 3.1.
    """
    check_choice("head", head, HEADS)
    for argument, size in (("depth", depth), ("max_length", max_length), ("vocab_size", vocab_size)):
        check_sizes(argument, size)
    block = block_arguments(
        width=width,
        num_heads=num_heads,
        hidden_dim=hidden_dim,
        dropout=dropout,
        normalization="pre",
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
        block["attention"]["dropout"] = check_rate("attention_dropout", attention_dropout)
    output_stddev = stddev and stddev / (2 * depth) ** 0.5
    return CausalLM(
        vocab_size,
        head=head,
        width=width,
        depth=depth,
        positions=positions,
        max_length=max_length,
        tied_output=tied_output,
        embedding_dropout=check_rate("embedding_dropout", embedding_dropout),
        block={**block, "norm": "layer", "stddev": stddev, "output_stddev": output_stddev},
        model_type="gpt2",
        name=name,
    )
