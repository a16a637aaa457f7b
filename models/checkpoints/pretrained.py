"""`from_pretrained` and `to_pretrained`: checkpoint folders in Hugging Face's format into our models, and back.

Everything is checked before a weight is made; then every weight is made once, with its values, so that memory stays at
the size of the weights and nothing is ever half loaded.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import keras

from models.checkpoints import keras_hub, tensors
from models.checkpoints.family import Entry, Family

# The `model_type` of config.json -> the file beside this one, and the family in it.
FAMILIES = {
    "bert": ("bert", "BERT"),
    "roberta": ("bert", "ROBERTA"),
    "distilbert": ("bert", "DISTILBERT"),
    "gpt2": ("gpt", "GPT2"),
    "llama": ("gpt", "LLAMA"),
    "t5": ("t5", "T5"),
    "xlnet": ("xlnet", "XLNET"),
}
FILES = ["config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "*.model"]
FILES += ["tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"]


class Report(NamedTuple):
    """What was loaded: the folder, the head, the head's weights that are new, and tensors of another head left out."""

    folder: str
    head: str
    fresh: tuple[str, ...]
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        notes = [f"{self.head} from {self.folder}"]
        notes += [f"new weights, to be trained: {', '.join(self.fresh)}"] if self.fresh else []
        notes += [f"of another head and left out: {', '.join(self.dropped)}"] if self.dropped else []
        return "; ".join(notes)


class Pretrained(NamedTuple):
    """A model with its weights, its tokenizer (None where the folder has no file of one), and the report."""

    model: keras.Model
    tokenizer: Any
    report: Report


def from_pretrained(
    source: str | Path,
    *,
    head: str | None = None,
    num_classes: int | None = None,
    dtype: str | None = None,
    revision: str | None = None,
) -> Pretrained:
    """Builds the model of a checkpoint, with its weights and its tokenizer.

    Args:
        source: a folder with config.json, safetensors and the tokenizer's files; or the id of a repository of the Hub,
            as "google-bert/bert-base-uncased", which `huggingface_hub` fetches (its cache, `HF_HUB_OFFLINE` and
            `HF_TOKEN` hold). A preset of KerasHub, as a folder, or by "hf://…" or "kaggle://…", is read where that is
            installed (see `models.checkpoints.keras_hub`).
        head: None for the checkpoint's own; or another one of its family, whose weights are then new: "features",
            "masked_lm", "classification", "token_classification", "span", "lm", ….
        num_classes: of a classification; None for what config.json says.
        dtype: of the computation, as a policy of Keras; None for the present one. Weights keep the policy's dtype.
        revision: branch, tag or commit of a repository.

    Returns:
        `Pretrained`.

    Raises:
        ValueError: no such folder or repository, a file is missing, damaged or a pickle, config.json describes what no
            builder makes, or tensors are missing, left over or of another shape; the text lists them.
        ConnectionError: a repository could not be reached.
    """
    folder, config, preset = located(str(source), revision)
    if preset:
        with policy(dtype):
            model, tokenizer, own, fresh, dropped = keras_hub.load(preset, head=head, num_classes=num_classes)
        return Pretrained(model, tokenizer, Report(preset, own, fresh, dropped))
    family = family_of(config, folder)
    found = tensors.Tensors(folder)
    own = head_of(config, family)
    names = canonical(found, family)
    if own == "masked_lm" and head in (None, own) and any("seq_relationship" in name for name in names):
        own = head = "pretraining"  # the published BERTs say one thing in config.json, and hold another
    head = checked_head(head, family, own)
    with policy(dtype), keras.StatelessScope():  # in which weights have a shape, but no values yet
        model = family.build(config, head, num_classes, set(names))
        try:
            values, fresh, dropped = matched(model, family, found, names, same=head == own, classes=num_classes)
        except ValueError:
            for weight in model.weights:  # which Keras makes at the end of the scope, though nobody will read them
                weight._initializer = lambda shape, dtype=None: keras.ops.zeros((), dtype)
            raise
        for path, entry, place in values:
            fill(entry.weights[place], found, path, entry, place)
    from models.checkpoints import tokenizers  # and with it libraries that only texts need

    return Pretrained(model, tokenizers.load(folder, config), Report(str(folder), head, fresh, dropped))


@contextmanager
def policy(dtype: str | None) -> Iterator[None]:
    """Keras's policy for the models that are built inside; None leaves it."""
    before = keras.config.dtype_policy()
    try:
        if dtype is not None:
            keras.config.set_dtype_policy(dtype)
        yield
    finally:
        keras.config.set_dtype_policy(before)


def checked_head(head: str | None, family: Family, own: str) -> str:
    """The name of a head, or the checkpoint's own."""
    heads = sorted(set(family.heads.values()))
    if head is None or head in heads:
        return own if head is None else head
    near = get_close_matches(head, heads, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"Expected a head of {family.model_type}: {', '.join(heads)}.{hint} Received: {head!r}")


def load_tokenizer(source: str | Path, *, revision: str | None = None) -> Any:
    """The tokenizer of a checkpoint without its model, None where it has no file of one.

    Arguments and errors are those of `from_pretrained`.
    """
    from models.checkpoints import tokenizers  # and with it libraries that only texts need

    folder, config, preset = located(str(source), revision)
    return keras_hub.load_tokenizer(preset) if preset else tokenizers.load(folder, config)


def fill(weight: Any, found: tensors.Tensors, path: str, entry: Entry, place: int) -> None:
    """Lets a weight that has no value yet begin with that of a file, in place of random numbers."""

    def value(shape, dtype=None):
        return keras.ops.convert_to_tensor(entry.split(found[path])[place], dtype=dtype)

    weight._initializer = value  # Keras has no public name for this


