"""Published GPT-2 and LLaMA: config.json and the names of their tensors."""

from typing import Any

from models.checkpoints.family import ACTIVATIONS, Entry, Family, activation, linear, normal, required, weights_by_path
from models.gpt import CausalLM, gpt
from models.llama import llama

_GPT2_FIELDS = {
    "n_embd": ("width", 768),
    "n_layer": ("depth", 12),
    "n_head": ("num_heads", 12),
    "n_positions": ("max_length", 1024),
    "resid_pdrop": ("dropout", 0.1),
    "attn_pdrop": ("attention_dropout", 0.1),
    "embd_pdrop": ("embedding_dropout", 0.1),
    "layer_norm_epsilon": ("epsilon", 1e-5),
    "initializer_range": ("stddev", 0.02),
}
_LLAMA_FIELDS = {
    "hidden_size": ("width", 4096),
    "num_hidden_layers": ("depth", 32),
    "num_attention_heads": ("num_heads", 32),
    "num_key_value_heads": ("num_kv_heads", None),
    "head_dim": ("head_dim", None),
    "intermediate_size": ("hidden_dim", 11008),
    "max_position_embeddings": ("max_length", 2048),
    "attention_dropout": ("attention_dropout", 0.0),
    "rms_norm_eps": ("epsilon", 1e-6),
    "initializer_range": ("stddev", 0.02),
    "attention_bias": ("attention_bias", False),
    "mlp_bias": ("dense_bias", False),
    "tie_word_embeddings": ("tied_output", False),
}
# Names of rotary_scaling, and those beside `rope_type`.
_SCALING = {
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_factor": "low_freq_factor",
        "high_factor": "high_freq_factor",
        "trained_length": "original_max_position_embeddings",
    },
}
_LLAMA_BLOCK = {
    "self_attention/query": "self_attn.q_proj",
    "self_attention/key": "self_attn.k_proj",
    "self_attention/value": "self_attn.v_proj",
    "self_attention/output": "self_attn.o_proj",
    "hidden": "mlp.gate_proj",
    "gate": "mlp.up_proj",
    "output": "mlp.down_proj",
}


def _build_gpt2(config: dict[str, Any], head: str, num_classes: int | None, names: set[str]) -> CausalLM:
    required(config, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, reorder_and_upcast_attn=False)
    required(config, add_cross_attention=False, tie_word_embeddings=True)
    arguments = {ours: config.get(key, default) for key, (ours, default) in _GPT2_FIELDS.items()}
    return gpt(
        config.get("vocab_size", 50257),
        head=head,
        hidden_dim=config.get("n_inner") or 4 * arguments["width"],
        activation=activation(config, "activation_function", "gelu_new"),
        name="gpt2",
        **arguments,
    )


def _build_llama(config: dict[str, Any], head: str, num_classes: int | None, names: set[str]) -> CausalLM:
    required(config, pretraining_tp=1)
    required(config, partial_rotary_factor=1.0)
    rotary = config.get("rope_parameters") or config.get("rope_scaling") or {}
    required(rotary, partial_rotary_factor=1.0)
    arguments: dict[str, Any]
    arguments = {ours: config.get(key, default) for key, (ours, default) in _LLAMA_FIELDS.items()}
    return llama(
        config.get("vocab_size", 32000),
        head=head,
        activation=activation(config, "hidden_act", "silu"),
        rotary_base=rotary.get("rope_theta", config.get("rope_theta", 10000.0)),
        rotary_scaling=_scaling(rotary),
        name="llama",
        **arguments,
    )


def _scaling(rotary: dict[str, Any]) -> dict[str, Any] | None:
    """Our scaling of rotary positions, of `rope_parameters` in config.json, which older files call `rope_scaling`."""
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    if kind == "default":
        return None
    if kind not in _SCALING:
        raise ValueError(
            f"Expected rotary positions of rope_type default, {', '.join(_SCALING)} in config.json. Received: {kind!r}"
        )
    lacking = [theirs for theirs in _SCALING[kind].values() if theirs not in rotary]
    if lacking:
        raise ValueError(f"Expected {lacking[0]} beside rope_type {kind!r} in config.json. Received: {rotary}")
    return {"kind": kind} | {ours: rotary[theirs] for ours, theirs in _SCALING[kind].items()}


def _activation(block: dict[str, Any]) -> str:
    return {value: key for key, value in reversed(ACTIVATIONS.items())}[block["activation"]]


