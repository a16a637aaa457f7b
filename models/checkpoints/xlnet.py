"""Published XLNet: config.json and the names of its tensors.

Of config.json, `same_length`, `use_mems_eval` and `use_mems_train` change no answer here: the first is of `attn_type`
"uni" alone, and memory is asked for by a call. `untie_r` says how the file was trained; it has all biases either way.
"""

from typing import Any

from models.checkpoints.family import ACTIVATIONS, Entry, Family, activation, linear, normal, required, weights_by_path
from models.xlnet import XLNet, xlnet

_ARCHITECTURES = {
    "XLNetModel": "features",
    "XLNetLMHeadModel": "lm",
    "XLNetForSequenceClassification": "classification",
}
# Hugging Face's defaults of what config.json may leave out, and the argument of the builder that it is.
_FIELDS = {
    "d_model": ("width", 1024),
    "n_layer": ("depth", 24),
    "n_head": ("num_heads", 16),
    "d_inner": ("hidden_dim", 4096),
    "dropout": ("dropout", 0.1),
    "summary_last_dropout": ("classifier_dropout", 0.1),
    "layer_norm_eps": ("epsilon", 1e-12),
    "initializer_range": ("stddev", 0.02),
    "pad_token_id": ("pad_id", 5),
    "bi_data": ("bi_data", False),
}
_LENGTHS = {"clamp_len": ("clamp_len", -1), "mem_len": ("mem_len", 512), "reuse_len": ("reuse_len", None)}
_FIXED: dict[str, Any] = {"attn_type": "bi", "tie_word_embeddings": True}
_SUMMARY: dict[str, Any] = {"summary_type": "last", "summary_use_proj": True, "summary_activation": "tanh"}
# Tensors of a block's attention that are (d, n, h) there, and our dense layers.
_PROJECTIONS = {"q": "query", "k": "key", "v": "value", "r": "position", "o": "output"}
_VECTORS = {
    "r_w_bias": "content_bias",
    "r_r_bias": "position_bias",
    "r_s_bias": "segment_bias",
    "seg_embed": "segments",
}


def _build(config: dict[str, Any], head: str, num_classes: int | None, names: set[str]) -> XLNet:
    required(config, **_FIXED)
    if head == "classification":
        required(config, **_SUMMARY, summary_proj_to_labels=False)
    arguments: dict[str, Any] = {ours: config.get(key, default) for key, (ours, default) in _FIELDS.items()}
    for key, (ours, default) in _LENGTHS.items():
        length = config.get(key, default) or 0
        arguments[ours] = length if length > 0 else None
    labels = len(config["id2label"]) if config.get("id2label") else config.get("num_labels", 2)
    return xlnet(
        config.get("vocab_size", config.get("n_token", 32000)),
        head=head,
        num_classes=labels if num_classes is None else num_classes,
        head_dim=config.get("d_head") or None,
        activation=activation(config, "ff_activation", "gelu"),
        **arguments,
    )


def _config(model: XLNet) -> dict[str, Any]:
    """config.json of a model.

    Raises:
        ValueError: the reference has no such architecture.
    """
    given, block = model.arguments, model.arguments["block"]
    if block["num_heads"] * block["head_dim"] != given["width"]:
        raise ValueError(
            "Expected heads that share the width equally, as the reference has them. "
            f"Received: {block['num_heads']} of {block['head_dim']} in {given['width']}"
        )
    ours = given | block
    config = {key: ours[name] for key, (name, _) in (_FIELDS | _LENGTHS).items()}
    return config | {
        "architectures": [{head: name for name, head in _ARCHITECTURES.items()}[model.head]],
        "model_type": "xlnet",
        "vocab_size": given["vocab_size"],
        "d_head": block["head_dim"],
        "ff_activation": {value: key for key, value in reversed(ACTIVATIONS.items())}[block["activation"]],
        "clamp_len": given["clamp_len"] or -1,
        "same_length": False,
        "id2label": {str(k): f"LABEL_{k}" for k in range(given["num_classes"])},
        "label2id": {f"LABEL_{k}": k for k in range(given["num_classes"])},
        **_FIXED,
        **_SUMMARY,
    }


def _entries(model: XLNet) -> dict[str, Entry]:
    weights, given = weights_by_path(model), model.arguments
    heads = (given["block"]["num_heads"], given["block"]["head_dim"])
    found = {
        "word_embedding.weight": Entry((weights["token_embedding/embeddings"],)),
        "mask_emb": Entry((model.parts.embedding.mask,), shape=(1, 1, given["width"])),
    }
    for index in range(given["depth"]):
        block, layer = f"block{index + 1}", f"layer.{index}"
        attention = f"{block}/{block}_attention"
        for name, path in _PROJECTIONS.items():
            kernel, shape = weights[f"{attention}/{path}/kernel"], (given["width"], *heads)
            found[f"{layer}.rel_attn.{name}"] = Entry((kernel,), transposed=name == "o", shape=shape)
        for name, path in _VECTORS.items():
            found[f"{layer}.rel_attn.{name}"] = Entry((weights[f"{attention}/{path}"],))
        found |= normal(weights, f"{block}/{block}_attention_norm", f"{layer}.rel_attn.layer_norm")
        found |= linear(weights, f"{block}/{block}_hidden", f"{layer}.ff.layer_1")
        found |= linear(weights, f"{block}/{block}_output", f"{layer}.ff.layer_2")
        found |= normal(weights, f"{block}/{block}_dense_norm", f"{layer}.ff.layer_norm")
    found = {f"transformer.{name}": entry for name, entry in found.items()}
    if model.head == "lm":
        found["lm_loss.bias"] = Entry((weights["token_embedding/bias"],))
    if model.head == "classification":
        found |= linear(weights, "features", "sequence_summary.summary") | linear(weights, "logits", "logits_proj")
    return found


XLNET = Family(
    model_type="xlnet",
    heads=_ARCHITECTURES,
    prefix="transformer.",
    head_tensors=(r"lm_loss\.", r"sequence_summary\.", r"logits_proj\."),
    ignored=(r"lm_loss\.weight",),
    build=_build,
    config=_config,
    entries=_entries,
)
