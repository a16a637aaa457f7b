"""Makes `tokenizers/`: small tokenizers as Hugging Face saves them, 500 strings, and the ids that the library gives.

    python tests/golden/make_tokenizers.py

`strings.json` holds the strings, a long one as `[part, times]`. `golden.tar.xz` holds a folder for each tokenizer with
`tokenizer.json`; one ending in `_old` with the files from before it; and `answers/` with what the library makes of the
strings from each folder. The tokenizers learn from docstrings of Python's standard library and a few lines in other
scripts. The files here were made with transformers 5.23.0, tokenizers 0.23.3 and sentencepiece 0.2.3 on Python 3.11.
None of it is needed to run the tests, apart from tokenizers and sentencepiece.
"""

import importlib
import inspect
import io
import json
import random
import shutil
import tarfile
import tempfile
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    RobertaTokenizer,
    T5Tokenizer,
    TokenizersBackend,
    XLNetTokenizer,
)

HERE = Path(__file__).parent / "tokenizers"
MODULES = "argparse asyncio collections datetime decimal email json logging os random re subprocess tarfile threading"
OTHER = [
    "Crème brûlée, naïve café, Ångström, Straße, Ærøskøbing, Łódź, Žižkov, İstanbul.",
    "Кошка сидит на окне и смотрит на собак во дворе.",
    "Η γρήγορη αλεπού πηδάει πάνω από το σκυλί.",
    "我喜欢学习，也喜欢唱歌。日本語のテキストです。한국어 문장입니다.",
    "القط يجلس على النافذة. שלום עולם. สวัสดีชาวโลก नमस्ते दुनिया",
    "I'm sure you'll see that we've done it; they're here, isn't it? 1234567890 3.14 100%",
]
LLAMA3 = (  # the pattern of Llama 3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def corpus() -> list[str]:
    """Lines to learn from, always the same on one version of Python."""
    lines = set()
    for name in MODULES.split():
        for one in vars(importlib.import_module(name)).values():
            text = inspect.getdoc(one) if callable(one) else None
            lines.update(line.rstrip() for line in (text or "").splitlines() if line.strip())
    return [*sorted(lines), *OTHER * 8]


# fmt: off
PLAIN = [
    "", " ", "  ", "\t", "\n", "\r\n", " \n \t ", "\u3000", "\u00a0", "▁", "▁▁ ▁", "\ufeff", "\x00", "a", " a",
    "a ", "  a  ", "a\tb", "a\nb", "a\r\nb\n\n\nc", "a\u00a0b\u3000c\u2028d", "    if x:\n\t\treturn y  ",
    *(" " * count + "word" + " " * (17 - count) for count in (2, 3, 4, 7, 8, 15, 16)),
]
NAMES = (
    "[CLS] [SEP] [PAD] [UNK] [MASK] <s> </s> <pad> <unk> <mask> <cls> <sep> <eod> <eop> <|endoftext|> <extra_id_0> "
    "<extra_id_99> <extra_id_100> <|begin_of_text|> <0x41> ##ing ▁the Ġthe"
).split()
SPECIAL = [
    "<s><s></s>", "[MASK][MASK] [MASK]", "[mask] [Cls]", "<S>", "<s", "s>", "<<s>>", "< s >",
    "<extra_id_0><extra_id_1>", "The <mask> sat.", "The\n <mask> \n sat.", "＜s＞", "[ＣＬＳ]", "e<s>\u0301",
    "<s>\u0301", "[CLS]\u0301x", "a [SEP] b [SEP]", "NewTok newtok NEWTOK xnewtoky", "a[ENT]b [ent]",
    "a <tail>   b <|pad|><tail>", "  <both>  \n <both>x<both>",
]
ACCENTS = [
    "é", "e\u0301", "ệ", "e\u0323\u0302", "e\u0302\u0323", "ñ", "n\u0303", "Å", "\u212b", "A\u030a", "ǘ", "İ",
    "ı", "ß", "ẞ", "ﬁ", "ﬀ", "ǆ", "ŉ", "½", "①", "Ⅷ", "㎏", "℡", "™\u0301", "ﬁ\u0301", "\u0301",
    "a\u0301\u0301\u0301", "①\u0301", "ﾊﾟ",
]
SCRIPTS = [
    "你好世界", "日本語テスト", "ｶﾀｶﾅ", "ｆｕｌｌｗｉｄｔｈ １２３", "한국어",
    "\u1112\u1161\u11ab\u1100\u1173\u11af", "𠀀𠀁𫠝", "豈", "〇々", "、。「」", "ภาษาไทย", "น้ำ",
    "ยินดีต้อนรับ", "aำ", "العربية", "مُحَمَّد", "ﷺ", "ﻻ", "\u0600e\u0301", "עִבְרִית", "हिन्दी क्षत्रिय",
    "தமிழ்", "ကမ္ဘာ", "ខ្មែរ", "😀", "👩‍👩‍👧‍👦", "👍🏽", "🇩🇪🇫🇷", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "❤️", "☺", "1️⃣", "👁️‍🗨️",
    "a😀b", "😀😀 😀", "™️", "©", "\u200d", "a\u200db", "\u200bzero\u200bwidth",
]
CONTROL = [
    "\x00a\x00", "a\x01b\x1fc\x7fd", "\x85\x86", "a\x0bb\x0cc", "\u00ad\u2060\u180e", "\ufffd", "a\ufffdb",
    "\ufffe\uffff", "\U0010ffff", "\ue000\U000f0000\U00100000", "\u202eabc\u202c", "\ufff9a\ufffb",
    "\u0378\u0379", "\U00030000\U00040000", "\U000e0001\U000e0041",
]
MARKS = [
    "don't can't I'll we've you're he'd I'm it's 'tis", "DON'T I'LL", "''quoted'' ``text``", "a''b``c",
    "'s 't  're\n've", "''" "'s", "x's't", "!'s", "’s", "12345", "1 23 456 7890 12,345.67", "3.14159e-10",
    "٣٤٥ ४५६ ௧", "1st 2nd", "v1.2.3-rc4", "0x1F 0b101", "²³¹ ½ Ⅳ", "a1b2c3",
    "http://www.example.com/a/b?c=d&e=%20f#g", "user.name+tag@example.org", "C:\\path\\file.txt",
    "/usr/lib/python3", "#tag @name $9.99 50%",
    "def f(x):\n    return [i**2 for i in range(x) if i % 2 == 0]\n", "for (int i=0;i<n;++i){a[i]+=b[i];}",
    '<div class="a">&amp;</div>', "x=y=='z'!=0&&!w||v", "....", "---------", "========", "!!!???", "a.b.c",
    "...a...", "__init__", "snake_case", "camelCase HTTPServer", "«»„“”‘’–—…", "€£¥₿", "∑∫√∞≠≤", "`~^|\\",
]
LONG = [
    "a" * 10, "ab" * 20, "aaa aaaa aaaaa", "hahahahaha", "x" * 99, "x" * 100, "x" * 101, "é" * 100, "你" * 101,
    "the" * 40, "theatre" * 15, ["the quick brown fox ", 512], ["x", 10_000], ["ab", 5_000], ["é你 ", 2_000],
    ["=", 10_000], ["Returns the value. ", 540], [" ", 10_000], ["😀", 2_500], ["word\n", 2_000],
    ["a1_", 3_400],
]
BLOCKS = [
    (0x20, 0x7F), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x52F), (0x590, 0x6FF), (0x900, 0xDFF), (0xE00, 0xEFF),
    (0x1100, 0x11FF), (0x1E00, 0x1FFF), (0x2000, 0x2BFF), (0x3000, 0x33FF), (0xFB00, 0xFFFD),
    (0x1F000, 0x1FAFF),
]
PARTS = [
    *" \t\n'▁.,<>[]", "\u0301", "\u200d", "\ufe0f", "'s", "<s>", "[SEP]", "  ", "e", "E", "1", "你", "é", "the",
    "😀",
]
# fmt: on


