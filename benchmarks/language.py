"""Language models against Hugging Face transformers on PyTorch, with the same weights: tokens a second, side by side.

    python -m benchmarks.language

Each network is built here with random weights, written by `to_pretrained`, and read by the peer, whose logits and
greedy tokens must be ours, or this stops. Forward is a batch of random tokens; training is a step of Adam on one batch
that is repeated from memory, with dropout; generation is greedy, with a cache, written tokens counted. Ours is compiled
by XLA, as `--jit` does, and once more without it, as `model.generate` does by itself. The peer answers from
benchmarks/torch_language.py where torch and transformers can be imported (here, or by the interpreter that
DLE_TORCH_PYTHON names), eagerly, and as `torch.compile` makes it where that builds. All sides take turns in one run.
Then a model and a small draft learn Python's standard library for some hundred steps, and the model writes on pieces of
held-out modules, by greedy search and by speculative decoding, token by token the same. Writes
benchmarks/results/language.json; about six minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import sides, speculation
from pipelines.config import quiet_tensorflow

RESULTS = Path(__file__).parent / "results" / "language.json"
PEER = Path(__file__).parent / "torch_language.py"
EAGER = "transformers, eager"
GOALS = {"forward": 1.0, "training": 1.0, "generation": 1.5}


@dataclass(frozen=True)
class Case:
    """A network, and what it is timed on: tokens of (batch, length), and of generation (batch, prompt, new)."""

    name: str
    vocabulary: int
    sizes: dict[str, Any]
    batch: int = 0
    length: int = 0
    writes: tuple[tuple[int, int, int], ...] = field(default=())

    @property
    def kind(self) -> str:
        return self.name.split()[0]


TINY: dict[str, Any] = {"width": 128, "depth": 2, "num_heads": 2, "hidden_dim": 512}
BASE: dict[str, Any] = {"width": 768, "depth": 12, "num_heads": 12, "hidden_dim": 3072}
CASES = (
    Case("bert tiny", 30522, TINY, 32, 64),
    Case("bert base", 30522, BASE, 8, 64),
    Case("gpt2 tiny", 8000, TINY, 32, 64, writes=((1, 16, 64), (8, 16, 64))),
    Case("gpt2 small", 50257, BASE, 8, 64, writes=((1, 16, 16), (8, 16, 16))),
    Case("t5 small", 32128, {"width": 512, "depth": 6, "num_heads": 8, "hidden_dim": 2048}, writes=((8, 32, 16),)),
)


def network(case: Case) -> Any:
    """Our builder of a case: a classifier of texts, a language model, or an encoder with a decoder."""
    from models.bert import bert_classifier
    from models.gpt import gpt
    from models.t5 import t5

    if case.kind == "bert":
        return bert_classifier(case.vocabulary, 2, **case.sizes)
    if case.kind == "t5":
        return t5(case.vocabulary, **case.sizes)
    return gpt(case.vocabulary, **case.sizes, max_length=256)


def random_ids(case: Case, batch: int, length: int) -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(4, case.vocabulary, (batch, length)).astype("int32")


def calling(case: Case, model: Any, *, jit: bool) -> Callable[[], Any]:
    """The answers of a batch."""
    import tensorflow as tf

    ids = tf.constant(random_ids(case, case.batch, case.length))
    graph = tf.function(lambda ids: model(ids, training=False), jit_compile=jit, autograph=False)
    return lambda: graph(ids).numpy()


def writing(case: Case, model: Any, batch: int, length: int, new: int, *, jit: bool) -> Callable[[], Any]:
    """Token ids (b, new) that greedy search writes."""
    import tensorflow as tf

    ids = tf.constant(random_ids(case, batch, length))

    def write(ids: Any) -> Any:
        if case.kind == "t5":
            return model.generate(ids, max_length=new).token_ids[:, 0]
        return model.generate(ids, max_new_tokens=new, temperature=0).token_ids

    graph = tf.function(write, jit_compile=jit, autograph=False)
    return lambda: graph(ids).numpy()


def same(case: Case, model: Any, peer: sides.Peer) -> None:
    """Stops where the peer answers or writes something else."""
    import numpy as np

    ids = random_ids(case, 2, 12)
    given = {"source": ids, "target": ids} if case.kind == "t5" else ids
    theirs = np.array(peer.ask("answers", ids=ids.tolist())["logits"])
    difference = float(np.abs(np.asarray(model(given, training=False)).reshape(-1) - theirs).max())
    if difference > 1e-3:
        raise ValueError(f"Expected the logits of the same weights. Received: a difference of {difference:.2g}")
    for batch, length, new in case.writes[:1]:
        ids = random_ids(case, batch, length)
        ours = writing(case, model, batch, length, new, jit=False)()
        theirs = np.array(peer.ask("written", ids=ids.tolist(), new=new)["token_ids"])
        # An end of T5 stops our search, and the peer's goes on, since it is told of no end.
        ends = np.cumsum(ours == 1, axis=1) - (ours == 1) > 0 if case.kind == "t5" else np.zeros(ours.shape, bool)
        if (ours != theirs)[~ends].any():
            raise ValueError(f"Expected the tokens of the same weights. Received: {ours} and {theirs}")


def compared(case: Case, python: str | None, flags: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one network."""
    import keras

    from models.checkpoints import to_pretrained

    model = network(case)
    with tempfile.TemporaryDirectory() as folder:
        peer = None
        if python:
            to_pretrained(model, Path(folder) / "checkpoint")
            peer = sides.Peer([python, str(PEER), str(Path(folder) / "checkpoint")])
            sides.of_one_size(model.count_params(), peer.said["parameters"])
            same(case, model, peer)
    names: dict[str, dict[str, Any]] = {EAGER: {}}
    if case.sizes == TINY or flags.torch_compile == "all":
        names |= {"transformers, torch.compile": {"compiled": True}} if flags.torch_compile != "none" else {}
    found = []
    shape = {"batch": case.batch, "length": case.length}
    for what in ("forward", "train") if case.batch else ():
        ours: dict[str, sides.Side] = {}
        for name, jit in {"ours, XLA": True, "ours, no XLA": False}.items():
            if what == "forward":
                ours[name] = sides.repeating(calling(case, model, jit=jit))
            else:
                ours[name] = sides.fitting(network(case), batch_of(case), speculation.loss(), jit=jit)
        for name, job in names.items():
            if peer and (not job or builds(peer, {"what": what, **shape}, name)):
                ours[name] = peer.side(what, **shape, **job)
        title = "training" if what == "train" else what
        found += sides.rows(case.name, title, ours, case.batch * case.length, flags.turns, flags.seconds)
    for batch, length, new in case.writes:
        ways = {
            "ours, XLA": sides.repeating(writing(case, model, batch, length, new, jit=True)),
            "ours, no XLA": sides.repeating(writing(case, model, batch, length, new, jit=False)),
        }
        if peer:
            ways[EAGER] = peer.side("generate", batch=batch, length=length, new=new)
        found += sides.rows(f"{case.name}, batch {batch}", "generation", ways, batch * new, flags.turns, flags.seconds)
    if peer:
        peer.end()
    keras.utils.clear_session()
    return found


