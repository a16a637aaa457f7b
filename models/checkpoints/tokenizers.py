"""The tokenizers of published checkpoints, with the ids that Hugging Face transformers 5 gives, by its own library.

    tokenizer = load(folder, config)
    tokenizer.decode(tokenizer.encode("Hello world"))

`tokenizer.json` is run as it stands, by the library `tokenizers`. Without one the older files are read, and made into
the same as the class of the family in transformers 5.23 makes of them; see `vocabularies.py`.

Deviations from transformers 5.23: where `tokenizer.json` and the class of the family disagree, the file holds and not
the class; and a special token that the files name but no vocabulary has is an error and no new row of an embedding.
"""

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, models, processors

from models.checkpoints.vocabularies import BUILDERS, DEFAULTS, FILES, json_of, text_of

# Our names of special tokens, and those in the files.
NAMES = {
    "start": "bos_token",
    "end": "eos_token",
    "unknown": "unk_token",
    "separator": "sep_token",
    "pad": "pad_token",
    "classification": "cls_token",
    "mask": "mask_token",
}
WHOLE, CONFIG = "tokenizer.json", "tokenizer_config.json"
SPECIAL, ADDED = "special_tokens_map.json", "added_tokens.json"
CLEAN = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


class PretrainedTokenizer:
    """A published tokenizer: texts to token ids and back.

    Args:
        kind: `model_type` of the checkpoint's config.json.
        files: the content of the tokenizer's files by their names.

    Attributes:
        tokenizer: of the `tokenizers` library, which does the work.
        special: the special tokens by `NAMES`, None where there is none.
        pad_id, start_id, end_id, unknown_id, separator_id, classification_id, mask_id: their ids, or None.
        vocab_size: number of ids, added tokens too.

    Raises:
        ValueError: no such kind, a file is missing or damaged, or names a special token that the vocabulary lacks.
    """

    pad_id: int | None
    start_id: int | None
    end_id: int | None
    unknown_id: int | None
    separator_id: int | None
    classification_id: int | None
    mask_id: int | None

    def __init__(self, kind: str, files: dict[str, bytes]):
        if kind not in FILES:
            raise ValueError(f"Expected model_type {', '.join(FILES)}. Received: {kind!r}")
        self.kind, self.files = kind, dict(files)
        self.options = options_of(files)
        named = {name: self.options.get(key) for name, key in NAMES.items()}
        named = {name: DEFAULTS[kind].get(name) if token is None else token for name, token in named.items()}
        extra: list[Any] = []
        try:
            if WHOLE in files:
                self.tokenizer = tokenizers.Tokenizer.from_str(text_of(files, WHOLE))
                self.tokenizer.no_truncation()
                self.tokenizer.no_padding()
            else:
                needed = [name for name in FILES[kind] if name not in files]
                if needed:
                    raise ValueError(f"Expected the files {', '.join(FILES[kind])}. Received: no {needed[0]}")
                contents = {name: content_of(token) for name, token in named.items() if token is not None}
                self.tokenizer, extra = BUILDERS[kind](files, self.options, contents)
        except ValueError:
            raise
        except Exception as error:  # the library raises nothing finer
            name = WHOLE if WHOLE in files else " or ".join(FILES[kind])
            raise ValueError(f"Expected a tokenizer of {kind} in {name}. Received: {error}") from error
        self._add_tokens(named, extra)
        self.special: dict[str, str | None] = {}
        for name, token in named.items():
            number = None if token is None else self.tokenizer.token_to_id(content_of(token))
            self.special[name] = None if number is None else content_of(token)
            setattr(self, f"{name}_id", number)
        if WHOLE not in files:
            self._post_process()
        self.vocab_size = self.tokenizer.get_vocab_size()

    def _add_tokens(self, named: dict[str, Any], extra: Sequence[Any]) -> None:
        """Makes tokens of all that the files add to the vocabulary, so that texts are cut around them."""
        places = {int(place): token for place, token in self.options.get("added_tokens_decoder", {}).items()}
        if ADDED in self.files and not places:
            special = {content_of(token) for token in named.values() if token is not None}
            for content, place in json_of(self.files, ADDED).items():
                of_family = content in special
                places[place] = {"content": content, "special": of_family, "normalized": not of_family}
        known = {token.content for token in self.tokenizer.get_added_tokens_decoder().values()}
        for place, token in sorted(places.items()):
            content = content_of(token)
            if content not in known:
                self.tokenizer.add_tokens([added(token, special=token.get("special", False))])
                known.add(content)
            found = self.tokenizer.token_to_id(content)
            if found != place:
                raise ValueError(f"Expected the added token {content!r} to have id {place}. Received: {found}")
        self._check_names()
        for token in [*named.values(), *extra, *extra_names(self.options)]:
            if token is None or content_of(token) in known or self.tokenizer.token_to_id(content_of(token)) is None:
                continue
            self.tokenizer.add_tokens([added(token, special=getattr(token, "special", True))])
            known.add(content_of(token))

    def _check_names(self) -> None:
        """Refuses files that name a special token which no vocabulary has."""
        for key in [*NAMES.values(), "additional_special_tokens", "extra_special_tokens"]:
            token = self.options.get(key)
            for one in [token] if key in NAMES.values() else extra_names({key: token}):
                if one is not None and self.tokenizer.token_to_id(content_of(one)) is None:
                    raise ValueError(
                        f"Expected a vocabulary with the special token {content_of(one)!r}, which {SPECIAL} or "
                        f"{CONFIG} names as {key}. Received: {self.tokenizer.get_vocab_size()} tokens without it"
                    )

    def _post_process(self) -> None:
        """Lets the older files of LLaMA and GPT-2 put the marks at the ends that their configuration asks for."""
        if self.kind not in ("gpt2", "llama"):
            return
        start = self.special["start"] if self.options.get("add_bos_token") else None
        end = self.special["end"] if self.options.get("add_eos_token") else None
        parts = []
        for letter, segment in (("A", 0), ("B", 1)):
            parts += [f"{start}:{segment}"] if start else []
            parts += [f"${letter}:{segment}"] + ([f"{end}:{segment}"] if end else [])
        marks = [(token, self.tokenizer.token_to_id(token)) for token in dict.fromkeys((start, end)) if token]
        self.tokenizer.post_processor = processors.TemplateProcessing(
            single=parts[: len(parts) // 2], pair=parts, special_tokens=marks
        )

    def encode(self, text: str, pair: str | None = None, add_special: bool = True) -> list[int]:
        """Token ids of a text, or of two as the family joins them.

        Args:
            text: any string; an empty one has no token of its own.
            pair: a second text.
            add_special: with the marks that the family puts around texts. Names of special tokens in the text itself
                become those tokens either way, as in the reference.

        Raises:
            ValueError: no string, or half of a surrogate pair, which is no character.
        """
        return self._run(text, pair, add_special).ids

    def encode_batch(
        self, texts: Iterable[str], pairs: Iterable[str] | None = None, add_special: bool = True
    ) -> list[list[int]]:
        """`encode` of many texts, on all cores."""
        texts = [checked(text) for text in texts]
        seconds = None if pairs is None else [checked(text) for text in pairs]
        if seconds is not None and len(seconds) != len(texts):
            raise ValueError(f"Expected as many second texts as first ones, {len(texts)}. Received: {len(seconds)}")
        both = texts if seconds is None else list(zip(texts, seconds))
        return [one.ids for one in self.tokenizer.encode_batch_fast(both, add_special_tokens=add_special)]

    def segments(self, text: str, pair: str | None = None, add_special: bool = True) -> list[int]:
        """The segment of every token of `encode`: 0 for the first text, 1 for the second, as the family has them."""
        return self._run(text, pair, add_special).type_ids

    def _run(self, text: str, pair: str | None, add_special: bool) -> tokenizers.Encoding:
        pair = None if pair is None else checked(pair)
        return self.tokenizer.encode(checked(text), pair, add_special_tokens=add_special)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of token ids; ids beyond the vocabulary, which padded embeddings have, are left out."""
        ids = [int(one) for one in ids]
        if any(one < 0 for one in ids):
            raise ValueError(f"Expected token ids from 0. Received: {min(ids)}")
        ids = [one for one in ids if one < 2**32]
        text = self.tokenizer.decode(ids, skip_special_tokens=skip_special)
        for part in CLEAN if self.cleans else ():
            text = text.replace(part, part.strip(" "))
        return text

    @property
    def cleans(self) -> bool:
        """Whether decoding takes away spaces before marks of punctuation."""
        return bool(self.options.get("clean_up_tokenization_spaces")) and not isinstance(
            self.tokenizer.model, models.BPE
        )

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, None if there is no such token."""
        return self.tokenizer.token_to_id(token)

    def id_to_token(self, number: int) -> str | None:
        """The token of an id, None if there is no such id."""
        return self.tokenizer.id_to_token(number)

    def save(self, folder: str | Path) -> None:
        """Writes the very files that it was made of."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)

    def state(self) -> dict[str, Any]:
        """Plain JSON for `spec.json`, which `from_state` and `PublishedTokenizer` make the tokenizer of."""
        text = {name: text_of(self.files, name) for name in self.files if not name.endswith(".model")}
        rest = {name: content for name, content in self.files.items() if name not in text}
        binary = {name: base64.b64encode(content).decode() for name, content in rest.items()}
        return {"kind": self.kind, "files": text, "binary": binary}


def load(folder: str | Path, config: dict[str, Any]) -> PretrainedTokenizer | None:
    """The tokenizer of a checkpoint's folder.

    Args:
        folder: of the checkpoint.
        config: of config.json.

    Returns:
        The tokenizer, or None where the folder has no file of one.

    Raises:
        ValueError: as `PretrainedTokenizer`; the text begins with the folder.
    """
    folder, kind = Path(folder), config.get("model_type")
    names = [WHOLE] if (folder / WHOLE).is_file() else list(FILES.get(str(kind), ()))
    if not any((folder / name).is_file() for name in names):
        return None
    files = {name: folder / name for name in [*names, CONFIG, SPECIAL, ADDED]}
    try:
        return PretrainedTokenizer(
            str(kind), {name: file.read_bytes() for name, file in files.items() if file.is_file()}
        )
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def from_state(state: dict[str, Any]) -> PretrainedTokenizer:
    """The tokenizer of `PretrainedTokenizer.state`."""
    files = {name: text.encode() for name, text in state["files"].items()}
    files |= {name: base64.b64decode(text) for name, text in state["binary"].items()}
    return PretrainedTokenizer(state["kind"], files)


def checked(text: str) -> str:
    """Refuses what is no string of Unicode."""
    if not isinstance(text, str):
        raise ValueError(f"Expected a string. Received: {text!r}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"Expected Unicode. Received: half of a surrogate pair at place {error.start}") from error
    return text


def options_of(files: dict[str, bytes]) -> dict[str, Any]:
    """tokenizer_config.json, and special_tokens_map.json on top of it where the former does not list all tokens."""
    options, special = json_of(files, CONFIG), json_of(files, SPECIAL)
    return options if "added_tokens_decoder" in options else options | special


def extra_names(options: dict[str, Any]) -> list[Any]:
    """The special tokens that have no name of their own."""
    found: list[Any] = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        tokens = options.get(key) or []
        found += tokens.values() if isinstance(tokens, dict) else tokens
    return found


def content_of(token: Any) -> str:
    """A token of a file, which is a string or an object with one."""
    content = token.get("content") if isinstance(token, dict) else getattr(token, "content", token)
    if not isinstance(content, str):
        raise ValueError(f"Expected a special token as a string, or an object with its content. Received: {token!r}")
    return content


def added(token: Any, *, special: bool) -> AddedToken:
    """A token of a file as the library takes it."""
    if isinstance(token, AddedToken):
        return token
    flags = {"normalized": False} if isinstance(token, str) or special else {}
    if isinstance(token, dict):
        flags |= {key: token[key] for key in ("single_word", "lstrip", "rstrip", "normalized") if key in token}
    return AddedToken(content_of(token), special=special, **flags)