def strings() -> list[str | list]:
    """The golden list: 500 strings."""
    around = [text for name in NAMES for text in (name, f"one {name} two", f"one{name}two", f"  {name}  ")]
    within = [f"caf{one} {one}tude" for one in ACCENTS]
    found: list[str | list] = [*PLAIN, *around, *SPECIAL, *OTHER, *ACCENTS, *within, *SCRIPTS, *CONTROL, *MARKS, *LONG]
    random.seed(7)
    lines = corpus()
    found += random.sample(lines, 50)
    found += [f"{random.choice(lines)} {random.choice(OTHER)}"[random.randrange(9) :] for _ in range(20)]
    mixed = [chr(code) for first, last in BLOCKS for code in range(first, last + 1)]
    while len(found) < 500:
        kind, size = len(found) % 3, random.randrange(1, 24)
        if kind == 0:
            codes = (random.choice([random.randrange(0x3000), random.randrange(0xE000, 0x20000)]) for _ in range(size))
            found.append("".join(map(chr, codes)))
        else:
            found.append("".join(random.choice(mixed if kind == 1 else PARTS) for _ in range(size)))
    assert len(found) == 500, len(found)
    return found


def trained(model: models.Model, trainer: trainers.Trainer, **parts) -> dict:
    """What `tokenizers` learns from the corpus, as it is written to tokenizer.json."""
    tokenizer = Tokenizer(model)
    for name, value in parts.items():
        setattr(tokenizer, name, value)
    tokenizer.train_from_iterator(corpus(), trainer)
    return json.loads(tokenizer.to_str())["model"]


