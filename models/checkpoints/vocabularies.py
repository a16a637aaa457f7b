"""The files of published tokenizers from before tokenizer.json, made into what the `tokenizers` library runs.

    tokenizer, added = BUILDERS["bert"]({"vocab.txt": content}, options, names)

`vocab.txt` (BERT and DistilBERT), `vocab.json` with `merges.txt` (GPT-2 and RoBERTa), `spiece.model` (T5 and XLNet) and
`tokenizer.model` (LLaMA), each as the class of the family in transformers 5.23 reads it. SentencePiece's models are
read for their pieces, scores and normalization, but it is the library that runs them: a tie, an unknown character or a
letter with several accents can come out otherwise than in SentencePiece itself.
"""

import json
from collections.abc import Callable
from typing import Any

import tokenizers
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

BERT = {"unknown": "[UNK]", "separator": "[SEP]", "pad": "[PAD]", "classification": "[CLS]", "mask": "[MASK]"}
XLNET = {"start": "<s>", "end": "</s>", "unknown": "<unk>", "separator": "<sep>", "pad": "<pad>"}
# What the files leave out when it is the family's own.
DEFAULTS: dict[str, dict[str, str]] = {
    "bert": BERT,
    "distilbert": BERT,
    "roberta": XLNET | {"separator": "</s>", "classification": "<s>", "mask": "<mask>"},
    "gpt2": {"start": "<|endoftext|>", "end": "<|endoftext|>", "unknown": "<|endoftext|>"},
    "llama": {"start": "<s>", "end": "</s>", "unknown": "<unk>"},
    "t5": {"end": "</s>", "unknown": "<unk>", "pad": "<pad>"},
    "xlnet": XLNET | {"classification": "<cls>", "mask": "<mask>"},
}
FILES = {
    "bert": ("vocab.txt",),
    "distilbert": ("vocab.txt",),
    "roberta": ("vocab.json", "merges.txt"),
    "gpt2": ("vocab.json", "merges.txt"),
    "llama": ("tokenizer.model",),
    "t5": ("spiece.model",),
    "xlnet": ("spiece.model",),
}


def text_of(files: dict[str, bytes], name: str) -> str:
    try:
        return files[name].decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"Expected UTF-8 in {name}. Received: {error}") from error


def json_of(files: dict[str, bytes], name: str) -> dict[str, Any]:
    """The object that a file holds; empty where there is no file."""
    if name not in files:
        return {}
    try:
        found = json.loads(text_of(files, name))
    except json.JSONDecodeError as error:
        raise ValueError(f"Expected JSON in {name}. Received: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"Expected an object in {name}. Received: {type(found).__name__}")
    return found


def word_pieces(files: dict, options: dict, names: dict[str, str]) -> tuple[tokenizers.Tokenizer, list]:
    """BERT's WordPiece of vocab.txt."""
    lines = text_of(files, "vocab.txt").removesuffix("\n").split("\n")
    vocabulary = {token.rstrip(): number for number, token in enumerate(lines)}
    for name in ("unknown", "classification", "separator"):
        if names[name] not in vocabulary:
            raise ValueError(f"Expected {names[name]!r} in vocab.txt. Received: {len(vocabulary)} tokens without it")
    found = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=names["unknown"]))
    found.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
        strip_accents=options.get("strip_accents"),
        lowercase=options.get("do_lower_case", True),
    )
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    found.decoder = decoders.WordPiece(prefix="##")
    start, end = names["classification"], names["separator"]
    found.post_processor = processors.TemplateProcessing(
        single=f"{start}:0 $A:0 {end}:0",
        pair=f"{start}:0 $A:0 {end}:0 $B:1 {end}:1",
        special_tokens=[(start, vocabulary[start]), (end, vocabulary[end])],
    )
    return found, []


def byte_pairs(files: dict, options: dict, names: dict[str, str]) -> tuple[tokenizers.Tokenizer, list]:
    """The byte-level BPE of GPT-2, and of RoBERTa, which has marks around texts."""
    vocabulary = json_of(files, "vocab.json")
    pairs: list[tuple[str, str]] = []
    for line in map(str.strip, text_of(files, "merges.txt").split("\n")):
        if line and not line.startswith("#version"):
            left, _, right = line.partition(" ")
            if not right or " " in right:
                raise ValueError(f"Expected two tokens a line in merges.txt. Received: {line!r}")
            pairs.append((left, right))
    ends = {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    found = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, **ends))
    space = options.get("add_prefix_space", False)
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    found.decoder = decoders.ByteLevel()
    if "separator" in names:
        separator, start = names["separator"], names["classification"]
        if separator not in vocabulary or start not in vocabulary:
            number = len(vocabulary)
            raise ValueError(
                f"Expected {separator!r} and {start!r} in vocab.json. Received: {number} tokens without them"
            )
        marks = (separator, vocabulary[separator]), (start, vocabulary[start])
        found.post_processor = processors.RobertaProcessing(*marks, options.get("trim_offsets", True), space)
    return found, []


