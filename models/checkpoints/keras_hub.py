"""Presets of KerasHub into our builders, where `keras_hub` is installed: a folder, `hf://owner/name`, `kaggle://…`.

KerasHub itself finds, downloads and reads a preset. Its backbone's weights have the values of ours in the same order,
so that a table of names for each family is all that is needed; the backbone is let go of afterwards, and so a preset
takes twice the memory of its weights for a moment. Heads of tasks are not read: a head that the backbone does not have
begins new, and the report lists its weights.
"""

import tempfile
from collections.abc import Callable, Mapping
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import keras

from models.bert import bert
from models.checkpoints.family import required
from models.gpt import gpt
from models.llama import llama
from models.t5 import t5
from models.xlnet import xlnet

SCHEMES = ("hf://", "kaggle://")
# Names of a block's layers: ours, and the backbone's.
_ENCODER = {
    "self_attention/query": "self_attention_layer/query",
    "self_attention/key": "self_attention_layer/key",
    "self_attention/value": "self_attention_layer/value",
    "self_attention/output": "self_attention_layer/attention_output",
    "self_attention_norm": "self_attention_layer_norm",
    "hidden": "feedforward_intermediate_dense",
    "output": "feedforward_output_dense",
    "dense_norm": "feedforward_layer_norm",
}
_GPT2 = {ours: theirs.replace("self_attention_layer/", "self_attention/") for ours, theirs in _ENCODER.items()}
_LLAMA = _GPT2 | {
    "self_attention_norm": "self_attention_layernorm",
    "hidden": "feedforward_gate_dense",
    "gate": "feedforward_intermediate_dense",
    "dense_norm": "feedforward_layernorm",
}
_XLNET = {
    "attention/query": "rel_attn/query",
    "attention/key": "rel_attn/key",
    "attention/value": "rel_attn/value",
    "attention/position": "rel_attn/encoding",
    "attention/output": "rel_attn/attention_output",
    "attention/content_bias": "content_attention_bias",
    "attention/position_bias": "positional_attention_bias",
    "attention/segment_bias": "segment_attention_bias",
    "attention/segments": "segment_encoding",
    "attention_norm": "layer_norm_rel_attn",
    "hidden": "feedforward_intermediate_dense",
    "output": "feedforward_output_dense",
    "dense_norm": "layer_norm_ff",
}
_T5_ATTENTION = ("query", "key", "value", "output")
# Files of a tokenizer: the names in a preset, and in a checkpoint.
_ASSETS = {
    "vocabulary.txt": "vocab.txt",
    "vocabulary.json": "vocab.json",
    "merges.txt": "merges.txt",
    "vocabulary.spm": {"llama": "tokenizer.model", "t5": "spiece.model", "xlnet": "spiece.model"},
}


class Hub(NamedTuple):
    """One class of backbones.

    Attributes:
        kind: `model_type` of the same checkpoints in Hugging Face's format.
        build: from the backbone's configuration and the arguments of a head to a model.
        weights: from a backbone to its variables by the paths of ours.
    """

    kind: str
    build: Callable[..., keras.Model]
    weights: Callable[[Any], dict[str, Any]]