def sentencepiece_model(**options) -> bytes:
    """What SentencePiece learns from the corpus."""
    target = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=target, hard_vocab_limit=False, num_threads=1, minloglevel=2,
        character_coverage=0.9995, **options,
    )  # fmt: skip
    return target.getvalue()


def write(folder: Path, **files: object) -> Path:
    """Files of a folder: bytes, text, or what becomes JSON; two underscores in a name stand for the dot."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        if not isinstance(content, bytes | str):
            content = json.dumps(content, ensure_ascii=False, indent=2)
        path = folder / name.replace("__", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def bert(root: Path, name: str, lower: bool) -> None:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = trained(
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer(vocab_size=900, special_tokens=special, limit_alphabet=180),
        normalizer=normalizers.BertNormalizer(lowercase=lower),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
    )["vocab"]
    BertTokenizer(vocab=vocab, do_lower_case=lower).save_pretrained(root / name)
    files = {
        "vocab__txt": "".join(f"{token}\n" for token in sorted(vocab, key=vocab.get)),
        "tokenizer_config__json": {"do_lower_case": lower, "model_max_length": 512},
        "special_tokens_map__json": {key: f"[{key.split('_')[0].upper()}]" for key in BERT_NAMES},
    }
    write(root / f"{name}_old", **files)
    if lower:  # once more with tokens that somebody added, and decoding that takes away spaces
        files["special_tokens_map__json"] |= {"additional_special_tokens": ["[ENT]"]}
        files["tokenizer_config__json"] |= {"clean_up_tokenization_spaces": True, "tokenize_chinese_chars": False}
        added = {"NewTok": len(vocab), "[ENT]": len(vocab) + 1}
        folder = write(root / "bert_added_old", added_tokens__json=added, **files)
        BertTokenizer.from_pretrained(folder).save_pretrained(root / "bert_added")


BERT_NAMES = ["unk_token", "sep_token", "pad_token", "cls_token", "mask_token"]


def byte_pairs(special: list[str], pre_tokenizer: pre_tokenizers.PreTokenizer) -> tuple[dict, list]:
    """Vocabulary and merges of a byte-level BPE."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=special, initial_alphabet=alphabet)
    model = trained(models.BPE(), trainer, pre_tokenizer=pre_tokenizer)
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def gpt2(root: Path) -> None:
    vocab, merges = byte_pairs([], pre_tokenizers.ByteLevel(add_prefix_space=False))
    vocab["<|endoftext|>"] = len(vocab)
    GPT2Tokenizer(vocab=vocab, merges=merges).save_pretrained(root / "gpt2")
    files = {"vocab__json": vocab, "merges__txt": merges_text(merges)}
    write(root / "gpt2_old", **files, tokenizer_config__json={"model_max_length": 1024})
    flags = [
        ("<|endoftext|>", False, False),
        ("<|pad|>", False, False),
        ("<tail>", False, True),
        ("<both>", True, True),
    ]
    added = {
        str(len(vocab) - 1 + place): {
            "content": name,
            "lstrip": left,
            "rstrip": right,
            "normalized": name == "<tail>",
            "single_word": False,
            "special": name.startswith("<|"),
        }
        for place, (name, left, right) in enumerate(flags)
    }
    options = {"add_prefix_space": True, "add_bos_token": True, "pad_token": "<|pad|>", "added_tokens_decoder": added}
    folder = write(root / "gpt2_added_old", **files, tokenizer_config__json=options)
    GPT2Tokenizer.from_pretrained(folder).save_pretrained(root / "gpt2_added")


def merges_text(merges: list) -> str:
    return "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges)


def roberta(root: Path) -> None:
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    vocab, merges = byte_pairs(special, pre_tokenizers.ByteLevel(add_prefix_space=False))
    vocab["<mask>"] = len(vocab)
    mask = {"content": "<mask>", "lstrip": True, "normalized": False, "rstrip": False, "single_word": False}
    tokenizer = RobertaTokenizer(vocab=vocab, merges=merges, mask_token=AddedToken(**mask, special=True))
    tokenizer.save_pretrained(root / "roberta")
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>", "pad_token": "<pad>"}
    write(
        root / "roberta_old",
        vocab__json=vocab,
        merges__txt=merges_text(merges),
        special_tokens_map__json=names | {"cls_token": "<s>", "mask_token": mask},
    )