def pieces(files: dict, name: str, kind: str) -> Any:
    """The model of SentencePiece in a file."""
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        model.ParseFromString(files[name])
    except DecodeError as error:
        raise ValueError(f"Expected a model of SentencePiece in {name}. Received: {error}") from error
    expected = {"unigram": model.trainer_spec.UNIGRAM, "bpe": model.trainer_spec.BPE}[kind]
    if not model.pieces or not model.HasField("trainer_spec") or model.trainer_spec.model_type != expected:
        received = f"{len(model.pieces)} pieces of model type {model.trainer_spec.model_type}"
        raise ValueError(f"Expected a whole {kind} model of SentencePiece in {name}. Received: {received}")
    return model


def marked_pieces(model: Any) -> list[AddedToken]:
    """The pieces that stand for themselves wherever they are: control symbols, and those the trainer was given."""
    controls, given = 3, 4
    marked = [one for one in model.pieces if one.type in (controls, given)]
    return [AddedToken(one.piece, normalized=False, special=one.type == controls) for one in marked]


def unigram_t5(files: dict, options: dict, names: dict[str, str]) -> tuple[tokenizers.Tokenizer, list]:
    """T5's pieces, and its sentinels above them, the first one last."""
    model = pieces(files, "spiece.model", "unigram")
    sentinels = [f"<extra_id_{number}>" for number in range(options.get("extra_ids", 100))]
    scores = [(one.piece, one.score) for one in model.pieces] + [(token, 0.0) for token in reversed(sentinels)]
    found = unigram(scores, 2, "always")
    if model.normalizer_spec.precompiled_charsmap:
        found.normalizer = normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap)
    end = names["end"]
    found.post_processor = processors.TemplateProcessing(
        single=["$A", end], pair=["$A", end, "$B", end], special_tokens=[(end, found.token_to_id(end))]
    )
    return found, [*marked_pieces(model), *sentinels]


def unigram_xlnet(files: dict, options: dict, names: dict[str, str]) -> tuple[tokenizers.Tokenizer, list]:
    """XLNet's pieces, of texts without accents; its marks are at the end of a text."""
    model = pieces(files, "spiece.model", "unigram")
    found = unigram([(one.piece, one.score) for one in model.pieces], model.trainer_spec.unk_id, "always")
    steps: list[normalizers.Normalizer] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    steps += [normalizers.NFKD(), normalizers.StripAccents()]
    steps += [normalizers.Lowercase()] if options.get("do_lower_case") else []
    if model.normalizer_spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap))
    found.normalizer = normalizers.Sequence(steps)
    separator, last = names["separator"], names["classification"]
    found.post_processor = processors.TemplateProcessing(
        single=f"$A:0 {separator}:0 {last}:2",
        pair=f"$A:0 {separator}:0 $B:1 {separator}:1 {last}:2",
        special_tokens=[(token, found.token_to_id(token)) for token in (separator, last)],
    )
    return found, marked_pieces(model)


def unigram(scores: list[tuple[str, float]], unknown: int, prepend: str) -> tokenizers.Tokenizer:
    """A unigram model of words that begin with the mark of a space."""
    found = tokenizers.Tokenizer(models.Unigram(scores, unk_id=unknown, byte_fallback=False))
    spaces = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=prepend)
    found.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces])
    found.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=prepend)
    return found


def llama(files: dict, options: dict, names: dict[str, str]) -> tuple[tokenizers.Tokenizer, list]:
    """LLaMA's BPE, which spells in bytes what it does not know; a piece is merged of any two that make it."""
    model = pieces(files, "tokenizer.model", "bpe")
    vocabulary = {one.piece: number for number, one in enumerate(model.pieces)}
    splits = ((piece[:place], piece[place:]) for piece in vocabulary for place in range(1, len(piece)))
    pairs = [pair for pair in splits if pair[0] in vocabulary and pair[1] in vocabulary]
    found = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, fuse_unk=True, byte_fallback=True))
    space = options.get("add_prefix_space")
    prepend = "never" if space is False else "always" if options.get("legacy", False) else "first"
    found.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=prepend, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    found.decoder = decoders.Sequence(steps + ([] if space is False else [decoders.Strip(content=" ", left=1)]))
    return found, marked_pieces(model)


BUILDERS: dict[str, Callable[[dict, dict, dict[str, str]], tuple[tokenizers.Tokenizer, list]]] = {
    "bert": word_pieces,
    "distilbert": word_pieces,
    "roberta": byte_pairs,
    "gpt2": byte_pairs,
    "llama": llama,
    "t5": unigram_t5,
    "xlnet": unigram_xlnet,
}