def located(source: str, revision: str | None) -> tuple[Path, dict[str, Any], str]:
    """The folder of a checkpoint, its config.json, and the name of the preset if it is one of KerasHub."""
    if source.startswith(keras_hub.SCHEMES):
        return Path(), {}, source
    folder = downloaded(source, revision)
    config = read_config(folder)
    name = str(folder) if Path(source).expanduser().is_dir() else f"hf://{source}"
    return folder, config, name if keras_hub.is_preset(config) else ""


def downloaded(source: str, revision: str | None) -> Path:
    """The folder of a checkpoint; a repository is fetched into the Hub's cache first."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or source.startswith("."):
        raise ValueError(f"Expected a folder, or the id of a repository as owner/name. Received: {source}")
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.snapshot_download(source, revision=revision, allow_patterns=FILES))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise ValueError(f"Expected a folder or a repository that you may read. Received: {source}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConnectionError(f"Expected a folder, or a network to fetch {source} by. Received: {reason}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"Expected a checkpoint, a folder with config.json. Received: {folder}")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"Expected JSON. Received: {path} ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"Expected an object in config.json. Received: {path}")
    return config


def family_of(config: dict[str, Any], folder: Path) -> Family:
    """How to build what config.json describes."""
    kind = config.get("model_type")
    if kind not in FAMILIES:
        near = get_close_matches(str(kind), FAMILIES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Expected model_type {', '.join(FAMILIES)}.{hint} Received: {kind!r} in {folder}/config.json")
    module, name = FAMILIES[kind]
    return getattr(import_module(f"models.checkpoints.{module}"), name)


def head_of(config: dict[str, Any], family: Family) -> str:
    """The head that config.json says the checkpoint has."""
    architecture = (config.get("architectures") or [next(iter(family.heads))])[0]
    if architecture not in family.heads:
        raise ValueError(f"Expected an architecture of {', '.join(family.heads)}. Received: {architecture}")
    return family.heads[architecture]


def canonical(found: tensors.Tensors, family: Family) -> dict[str, str]:
    """Full names of the tensors of a file -> their names in it. Files without a head have no prefix; old ones call the
    scale of a normalization gamma and its shift beta."""
    names = {}
    for name in found:
        full = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
        if not full.startswith(family.prefix) and not any(re.match(one, full) for one in family.head_tensors):
            full = family.prefix + full
        names[full] = name
    return names


def matched(
    model: keras.Model, family: Family, found: tensors.Tensors, names: dict[str, str], same: bool, classes: int | None
) -> tuple[list[tuple[str, Entry, int]], tuple[str, ...], tuple[str, ...]]:
    """Which tensor fills which weight; what is new and what is left out, of heads alone.

    Raises:
        ValueError: a tensor is missing, left over or of another shape.
    """
    entries = family.entries(model)
    problems, values, fresh = [], [], []
    for name, entry in entries.items():
        of_head = any(re.match(one, name) for one in family.head_tensors)
        if name in names and found.shape(names[name]) == entry.file_shape():
            values += [(names[name], entry, place) for place in range(len(entry.weights))]
        elif of_head and (not same or (name in names and classes is not None)):  # a head for so many classes
            fresh.append(name)
        elif name in names:
            problems.append(f"{name} as {entry.file_shape()}, where the file has {found.shape(names[name])}")
        else:
            problems.append(f"{name} {entry.file_shape()}, which the file lacks")
    filled = {id(weight) for entry in entries.values() for weight in entry.weights}
    problems += [f"a name for {one.path}" for one in model.weights if one.trainable and id(one) not in filled]
    dropped = []
    for name in sorted(set(names) - set(entries)):
        if any(re.fullmatch(one, name) for one in family.ignored):
            continue
        other = family.unused if same else family.head_tensors
        if any(re.match(one, name) for one in other):
            dropped.append(name)
        else:
            problems.append(f"nothing for the file's {names[name]} {found.shape(names[name])}")
    if problems:
        listed = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise ValueError(f"The tensors do not fit. {model.name} expects {listed}")
    return values, tuple(fresh), tuple(dropped)


def to_pretrained(model: keras.Model, folder: str | Path, tokenizer: Any = None) -> Path:
    """Writes a model as a checkpoint that Hugging Face's libraries, and `from_pretrained`, load.

    Args:
        model: of a builder of bert, gpt, t5 or xlnet.
        folder: to write; it must not exist, or be empty.
        tokenizer: of `from_pretrained`; its files are written, too.

    Returns:
        The folder. It appears whole, or not at all.

    Raises:
        ValueError: another model, or the folder is not empty.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"Expected a folder that does not exist or is empty. Received: {folder}")
    kind = getattr(model, "model_type", None)
    if kind not in FAMILIES:
        raise ValueError(f"Expected a model of {', '.join(FAMILIES)}. Received: {model.name}")
    module, name = FAMILIES[kind]
    family: Family = getattr(import_module(f"models.checkpoints.{module}"), name)
    config = {**family.config(model), "dtype": model.weights[0].dtype}
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    part.mkdir(parents=True)
    try:
        (part / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        tensors.write(part, ((name, entry.joined()) for name, entry in family.entries(model).items()))
        if tokenizer is not None:
            tokenizer.save(part)
        if folder.is_dir():
            folder.rmdir()
        part.rename(folder)
    finally:
        if part.is_dir():
            for file in part.iterdir():
                file.unlink()
            part.rmdir()
    return folder