def is_preset(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a preset."""
    return "registered_name" in config and "class_name" in config


def library(source: str) -> Any:
    """`keras_hub`, or a `ValueError` that says how to get it."""
    try:
        return import_module("keras_hub")
    except ImportError as error:
        raise ValueError(
            "Expected KerasHub to be installed, which reads its presets (pip install 'dl-essentials[hub]'). "
            f"Received: {source} ({error})"
        ) from error


def load(
    source: str, *, head: str | None, num_classes: int | None
) -> tuple[keras.Model, Any, str, tuple[str, ...], tuple[str, ...]]:
    """The model of a preset, its tokenizer (or None), its head, and the paths of weights that are new and left out.

    Arguments and errors are those of `models.checkpoints.from_pretrained`.
    """
    from models.checkpoints import pretrained  # which reads presets by this file

    try:
        backbone = library(source).models.Backbone.from_preset(source)
    except (ValueError, OSError, KeyError) as error:
        if "dl-essentials[hub]" in str(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"Expected a preset that KerasHub loads. Received: {source} ({reason})") from error
    name = type(backbone).__name__
    if name not in HUBS:
        raise ValueError(f"Expected a backbone of {', '.join(HUBS)}. Received: {name} in {source}")
    hub, config = HUBS[name], backbone.get_config()
    config["tied"] = getattr(backbone.token_embedding, "tie_weights", True)  # LLaMA's configuration does not say it
    head = pretrained.checked_head(head, pretrained.family_of({"model_type": hub.kind}, Path(source)), hub_head(hub))
    classes = {} if num_classes is None else {"num_classes": num_classes}
    model = hub.build(config, head=head, **classes)
    table = hub.weights(backbone)
    fill(model, backbone, table, hub.kind)
    ours = [weight.path for weight in model.weights if weight.trainable]
    fresh, dropped = (
        tuple(path for path in ours if path not in table),
        tuple(path for path in table if path not in ours),
    )
    return model, load_tokenizer(source, hub.kind), head, fresh, dropped


def hub_head(hub: Hub) -> str:
    """The head of a backbone."""
    return "lm" if hub.kind in ("gpt2", "llama", "t5") else "features"


def fill(model: keras.Model, backbone: Any, table: Mapping[str, Any], kind: str) -> None:
    """Gives the weights of a model the values of a backbone.

    Raises:
        ValueError: a variable of the backbone has no name in the table, as those of a quantized one, or another size.
    """
    known = {id(variable) for variable in table.values()}
    problems = [f"nothing for {one.path}" for one in backbone.weights if id(one) not in known]
    pairs = [(weight, table[weight.path]) for weight in model.weights if weight.path in table]
    problems += [
        f"{weight.path} {tuple(weight.shape)}, where the backbone has {tuple(other.shape)}"
        for weight, other in pairs
        if prod(weight.shape) != prod(other.shape)
    ]
    if problems:
        raise ValueError(f"The weights do not fit: {'; '.join(problems[:20])}. Received: {backbone.name}")
    for weight, other in pairs:
        array = keras.ops.convert_to_numpy(other)
        if kind == "xlnet" and weight.path.endswith("attention/output/kernel"):  # (d, n, h), and not (n, h, d)
            array = array.reshape(weight.shape[1], weight.shape[0]).T
        weight.assign(array.reshape(weight.shape))


def load_tokenizer(source: str, kind: str = "") -> Any:
    """The tokenizer of a preset as that of a checkpoint of this kind ("": of the class it has); None without one."""
    from models.checkpoints.tokenizers import PretrainedTokenizer

    try:
        found = library(source).tokenizers.Tokenizer.from_preset(source)
    except (ValueError, OSError) as error:
        if "dl-essentials[hub]" in str(error):
            raise
        return None
    kind = kind or TOKENIZERS.get(type(found).__name__, "")
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        found.save_to_preset(folder)
        for file in (Path(folder) / "assets").rglob("*"):
            name: Any = _ASSETS.get(file.name)
            name = name.get(kind) if isinstance(name, dict) else name
            if name:
                files[name] = file.read_bytes()
    if getattr(found, "lowercase", None) is False:
        files["tokenizer_config.json"] = b'{"do_lower_case": false}'
    return PretrainedTokenizer(kind, files) if files else None


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of our builders that all backbones have."""
    heads = config.get("num_heads", config.get("num_query_heads"))
    names = {"width": "hidden_dim", "depth": "num_layers", "hidden_dim": "intermediate_dim", "dropout": "dropout"}
    return {ours: config[theirs] for ours, theirs in names.items()} | {"num_heads": heads}


def _bert(config, **head) -> keras.Model:
    more = {"max_length": config["max_sequence_length"], "num_segments": config["num_segments"]}
    more |= {"attention_dropout": config["dropout"], "activation": "gelu_tanh"}
    return bert(config["vocabulary_size"], **_sizes(config), **more, **head)


def _roberta(config, **head) -> keras.Model:
    more = {"max_length": config["max_sequence_length"], "num_segments": 0, "pad_id": 1, "epsilon": 1e-5}
    more |= {"attention_dropout": config["dropout"], "pooler": "", "model_type": "roberta", "name": "roberta"}
    return bert(config["vocabulary_size"], **_sizes(config), **more, **head)


def _distilbert(config, **head) -> keras.Model:
    more = {"max_length": config["max_sequence_length"], "num_segments": 0, "pooler": ""}
    more |= {"attention_dropout": config["dropout"], "model_type": "distilbert", "name": "distilbert"}
    return bert(config["vocabulary_size"], **_sizes(config), **more, **head)


def _gpt2(config, **head) -> keras.Model:
    more = {"max_length": config["max_sequence_length"], "attention_dropout": config["dropout"]}
    return gpt(config["vocabulary_size"], **_sizes(config), embedding_dropout=config["dropout"], **more, **head)


def _llama(config, **head) -> keras.Model:
    required(config, rope_position_scaling_factor=1.0)  # which KerasHub's own layer does not read
    scaling: dict[str, Any] | None = None
    if config.get("rope_frequency_adjustment_factor"):
        scaling = {"kind": "llama3", "factor": config["rope_frequency_adjustment_factor"]}
        scaling |= {"low_factor": config["rope_low_freq_factor"], "high_factor": config["rope_high_freq_factor"]}
        scaling["trained_length"] = config["rope_pretraining_sequence_length"]
    more = {"num_kv_heads": config["num_key_value_heads"], "rotary_base": config["rope_max_wavelength"]}
    more |= {"epsilon": config["layer_norm_epsilon"], "tied_output": config["tied"]}
    return llama(config["vocabulary_size"], **_sizes(config), rotary_scaling=scaling, **more, **head)


def _t5(config, **head) -> keras.Model:
    name = config["activation"]
    name = name.get("config", name.get("class_name")) if isinstance(name, dict) else name
    name = str(name).split(">")[-1]
    head_dim = config["key_value_dim"] or config["hidden_dim"] // config["num_heads"]
    more = {"gated": config["use_gated_activation"], "tied_output": config["tied"]}
    more |= {"head_dim": head_dim, "activation": {"gelu_approximate": "gelu_tanh"}.get(name, name)}
    return t5(config["vocabulary_size"], **_sizes(config), epsilon=config["layer_norm_epsilon"], **more, **head)


def _xlnet(config, **head) -> keras.Model:
    name = config["activation"]
    more = {"activation": name, "stddev": config["kernel_initializer_range"]}
    return xlnet(config["vocabulary_size"], **_sizes(config), **more, **head)


def _by_paths(backbone: Any, pairs: Mapping[str, str]) -> dict[str, Any]:
    """Variables by our paths, from the names of layers or of single variables, ours and theirs."""
    theirs = {variable.path: variable for variable in backbone.weights}
    found = {}
    for path, name in pairs.items():
        for other, variable in theirs.items():
            if other == name:
                found[path] = variable
            elif other.startswith(f"{name}/"):
                found[path + other.removeprefix(name)] = variable
    return found


def _blocks(backbone: Any, names: Mapping[str, str], theirs: str = "transformer_layer") -> dict[str, str]:
    count = range(backbone.num_layers)
    return {f"block{i + 1}/block{i + 1}_{our}": f"{theirs}_{i}/{name}" for i in count for our, name in names.items()}


def _encoder(embeddings: str) -> Callable[[Any], dict[str, Any]]:
    """The table of BERT and its kin."""

    def weights(backbone: Any) -> dict[str, Any]:
        names = _blocks(backbone, _ENCODER) | {
            "token_embedding": f"{embeddings}token_embedding",
            "position_embedding/positions": f"{embeddings}position_embedding/embeddings",
            "segment_embedding": "segment_embedding",
            "embedding_norm": "embeddings_layer_norm",
            "features": "pooled_dense",
        }
        return _by_paths(backbone, names)

    return weights


def _gpt2_weights(backbone: Any) -> dict[str, Any]:
    names = {"token_embedding": "token_embedding", "position_embedding/positions": "position_embedding/embeddings"}
    return _by_paths(backbone, _blocks(backbone, _GPT2) | names | {"decoder_norm": "layer_norm"})


def _llama_weights(backbone: Any) -> dict[str, Any]:
    names = {"token_embedding/embeddings": "token_embedding/embeddings", "decoder_norm": "sequence_output_layernorm"}
    names["logits/kernel"] = "token_embedding/reverse_embeddings"
    return _by_paths(backbone, _blocks(backbone, _LLAMA) | names)


def _t5_weights(backbone: Any) -> dict[str, Any]:
    names = {
        "embedding/embeddings": "token_embedding/embeddings",
        "logits/kernel": "token_embedding/reverse_embeddings",
    }
    found = _by_paths(backbone, names)
    for side in ("encoder", "decoder"):
        layers = getattr(backbone, f"{side}_transformer_layers")
        found[f"{side}_relative_bias/bias"] = layers[0].self_attention.relative_attention_bias
        found[f"{side}_norm/scale"] = getattr(backbone, f"{side}_layer_norm").weight
        for index, layer in enumerate(layers):
            ours = f"{side}{index + 1}/{side}{index + 1}"
            kinds = {"self": layer.self_attention}
            found[f"{ours}_self_attention_norm/scale"] = layer.self_attention_layer_norm.weight
            if side == "decoder":
                kinds["memory"] = layer.cross_attention
                found[f"{ours}_memory_attention_norm/scale"] = layer.cross_attention_layer_norm.weight
            for kind, attention in kinds.items():
                for name in _T5_ATTENTION:
                    found[f"{ours}_{kind}_attention/{name}/kernel"] = getattr(attention, f"{name}_projector").kernel
            found[f"{ours}_dense_norm/scale"] = layer.layer_norm.weight
            found[f"{ours}_hidden/kernel"] = layer.input_projector.kernel
            found[f"{ours}_output/kernel"] = layer.output_projector.kernel
            if layer.use_gated_activation:
                found[f"{ours}_gate/kernel"] = layer.gate_projector.kernel
    return found


def _xlnet_weights(backbone: Any) -> dict[str, Any]:
    names = {"token_embedding/embeddings": "content_query_embedding/word_embedding/embeddings"}
    names["token_embedding/mask"] = "encoder_block_attn_mask_layer/mask_emb"
    return _by_paths(backbone, _blocks(backbone, _XLNET, "xlnet_encoder") | names)


HUBS = {
    "BertBackbone": Hub("bert", _bert, _encoder("")),
    "RobertaBackbone": Hub("roberta", _roberta, _encoder("embeddings/")),
    "DistilBertBackbone": Hub("distilbert", _distilbert, _encoder("token_and_position_embedding/")),
    "GPT2Backbone": Hub("gpt2", _gpt2, _gpt2_weights),
    "LlamaBackbone": Hub("llama", _llama, _llama_weights),
    "Llama3Backbone": Hub("llama", _llama, _llama_weights),
    "T5Backbone": Hub("t5", _t5, _t5_weights),
    "XLNetBackbone": Hub("xlnet", _xlnet, _xlnet_weights),
}
TOKENIZERS = {name.replace("Backbone", "Tokenizer"): hub.kind for name, hub in HUBS.items()}
