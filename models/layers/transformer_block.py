"""A block of a transformer: attention to itself, perhaps to a memory, then two dense layers, each beside a shortcut."""

from typing import Any

import keras
from keras import ops

from models.layers import activations
from models.layers.attention import KINDS, MultiHeadAttention
from models.layers.classification import check_choice, check_sizes
from models.layers.embeddings import POSITIONS, initializer
from models.layers.regularization import check_rate

NORMALIZATIONS, NORMS = ("post", "pre"), ("layer", "rms")


@keras.saving.register_keras_serializable("dl_essentials")
class TransformerBlock(keras.layers.Layer):
    """An encoder block; with a memory a decoder block.

    Args:
        num_heads: attention heads; they share the width equally.
        hidden_dim: width of the hidden dense layer.
        causal: whether a place sees only itself and those before it.
        memory: whether the block attends to a memory, too.
        normalization: "post", after each shortcut is added, or "pre", before each sub-layer.
        norm: "layer", layer normalization, or "rms", by the root of the mean square, without a mean and a bias.
        dropout: share dropped in training of the output of each sub-layer.
        hidden_dropout: share dropped in training of the hidden dense layer's output.
        activation: of the hidden dense layer, as `models.layers.activations.get` takes it.
        gated: whether the hidden layer is multiplied by a second one without an activation.
        dense_bias: whether the dense layers have a bias.
        epsilon: added to the variance in normalization.
        head_dim: length of a query, key and value of one head; None for the width over the heads.
        stddev: of the normal distribution that kernels begin with; None for Glorot and Bengio's uniform one.
        output_stddev: that of the kernels whose output joins the shortcut; None for `stddev`.
        attention: arguments of `MultiHeadAttention` for the attention to itself; the one to the memory takes the same
            `num_kv_heads`, `scale` and `dropout`, is "chunked" if this is, and full otherwise.

    Call arguments:
        x: (b, t, d)
        memory: (b, s, e), or what `memory_cache` made of it; then each row of it may answer several rows of `x`.
        padding_mask, memory_mask: (b, t) and (b, s) bool, true where there is no padding.
        bias, places, cache, position: of the attention to itself, as `MultiHeadAttention` takes them.
        self_mask: (b, s) bool, which places of a cache may be looked at.
        return_weights: whether the weights of the attention to the memory are returned.

    Output shape: (b, t, d); after it, if wanted, the weights (b, n, t, s), or (b, n, k * t, s) of k rows per row of
        the memory; after them, with `position`, the new cache.

    Raises:
        ValueError: an argument is not as described.

    Reference: Vaswani et al. 2017, section 3.1 to 3.3 and 5.4; Xiong et al. 2020, "On layer normalization in the
        transformer architecture", figure 1, for "pre"; Zhang and Sennrich 2019, "Root mean square layer
        normalization", eq. 4, for "rms"; Shazeer 2020, "GLU variants improve transformer", eq. 6, for `gated`.
    """

    def __init__(
        self,
        num_heads: int,
        hidden_dim: int,
        *,
        causal: bool = False,
        memory: bool = False,
        normalization: str = "post",
        norm: str = "layer",
        dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        activation: str = "relu",
        gated: bool = False,
        dense_bias: bool = True,
        epsilon: float = 1e-6,
        head_dim: int | None = None,
        stddev: float | None = None,
        output_stddev: float | None = None,
        attention: dict[str, Any] | None = None,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)  # a cache keeps its float32
        self.num_heads, self.hidden_dim = (
            check_sizes("num_heads", num_heads)[0],
            check_sizes("hidden_dim", hidden_dim)[0],
        )
        self.causal, self.memory, self.activation, self.epsilon = causal, memory, activation, epsilon
        self.normalization = check_choice("normalization", normalization, NORMALIZATIONS)
        self.norm, self.gated, self.dense_bias = check_choice("norm", norm, NORMS), gated, dense_bias
        self.head_dim = head_dim and check_sizes("head_dim", head_dim)[0]
        self.dropout, self.attention = check_rate("dropout", dropout), {"use_bias": False, **(attention or {})}
        self.hidden_dropout = check_rate("hidden_dropout", hidden_dropout)
        self.stddev, self.output_stddev = stddev, output_stddev or stddev

    def build(self, x_shape, memory_shape=None):
        width = x_shape[-1]
        policy: dict[str, Any] = {"dtype": self.dtype_policy}
        if width % self.num_heads and not self.head_dim:
            raise ValueError(f"num_heads must divide width. Received: num_heads={self.num_heads}, width={width}")
        heads = policy | {"num_heads": self.num_heads, "head_dim": self.head_dim or width // self.num_heads}
        heads |= {"stddev": self.stddev, "output_stddev": self.output_stddev}
        self.self_attention = MultiHeadAttention(**heads, **self.attention, name=f"{self.name}_self_attention")
        self.self_attention.build(x_shape)
        sublayers = ["self_attention", "dense"]
        if self.memory:
            sublayers.insert(1, "memory_attention")
            kept = {
                key: self.attention[key]
                for key in ("num_kv_heads", "block_size", "use_bias", "scale", "dropout")
                if key in self.attention
            }
            kind = "chunked" if self.attention.get("kind") == "chunked" else "full"
            self.memory_attention = MultiHeadAttention(**heads, **kept, kind=kind, name=f"{self.name}_memory_attention")
            self.memory_attention.build(x_shape, memory_shape)
        policy |= {"use_bias": self.dense_bias, "kernel_initializer": initializer(self.stddev)}
        activation = activations.get(self.activation)
        self.hidden_dense = keras.layers.Dense(self.hidden_dim, activation, name=f"{self.name}_hidden", **policy)
        self.hidden_dense.build(x_shape)
        if self.gated:
            self.gate_dense = keras.layers.Dense(self.hidden_dim, name=f"{self.name}_gate", **policy)
            self.gate_dense.build(x_shape)
        policy["kernel_initializer"] = initializer(self.output_stddev)
        self.output_dense = keras.layers.Dense(width, name=f"{self.name}_output", **policy)
        self.output_dense.build((*x_shape[:-1], self.hidden_dim))
        policy = {"dtype": self.dtype_policy}
        kind = keras.layers.RMSNormalization if self.norm == "rms" else keras.layers.LayerNormalization
        self.norms, self.drops = {}, {}
        for sublayer in sublayers:
            name = f"{self.name}_{sublayer}"
            self.norms[sublayer] = kind(epsilon=self.epsilon, name=f"{name}_norm", **policy)
            self.norms[sublayer].build(x_shape)
            if self.dropout:
                self.drops[sublayer] = keras.layers.Dropout(self.dropout, name=f"{name}_dropout", **policy)
        if self.hidden_dropout:
            self.drops["hidden"] = keras.layers.Dropout(
                self.hidden_dropout, name=f"{self.name}_hidden_dropout", **policy
            )

    def call(
        self,
        x,
        memory=None,
        *,
        padding_mask=None,
        memory_mask=None,
        self_mask=None,
        bias=None,
        places=None,
        cache=None,
        position=None,
        return_weights=False,
        training=None,
    ):
        x = ops.cast(x, self.compute_dtype)
        y = self._enter(x, "self_attention")
        known = {"memory_mask": padding_mask if self_mask is None else self_mask, "causal": self.causal}
        known |= {"bias": bias, "places": places, "cache": cache, "position": position}
        y = self.self_attention(y, **known, training=training)
        y, cache = (y, None) if position is None else y
        x = self._leave(x, y, "self_attention", training)
        weights = None
        if self.memory:
            y = self._enter(x, "memory_attention")
            if isinstance(memory, dict):
                y = ops.reshape(y, (ops.shape(memory["key"])[0], -1, y.shape[-1]))  # (b, k * t, d)
                y, weights = self.memory_attention(y, cache=memory, memory_mask=memory_mask, return_weights=True)
                y = ops.reshape(y, ops.shape(x))  # (b * k, t, d)
            else:
                y = self.memory_attention(
                    y, memory, memory_mask=memory_mask, return_weights=return_weights, training=training
                )
                y, weights = y if return_weights else (y, None)
            x = self._leave(x, y, "memory_attention", training)
        entered = self._enter(x, "dense")
        y = self.hidden_dense(entered)
        y = y * self.gate_dense(entered) if self.gated else y
        y = self.drops["hidden"](y, training=training) if self.hidden_dropout else y
        x = self._leave(x, self.output_dense(y), "dense", training)
        results = (x,) + (weights,) * return_weights + (cache,) * (position is not None)
        return results if len(results) > 1 else x

    def compute_output_spec(self, x, memory=None, *, position=None, return_weights=False, **others):
        if position is not None or return_weights:
            known = {"position": position, "return_weights": return_weights}
            return super().compute_output_spec(x, memory, **known, **others)
        return keras.KerasTensor(x.shape, dtype=self.compute_dtype)

    def _enter(self, x, sublayer):
        """What a sub-layer sees of the shortcut."""
        return self.norms[sublayer](x) if self.normalization == "pre" else x

    def _leave(self, x, y, sublayer, training):
        """The shortcut with the output of a sub-layer."""
        x = x + (self.drops[sublayer](y, training=training) if self.dropout else y)
        return self.norms[sublayer](x) if self.normalization == "post" else x

    def get_config(self):
        names: tuple[str, ...] = (
            "num_heads",
            "hidden_dim",
            "causal",
            "memory",
            "normalization",
            "norm",
            "dropout",
            "hidden_dropout",
        )
        names += ("activation", "gated", "dense_bias", "epsilon", "head_dim", "stddev", "output_stddev")
        own = {name: getattr(self, name) for name in names}
        return super().get_config() | own | {"attention": dict(self.attention)}


def block_arguments(
    *,
    width: int,
    num_heads: int,
    hidden_dim: int,
    dropout: float,
    normalization: str,
    activation: str,
    epsilon: float,
    use_bias: bool,
    positions: str,
    attention: str,
    num_kv_heads: int | None,
    window: int,
    block_size: int,
    window_blocks: int,
    num_global: int,
) -> dict[str, Any]:
    """Arguments of a `TransformerBlock` from those that every transformer's builder has.

    Raises:
        ValueError: sizes do not fit each other, or an argument is not as described there.
    """
    sizes = {
        "width": width,
        "num_heads": num_heads,
        "hidden_dim": hidden_dim,
        "window": window,
        "block_size": block_size,
    }
    for argument, size in sizes.items():
        check_sizes(argument, size)
    check_choice("attention", attention, KINDS)
    check_choice("positions", positions, POSITIONS)
    if width % num_heads:
        raise ValueError(f"num_heads must divide width. Received: num_heads={num_heads}, width={width}")
    if (positions == "sinusoidal" and width % 2) or (positions == "rotary" and width // num_heads % 2):
        raise ValueError(
            f"{positions} positions need an even width{' of a head' * (positions == 'rotary')}. "
            f"Received: width={width}, num_heads={num_heads}"
        )
    if num_heads % check_sizes("num_kv_heads", num_kv_heads or num_heads)[0]:
        raise ValueError(f"num_kv_heads must divide num_heads. Received: {num_kv_heads} and {num_heads}")
    if min(window_blocks, num_global) < 0:
        raise ValueError(f"window_blocks and num_global must be at least 0. Received: {window_blocks} and {num_global}")
    return {
        "num_heads": num_heads,
        "hidden_dim": hidden_dim,
        "dropout": check_rate("dropout", dropout),
        "normalization": check_choice("normalization", normalization, NORMALIZATIONS),
        "activation": activation,
        "epsilon": epsilon,
        "attention": {
            "kind": attention,
            "rotary": positions == "rotary",
            "num_kv_heads": num_kv_heads,
            "window": window,
            "block_size": block_size,
            "window_blocks": window_blocks,
            "num_global": num_global,
            "use_bias": use_bias,
        },
    }