def builds(peer: sides.Peer, job: dict[str, Any], name: str) -> bool:
    """Whether a compiled job of the peer runs; says how long that took, or why not."""
    found = peer.ask("try_compiled", job=job)
    print(f"{name}: " + (f"built in {found['seconds']:.0f} s" if found["built"] else found["why"]), flush=True)
    return found["built"]


def batch_of(case: Case) -> tuple[Any, Any]:
    """Random tokens, and what is to be predicted: a class of the first, or the tokens that follow."""
    ids = random_ids(case, case.batch, case.length + 1)
    return ids[:, :-1], ids[:, 0] % 2 if case.kind == "bert" else ids[:, 1:]


def missed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Where a goal against transformers is missed by the better of our two ways."""
    found: dict[str, Any] = {}
    for row in rows:
        if row["by"].startswith("transformers"):
            ours = [
                one["tokens/s"]
                for one in rows
                if one["by"].startswith("ours") and (one["network"], one["what"]) == (row["network"], row["what"])
            ]
            ratio = round(max(ours) / row["tokens/s"], 2)
            if ratio < GOALS[row["what"]]:
                found[f"{row['what']}, {row['network']}, {row['by']}"] = ratio
    text = {f"goals ({', '.join(f'{what} {goal}' for what, goal in GOALS.items())}) missed": found or "none"}
    print(text, flush=True)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn (default 1)")
    parser.add_argument("--turns", type=int, default=4, help="of each way (default 4)")
    parser.add_argument("--only", help="networks whose name contains this, or speculation")
    parser.add_argument(
        "--torch_compile",
        choices=("tiny", "all", "none"),
        default="tiny",
        help="networks that torch.compile builds, too; of the others it takes minutes (default tiny)",
    )
    parser.add_argument("--learn", type=int, default=150, help="steps that the model of speculation learns (150)")
    parser.add_argument("--draft_tokens", type=int, default=4, help="of speculation, before each call (default 4)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON file goes")
    flags = parser.parse_args()
    quiet_tensorflow()
    load, python = os.getloadavg()[0], sides.torch_python("transformers")
    cases = [case for case in CASES if not flags.only or flags.only in case.name]
    rows = [row for case in cases for row in compared(case, python, flags)]
    content = sides.machine(python, load)
    if python:
        words = (
            "import torch, transformers; print(transformers.__version__, torch.__version__, torch.get_num_threads())"
        )
        said = subprocess.run([python, "-c", words], capture_output=True, text=True, check=True).stdout.split()
        content["peer"] = dict(zip(("transformers", "PyTorch", "threads"), said))
    for case in cases:
        content[case.name] = {"vocabulary": case.vocabulary, **case.sizes, "batch": case.batch, "tokens": case.length}
    if not flags.only or flags.only in "speculation":
        more, content["speculation"] = speculation.compared(flags)
        rows += more
    content |= missed(rows)
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    flags.out.write_text(json.dumps(content | {"rows": rows}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
