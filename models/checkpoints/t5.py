"""Published T5, v1.0 and v1.1: config.json and the names of their tensors.

Whether the output is tied, the file says: where it has `lm_head.weight`, that is used, also if it is a copy. Whether it
is scaled, config.json says: by `scale_decoder_outputs`, else by `tie_word_embeddings`.
"""

from typing import Any

from models.checkpoints.family import ACTIVATIONS, Entry, Family, linear, required, weights_by_path
from models.t5 import SPECIAL, t5
from models.t5 import T5 as Model

# Hugging Face's defaults of what config.json may leave out, and the argument of the builder that it is.
_FIELDS = {
    "d_model": ("width", 512),
    "num_layers": ("depth", 6),
    "num_heads": ("num_heads", 8),
    "d_kv": ("head_dim", 64),
    "d_ff": ("hidden_dim", 2048),
    "relative_attention_num_buckets": ("num_buckets", 32),
    "relative_attention_max_distance": ("max_distance", 128),
    "dropout_rate": ("dropout", 0.1),
    "layer_norm_epsilon": ("epsilon", 1e-6),
}


def _build(config: dict[str, Any], head: str, num_classes: int | None, names: set[str]) -> Model:
    required(config, is_decoder=False, tie_encoder_decoder=False, decoder_start_token_id=(SPECIAL.start, None))
    required(config, pad_token_id=SPECIAL.pad, eos_token_id=(SPECIAL.end, [SPECIAL.end]))
    projection = str(config.get("feed_forward_proj", "relu"))
    *gate, activation = projection.split("-")
    activation = "gelu_new" if projection == "gated-gelu" else activation  # so the reference reads it
    activation = config.get("dense_act_fn", activation)
    if gate not in ([], ["gated"]) or activation not in ACTIVATIONS:
        raise ValueError(
            f"Expected feed_forward_proj, gated- or not, and dense_act_fn of {', '.join(ACTIVATIONS)} in config.json. "
            f"Received: {projection!r} and {activation!r}"
        )
    scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True) is not False)
    whole = any(name.startswith("decoder.") for name in names)
    return t5(
        config.get("vocab_size", 32128),
        head=head,
        decoder_depth=config.get("num_decoder_layers"),
        gated=config.get("is_gated_act", bool(gate)),
        activation=ACTIVATIONS[activation],
        tied_output="lm_head.weight" not in names if whole else scaled,
        scaled_output=scaled,
        **{ours: config.get(key, default) for key, (ours, default) in _FIELDS.items()},
    )


def _described(model: Model) -> dict[str, Any]:
    given = model.arguments | model.arguments["block"]
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    activation = names[given["activation"]]
    gate = "gated-" if given["gated"] else ""
    return {key: given[ours] for key, (ours, _) in _FIELDS.items()} | {
        "architectures": ["T5ForConditionalGeneration" if given["head"] == "lm" else "T5EncoderModel"],
        "model_type": Model.model_type,
        "is_encoder_decoder": given["head"] == "lm",
        "vocab_size": given["vocab_size"],
        "num_decoder_layers": given["decoder_depth"],
        "feed_forward_proj": gate + activation,
        "dense_act_fn": activation,
        "is_gated_act": given["gated"],
        "tie_word_embeddings": given["tied_output"],
        "scale_decoder_outputs": given["scaled_output"],
        "pad_token_id": SPECIAL.pad,
        "eos_token_id": SPECIAL.end,
        "decoder_start_token_id": SPECIAL.start,
    }


def _entries(model: Model) -> dict[str, Entry]:
    weights, given = weights_by_path(model), model.arguments
    found = {"shared.weight": Entry((weights["embedding/embeddings"],))}
    sides = {"encoder": given["depth"]} | ({"decoder": given["decoder_depth"]} if given["head"] == "lm" else {})
    for side, depth in sides.items():
        bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        found[bias] = Entry((weights[f"{side}_relative_bias/bias"],))
        found[f"{side}.final_layer_norm.weight"] = Entry((weights[f"{side}_norm/scale"],))
        for index in range(depth):
            ours, theirs = f"{side}{index + 1}/{side}{index + 1}", f"{side}.block.{index}.layer"
            found |= _attention(weights, f"{ours}_self_attention", f"{theirs}.0", "SelfAttention")
            if side == "decoder":
                found |= _attention(weights, f"{ours}_memory_attention", f"{theirs}.1", "EncDecAttention")
            dense = f"{theirs}.{2 if side == 'decoder' else 1}"
            gated = given["block"]["gated"]
            for path, name in {"hidden": "wi_0" if gated else "wi", "output": "wo"}.items():
                found |= linear(weights, f"{ours}_{path}", f"{dense}.DenseReluDense.{name}", bias=False)
            if gated:
                found |= linear(weights, f"{ours}_gate", f"{dense}.DenseReluDense.wi_1", bias=False)
            found[f"{dense}.layer_norm.weight"] = Entry((weights[f"{ours}_dense_norm/scale"],))
    return found | (linear(weights, "logits", "lm_head", bias=False) if "logits/kernel" in weights else {})


def _attention(weights: dict[str, Any], path: str, layer: str, name: str) -> dict[str, Entry]:
    found = {f"{layer}.layer_norm.weight": Entry((weights[f"{path}_norm/scale"],))}
    for ours, theirs in {"query": "q", "key": "k", "value": "v", "output": "o"}.items():
        found |= linear(weights, f"{path}/{ours}", f"{layer}.{name}.{theirs}", bias=False)
    return found


T5 = Family(
    model_type=Model.model_type,
    heads={
        "T5ForConditionalGeneration": "lm",
        "T5EncoderModel": "features",
        "T5WithLMHeadModel": "lm",  # what the first of them was called when T5 was published
    },
    prefix="",
    head_tensors=(r"decoder\.", r"lm_head\."),
    ignored=(
        r"(encoder|decoder)\.embed_tokens\.weight",  # copies of the shared one
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",  # never read
    ),
    build=_build,
    config=_described,
    entries=_entries,
)