def _described(model: CausalLM) -> dict[str, Any]:
    """config.json of a model.

    Raises:
        ValueError: the reference has no such architecture.
    """
    given, block, kind = model.arguments, model.arguments["block"], model.model_type
    attention, positions = block["attention"], "rotary" if kind == "llama" else "learned"
    plain = attention["kind"] == "full" and given["positions"] == positions
    if not plain or (kind == "gpt2" and (attention["num_kv_heads"] or not given["tied_output"])):
        raise ValueError(
            f"Expected full attention and {positions} positions, of gpt2 with a tied output and keys for each head. "
            f"Received: {attention['kind']}, {given['positions']}"
        )
    ours = given | block | {"attention_dropout": attention.get("dropout", 0.0)}
    ours |= {"num_kv_heads": attention["num_kv_heads"] or block["num_heads"], "attention_bias": attention["use_bias"]}
    config = {key: ours.get(name) for key, (name, _) in (_GPT2_FIELDS if kind == "gpt2" else _LLAMA_FIELDS).items()}
    if kind == "gpt2":
        config |= {"n_inner": block["hidden_dim"], "activation_function": _activation(block)}
    else:
        config["head_dim"] = block["head_dim"] or given["width"] // block["num_heads"]
        config |= {"hidden_act": _activation(block), "rope_theta": attention["rotary_base"]}
        scaling = attention.get("rotary_scaling") or {"kind": "default"}
        config["rope_parameters"] = {"rope_type": scaling["kind"], "rope_theta": attention["rotary_base"]}
        for ours_too, theirs in _SCALING.get(scaling["kind"], {}).items():
            config["rope_parameters"][theirs] = scaling[ours_too]
    names = {"gpt2": ("GPT2LMHeadModel", "GPT2Model"), "llama": ("LlamaForCausalLM", "LlamaModel")}
    architecture = names[kind][given["head"] == "features"]
    return config | {"architectures": [architecture], "model_type": kind, "vocab_size": given["vocab_size"]}


def _gpt2_entries(model: CausalLM) -> dict[str, Entry]:
    weights = weights_by_path(model)
    found = {"wte.weight": Entry((weights["token_embedding/embeddings"],))}
    found["wpe.weight"] = Entry((weights["position_embedding/positions"],))
    for index in range(model.arguments["depth"]):
        block, prefix = f"block{index + 1}/block{index + 1}", f"h.{index}"
        for part in ("weight", "bias"):
            ours = "kernel" if part == "weight" else "bias"
            fused = tuple(weights[f"{block}_self_attention/{one}/{ours}"] for one in ("query", "key", "value"))
            found[f"{prefix}.attn.c_attn.{part}"] = Entry(fused)
            found[f"{prefix}.attn.c_proj.{part}"] = Entry((weights[f"{block}_self_attention/output/{ours}"],))
            found[f"{prefix}.mlp.c_fc.{part}"] = Entry((weights[f"{block}_hidden/{ours}"],))
            found[f"{prefix}.mlp.c_proj.{part}"] = Entry((weights[f"{block}_output/{ours}"],))
        found |= normal(weights, f"{block}_self_attention_norm", f"{prefix}.ln_1")
        found |= normal(weights, f"{block}_dense_norm", f"{prefix}.ln_2")
    found |= normal(weights, "decoder_norm", "ln_f")
    return {f"transformer.{name}": entry for name, entry in found.items()}


def _llama_entries(model: CausalLM) -> dict[str, Entry]:
    weights = weights_by_path(model)
    found = {"embed_tokens.weight": Entry((weights["token_embedding/embeddings"],))}
    for index in range(model.arguments["depth"]):
        block, prefix = f"block{index + 1}/block{index + 1}", f"layers.{index}"
        for path, name in _LLAMA_BLOCK.items():
            bias = f"{block}_{path}/bias" in weights
            found |= linear(weights, f"{block}_{path}", f"{prefix}.{name}", bias=bias)
        found[f"{prefix}.input_layernorm.weight"] = Entry((weights[f"{block}_self_attention_norm/scale"],))
        found[f"{prefix}.post_attention_layernorm.weight"] = Entry((weights[f"{block}_dense_norm/scale"],))
    found["norm.weight"] = Entry((weights["decoder_norm/scale"],))
    found = {f"model.{name}": entry for name, entry in found.items()}
    if "logits/kernel" in weights:
        found |= linear(weights, "logits", "lm_head", bias=False)
    return found


GPT2 = Family(
    model_type="gpt2",
    heads={"GPT2LMHeadModel": "lm", "GPT2Model": "features"},
    prefix="transformer.",
    head_tensors=(r"lm_head\.",),
    ignored=(r".*\.attn\.(bias|masked_bias)", r"lm_head\.weight"),
    build=_build_gpt2,
    config=_described,
    entries=_gpt2_entries,
)
LLAMA = Family(
    model_type="llama",
    heads={"LlamaForCausalLM": "lm", "LlamaModel": "features"},
    prefix="model.",
    head_tensors=(r"lm_head\.",),
    ignored=(r".*rotary_emb\.inv_freq",),
    build=_build_llama,
    config=_described,
    entries=_llama_entries,
)
