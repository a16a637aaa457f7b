"""Published BERT, RoBERTa and DistilBERT: config.json and the names of their tensors."""

from typing import Any

from models.bert import Bert, bert
from models.checkpoints.family import ACTIVATIONS, Entry, Family, activation, linear, normal, required, weights_by_path

_SUFFIXES = {
    "Model": "features",
    "ForMaskedLM": "masked_lm",
    "ForSequenceClassification": "classification",
    "ForTokenClassification": "token_classification",
    "ForQuestionAnswering": "span",
}
# Hugging Face's defaults of what config.json may leave out, and the argument of the builder that it is.
_FIELDS = {
    "hidden_size": ("width", 768),
    "num_hidden_layers": ("depth", 12),
    "num_attention_heads": ("num_heads", 12),
    "intermediate_size": ("hidden_dim", 3072),
    "hidden_dropout_prob": ("dropout", 0.1),
    "attention_probs_dropout_prob": ("attention_dropout", 0.1),
    "max_position_embeddings": ("max_length", 512),
    "type_vocab_size": ("num_segments", 2),
    "layer_norm_eps": ("epsilon", 1e-12),
    "pad_token_id": ("pad_id", 0),
    "initializer_range": ("stddev", 0.02),
}
_DISTILBERT_FIELDS = {
    "dim": ("width", 768),
    "n_layers": ("depth", 6),
    "n_heads": ("num_heads", 12),
    "hidden_dim": ("hidden_dim", 3072),
    "dropout": ("dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.1),
    "max_position_embeddings": ("max_length", 512),
    "pad_token_id": ("pad_id", 0),
    "initializer_range": ("stddev", 0.02),
}
# Names of the layers: of an embedding, and of a block.
_BERT_BLOCK = {
    "self_attention/query": "attention.self.query",
    "self_attention/key": "attention.self.key",
    "self_attention/value": "attention.self.value",
    "self_attention/output": "attention.output.dense",
    "self_attention_norm": "attention.output.LayerNorm",
    "hidden": "intermediate.dense",
    "output": "output.dense",
    "dense_norm": "output.LayerNorm",
}
_DISTILBERT_BLOCK = {
    "self_attention/query": "attention.q_lin",
    "self_attention/key": "attention.k_lin",
    "self_attention/value": "attention.v_lin",
    "self_attention/output": "attention.out_lin",
    "self_attention_norm": "sa_layer_norm",
    "hidden": "ffn.lin1",
    "output": "ffn.lin2",
    "dense_norm": "output_layer_norm",
}


def _fields(kind: str) -> dict[str, tuple[str, Any]]:
    if kind == "distilbert":
        return _DISTILBERT_FIELDS
    others = {"pad_token_id": ("pad_id", 1), "layer_norm_eps": ("epsilon", 1e-12)} if kind == "roberta" else {}
    return _FIELDS | others


def _builder(kind: str):
    def build(config: dict[str, Any], head: str, num_classes: int | None, names: set[str]) -> Bert:
        required(config, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
        required(config, tie_word_embeddings=True, sinusoidal_pos_embds=(False, True))
        arguments = {ours: config.get(key, default) for key, (ours, default) in _fields(kind).items()}
        rate = config.get("seq_classif_dropout", 0.2) if kind == "distilbert" else config.get("classifier_dropout")
        labels = len(config["id2label"]) if "id2label" in config else config.get("num_labels", 2)
        if kind == "roberta":
            arguments["first_position"] = arguments["pad_id"] + 1
        if kind == "distilbert":
            arguments["num_segments"] = 0
        pooled = any(".pooler." in name for name in names)
        return bert(
            config.get("vocab_size", 50265 if kind == "roberta" else 30522),
            head=head,
            num_classes=labels if num_classes is None else num_classes,
            classifier_dropout=rate,
            activation=activation(config, "activation" if kind == "distilbert" else "hidden_act", "gelu"),
            pooler="tanh" if pooled else "",
            model_type=kind,
            name=kind,
            **arguments,
        )

    return build


def _described(model: Bert) -> dict[str, Any]:
    """config.json of a model.

    Raises:
        ValueError: the reference has no such architecture.
    """
    given, block, kind = model.arguments, model.arguments["block"], model.model_type
    attention = block["attention"]
    if attention["kind"] != "full" or attention["num_kv_heads"] or given["positions"] != "learned":
        raise ValueError(
            f"Expected full attention and learned positions. Received: {attention['kind']}, "
            f"num_kv_heads {attention['num_kv_heads']}, {given['positions']}"
        )
    ours = given | block | {"attention_dropout": attention.get("dropout", 0.0)}
    config = {key: ours[name] for key, (name, _) in _fields(kind).items()}
    hidden = {value: key for key, value in reversed(ACTIVATIONS.items())}[block["activation"]]
    config["activation" if kind == "distilbert" else "hidden_act"] = hidden
    config["seq_classif_dropout" if kind == "distilbert" else "classifier_dropout"] = given["classifier_dropout"]
    names = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}
    suffix = {head: suffix for suffix, head in (_SUFFIXES | {"ForPreTraining": "pretraining"}).items()}[model.head]
    return config | {
        "architectures": [names[kind] + suffix],
        "model_type": kind,
        "vocab_size": given["vocab_size"],
        "id2label": {str(k): f"LABEL_{k}" for k in range(given["num_classes"])},
        "label2id": {f"LABEL_{k}": k for k in range(given["num_classes"])},
    }


def _entries(model: Bert) -> dict[str, Entry]:
    weights, kind, given = weights_by_path(model), model.model_type, model.arguments
    table = "embeddings.{}_embeddings.weight"
    found = {table.format("word"): Entry((weights["token_embedding/embeddings"],))}
    found[table.format("position")] = Entry((weights["position_embedding/positions"],))
    if given["num_segments"]:
        found[table.format("token_type")] = Entry((weights["segment_embedding/embeddings"],))
    found |= normal(weights, "embedding_norm", "embeddings.LayerNorm")
    blocks, parts = ("transformer", _DISTILBERT_BLOCK) if kind == "distilbert" else ("encoder", _BERT_BLOCK)
    for index in range(given["depth"]):
        block = f"block{index + 1}"
        for path, name in parts.items():
            entries = normal if path.endswith("_norm") else linear
            found |= entries(weights, f"{block}/{block}_{path}", f"{blocks}.layer.{index}.{name}")
    own_pooler = kind == "roberta" and model.head == "classification"  # there it is a part of the head
    if "features/kernel" in weights and kind != "distilbert" and not own_pooler:
        found |= linear(weights, "features", "pooler.dense")
    return {f"{kind}.{name}": entry for name, entry in found.items()} | _head_entries(model, weights)


def _head_entries(model: Bert, weights: dict[str, Any]) -> dict[str, Entry]:
    kind, head = model.model_type, model.head
    if head == "features":
        return {}
    if head == "span":
        return linear(weights, "logits", "qa_outputs")
    if head in ("masked_lm", "pretraining"):
        dense, norm, bias = {
            "bert": ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"),
            "roberta": ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
            "distilbert": ("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
        }[kind]
        found = linear(weights, "masked_lm_dense", dense) | normal(weights, "masked_lm_norm", norm)
        found[bias] = Entry((weights["masked_lm_bias/bias"],))
        return found | (linear(weights, "next_sentence", "cls.seq_relationship") if head == "pretraining" else {})
    if head == "classification" and kind == "roberta":
        return linear(weights, "features", "classifier.dense") | linear(weights, "logits", "classifier.out_proj")
    first = linear(weights, "features", "pre_classifier") if (head, kind) == ("classification", "distilbert") else {}
    return first | linear(weights, "logits", "classifier")


def _family(kind: str, name: str) -> Family:
    heads = {name + suffix: head for suffix, head in _SUFFIXES.items()}
    return Family(
        model_type=kind,
        heads=heads | ({"BertForPreTraining": "pretraining"} if kind == "bert" else {}),
        prefix=f"{kind}.",
        # The pooler is no part of the published RoBERTa, and of BERT's only for heads that read it.
        head_tensors=(
            r"cls\.",
            r"lm_head\.",
            r"classifier\.",
            r"pre_classifier\.",
            r"qa_outputs\.",
            r"vocab_",
            rf"{kind}\.pooler\.",
        ),
        ignored=(
            r".*\.position_ids",
            r".*\.token_type_ids",
            r"cls\.predictions\.decoder\.(weight|bias)",
            r"lm_head\.decoder\.(weight|bias)",
            r"vocab_projector\.weight",
        ),
        unused=(rf"{kind}\.pooler\..*",),
        build=_builder(kind),
        config=_described,
        entries=_entries,
    )


BERT = _family("bert", "Bert")
ROBERTA = _family("roberta", "Roberta")
DISTILBERT = _family("distilbert", "DistilBert")
