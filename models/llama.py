"""LLaMA: a decoder with rotary positions, RMS normalization, a gated hidden layer and shared keys and values.

    from models.llama import SIZES, llama
    model = llama(32000, **SIZES["7b"])              # 6,738,415,616 parameters

`models.checkpoints.from_pretrained` loads published weights of LLaMA 1, 2 and 3, and of others of the same kind.
Deviations: none of the published model; by default it is small, and dropout and a tied output are options.
"""

from collections.abc import Mapping
from typing import Any

from models.gpt import HEADS, CausalLM
from models.layers.classification import check_choice, check_sizes
from models.layers.regularization import check_rate
from models.layers.rotary_scaling import check_scaling
from models.layers.transformer_block import block_arguments

SIZES: dict[str, dict[str, Any]] = {
    # Touvron et al. 2023, "LLaMA", table 2; the hidden layer is 2/3 * 4 d, rounded up to a multiple of 256.
    "7b": {"width": 4096, "depth": 32, "num_heads": 32, "hidden_dim": 11008},
    "13b": {"width": 5120, "depth": 40, "num_heads": 40, "hidden_dim": 13824},
    "30b": {"width": 6656, "depth": 60, "num_heads": 52, "hidden_dim": 17920},
    "65b": {"width": 8192, "depth": 80, "num_heads": 64, "hidden_dim": 22016},
    # Touvron et al. 2023, "Llama 2", table 1 and appendix A.2.1, for the shared keys and values.
    "2-70b": {"width": 8192, "depth": 80, "num_heads": 64, "num_kv_heads": 8, "hidden_dim": 28672},
    # Zhang et al. 2024, "TinyLlama", table 1; 32,000 tokens.
    "tiny-1.1b": {"width": 2048, "depth": 22, "num_heads": 32, "num_kv_heads": 4, "hidden_dim": 5632},
    # Dubey et al. 2024, "The Llama 3 herd of models", table 3; 128,256 tokens. LLaMA 3.1 also scales its positions.
    "3-8b": {
        "width": 4096,
        "depth": 32,
        "num_heads": 32,
        "num_kv_heads": 8,
        "hidden_dim": 14336,
        "rotary_base": 500000.0,
        "epsilon": 1e-5,
    },
}


def llama(
    vocab_size: int,
    *,
    head: str = "lm",
    width: int = 128,
    depth: int = 2,
    num_heads: int = 4,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    hidden_dim: int = 384,
    max_length: int = 2048,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    activation: str = "silu",
    epsilon: float = 1e-6,
    stddev: float | None = 0.02,
    rotary_base: float = 10000.0,
    rotary_scaling: Mapping[str, Any] | None = None,
    attention_bias: bool = False,
    dense_bias: bool = False,
    tied_output: bool = False,
    attention: str = "full",
    window: int = 128,
    block_size: int = 64,
    window_blocks: int = 1,
    num_global: int = 1,
    name: str = "llama",
) -> CausalLM:
    """Builds LLaMA.

    Args:
        vocab_size: number of tokens, v.
        head: "lm", the scores of the next token, or "features", hidden states.
        width: length of a token's vector, d.
        depth: number of blocks.
        num_heads: attention heads.
        num_kv_heads: heads of keys and values, which divides `num_heads`; None for as many.
        head_dim: length of a query, key and value of one head; None for the width over the heads.
        hidden_dim: width of the two hidden dense layers of a block.
        max_length: tokens that it was trained for; rotary positions have no table, so this is what is told on.
        dropout: share dropped in training of the output of each sub-layer.
        attention_dropout: of the attention weights; of `attention="full"` only.
        activation: of the first of the two hidden layers.
        epsilon: added to the mean square in normalization.
        stddev: of the normal distribution that kernels and embeddings begin with.
        rotary_base: longest wavelength of the rotary positions over 2 pi.
        rotary_scaling: for longer texts than those of training: `{"kind": "linear", "factor": 4.0}`, or that of LLaMA
            3.1, `{"kind": "llama3", "factor": 8.0, "low_factor": 1.0, "high_factor": 4.0, "trained_length": 8192}`;
            see `models.layers.rotary_scaling`. None for none.
        attention_bias: whether the projections of attention have a bias.
        dense_bias: whether the dense layers have a bias.
        tied_output: whether the output shares the matrix of the embeddings.
        attention: kind of attention, see `models.layers.attention.MultiHeadAttention` for this and the next arguments.
        window: of "window", in tokens.
        block_size: of "block_sparse" and "chunked", in tokens.
        window_blocks: of "block_sparse".
        num_global: of "block_sparse", in tokens.
        name: name of the model.

    Returns:
        A model from `token_ids` (b, t) to logits (b, t, v) of the token after each, float32 under every policy; or to
        hidden states (b, t, d). It can `generate`, see `models.gpt.CausalLM`.

    Raises:
        ValueError: sizes do not fit each other, or an argument is not as described.

    Reference: Touvron et al. 2023, "LLaMA: open and efficient foundation language models", section 2.2; Ainslie et al.
        2023, "GQA", section 2.2.
    """
    check_choice("head", head, HEADS)
    sizes = {"depth": depth, "max_length": max_length, "vocab_size": vocab_size, "head_dim": head_dim or 1}
    for argument, size in sizes.items():
        check_sizes(argument, size)
    block = block_arguments(
        width=width if head_dim is None else num_heads * head_dim,
        num_heads=num_heads,
        hidden_dim=hidden_dim,
        dropout=dropout,
        normalization="pre",
        activation=activation,
        epsilon=epsilon,
        use_bias=attention_bias,
        positions="rotary",
        attention=attention,
        num_kv_heads=num_kv_heads,
        window=window,
        block_size=block_size,
        window_blocks=window_blocks,
        num_global=num_global,
    )
    block["attention"] |= {"rotary_base": rotary_base}
    block["attention"] |= {"rotary_scaling": scaling} if (scaling := check_scaling(rotary_scaling)) else {}
    if attention == "full":
        block["attention"]["dropout"] = check_rate("attention_dropout", attention_dropout)
    block |= {"norm": "rms", "gated": True, "dense_bias": dense_bias, "head_dim": head_dim, "stddev": stddev}
    return CausalLM(
        vocab_size,
        head=head,
        width=width,
        depth=depth,
        positions="rotary",
        max_length=max_length,
        tied_output=tied_output,
        embedding_dropout=0.0,
        block=block,
        model_type="llama",
        name=name,
    )