def pieces(model: bytes) -> tuple[list, bytes]:
    """Pieces with scores, and the table of the normalization, of a model of SentencePiece."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    return [(one.piece, one.score) for one in proto.pieces], proto.normalizer_spec.precompiled_charsmap


def t5(root: Path) -> None:
    model = sentencepiece_model(model_type="unigram", vocab_size=800, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    folder = write(root / "t5_old", spiece__model=model, tokenizer_config__json={"model_max_length": 512})
    T5Tokenizer.from_pretrained(folder).save_pretrained(root / "t5")


def xlnet(root: Path) -> None:
    controls = ["<cls>", "<sep>", "<pad>", "<mask>", "<eod>"]
    defined = ["<eop>", ".", "(", ")", '"', "-", "–", "£", "€"]
    model = sentencepiece_model(
        model_type="unigram", vocab_size=800, unk_id=0, bos_id=1, eos_id=2, control_symbols=controls,
        user_defined_symbols=defined,
    )  # fmt: skip
    write(root / "xlnet_old", spiece__model=model)
    vocab, table = pieces(model)
    XLNetTokenizer(vocab=vocab, _spm_precompiled_charsmap=table).save_pretrained(root / "xlnet")


def llama(root: Path) -> None:
    model = sentencepiece_model(
        model_type="bpe", vocab_size=900, byte_fallback=True, split_digits=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
    )  # fmt: skip
    config = {"add_bos_token": True, "add_eos_token": False, "legacy": False, "tokenizer_class": "LlamaTokenizer"}
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    folder = write(
        root / "llama_old",
        tokenizer__model=model,
        tokenizer_config__json=config | names,
        special_tokens_map__json=names,
    )
    LlamaTokenizer.from_pretrained(folder).save_pretrained(root / "llama")
    config |= {"legacy": True, "add_eos_token": True}
    folder = write(root / "llama_legacy_old", tokenizer__model=model, tokenizer_config__json=config | names)
    LlamaTokenizer.from_pretrained(folder).save_pretrained(root / "llama_legacy")


def llama3(root: Path) -> None:
    split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    parts = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    vocab, merges = byte_pairs([], parts)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer, tokenizer.decoder = parts, decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    start = tokenizer.token_to_id("<|begin_of_text|>")
    template = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
        special_tokens=[("<|begin_of_text|>", start)],
    )  # fmt: skip
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    write(
        root / "llama3",
        tokenizer__json=tokenizer.to_str(pretty=True),
        tokenizer_config__json={
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|end_of_text|>",
            "clean_up_tokenization_spaces": True,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


CLASSES = {
    "bert": BertTokenizer,
    "gpt2": GPT2Tokenizer,
    "roberta": RobertaTokenizer,
    "t5": T5Tokenizer,
    "xlnet": XLNetTokenizer,
    "llama": LlamaTokenizer,
    "llama3": TokenizersBackend,
}
# The class of LLaMA does not read `legacy` back from what it saved; what reads tokenizer.json as it stands does.
WHOLE = {"llama_legacy": TokenizersBackend}


def answers(folder: Path, texts: list[str]) -> dict:
    """What the library makes of the strings: ids, pairs of neighbours with their segments, and texts of ids."""
    tokenizer = WHOLE.get(folder.name, CLASSES[folder.name.split("_")[0]]).from_pretrained(folder)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    short = [place for place, row in enumerate(ids[:-1]) if len(row) < 60 and len(ids[place + 1]) < 60][::4]
    pairs = [tokenizer([texts[place]], [texts[place + 1]], return_token_type_ids=True) for place in short]
    special = {name: getattr(tokenizer, f"{name}_id") for name in tokenizer.SPECIAL_TOKENS_ATTRIBUTES}
    return {
        "vocab_size": len(tokenizer),
        "special": special,
        "ids": ids,
        "places": short,
        "marked": [tokenizer(texts[place])["input_ids"] for place in short],
        "pairs": [[one["input_ids"][0], one["token_type_ids"][0]] for one in pairs],
        "decoded": [
            tokenizer.decode(tokenizer(texts[place])["input_ids"], skip_special_tokens=True) for place in short
        ],
        "decoded_whole": [tokenizer.decode(tokenizer(texts[place])["input_ids"]) for place in short],
    }


def main() -> None:
    """Trains the tokenizers, asks the library for its answers, and packs both."""
    HERE.mkdir(exist_ok=True)
    found = strings()
    (HERE / "strings.json").write_text(json.dumps(found, indent=0) + "\n")
    texts = [one if isinstance(one, str) else one[0] * one[1] for one in found]
    root = Path(tempfile.mkdtemp())
    bert(root, "bert_uncased", lower=True)
    bert(root, "bert_cased", lower=False)
    for make in (gpt2, roberta, t5, xlnet, llama, llama3):
        make(root)
    for folder in sorted(root.iterdir()):
        if not folder.name.startswith("answers"):
            write(
                root / "answers" / folder.name, answers__json=json.dumps(answers(folder, texts), separators=(",", ":"))
            )
    with tarfile.open(HERE / "golden.tar.xz", "w:xz", preset=9) as file:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                one = tarfile.TarInfo(str(path.relative_to(root)))
                one.size = path.stat().st_size
                file.addfile(one, io.BytesIO(path.read_bytes()))
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
