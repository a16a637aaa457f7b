"""Recurrent networks in PyTorch's own modules, timed: the peer of `python -m benchmarks.recurrent`.

    echo '{"what": "train", "seconds": 3}' | python benchmarks/torch_recurrent.py classifier --cell lstm

Needs torch alone, so that it can run with an interpreter that has nothing else of this project. Prints one JSON object
when it is ready, then answers each line of standard input with one: both sides are timed in turns. `nn.LSTM` and
`nn.GRU` over whole sequences in eager mode, Adam. Generation is greedy, a step of the decoder at a time, with the keys
of the attention computed once, under `inference_mode`. Every `nn.LSTM` has one bias more than an LSTM needs, which is
not counted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import torch
from torch import nn
from torch.nn import functional

START = 1


def recurrent(cell: str, inputs: int, width: int, both: bool) -> nn.Module:
    return {"lstm": nn.LSTM, "gru": nn.GRU}[cell](inputs, width, batch_first=True, bidirectional=both)


class Classifier(nn.Module):
    """`models/recurrent.py`, reading both ways, with two classes."""

    def __init__(self, cell: str, vocabulary: int, embedding: int, width: int):
        super().__init__()
        self.cell, self.embedding = cell, nn.Embedding(vocabulary, embedding)
        self.body, self.head = recurrent(cell, embedding, width, True), nn.Linear(2 * width, 2)

    def forward(self, source: torch.Tensor) -> torch.Tensor:
        _, state = self.body(self.embedding(source))
        h = state[0] if self.cell == "lstm" else state  # (2, b, d)
        return self.head(torch.cat([h[0], h[1]], dim=-1))


class Translator(nn.Module):
    """`models/seq2seq.py` with a GRU of one layer and additive attention."""

    def __init__(self, cell: str, vocabulary: int, embedding: int, width: int):
        super().__init__()
        self.source, self.target = nn.Embedding(vocabulary, embedding), nn.Embedding(vocabulary, embedding)
        self.encoder, self.decoder = recurrent(cell, embedding, width, True), recurrent(cell, embedding, width, False)
        self.bridge = nn.Linear(2 * width, width)
        self.query, self.key = nn.Linear(width, width, bias=False), nn.Linear(2 * width, width, bias=False)
        self.score = nn.Parameter(torch.randn(width) * width**-0.5)
        self.vector, self.head = nn.Linear(3 * width, width, bias=False), nn.Linear(width, vocabulary)

    def read(self, source: torch.Tensor) -> tuple[torch.Tensor, ...]:
        memory, state = self.encoder(self.source(source))  # (b, s, 2 * d)
        first = torch.tanh(self.bridge(torch.cat([state[0], state[1]], dim=-1)))[None]  # (1, b, d)
        return memory, self.key(memory), (source == 0)[:, None], first

    def write(self, tokens: torch.Tensor, memory: Any, keys: Any, padding: Any, state: Any) -> tuple[Any, Any]:
        x, state = self.decoder(self.target(tokens), state)  # (b, t, d)
        scores = torch.tanh(self.query(x)[:, :, None] + keys[:, None]) @ self.score  # (b, t, s)
        weights = scores.masked_fill(padding, -1e9).softmax(dim=-1)
        return self.head(torch.tanh(self.vector(torch.cat([weights @ memory, x], dim=-1)))), state

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.write(target, *self.read(source))[0]  # (b, t, vocabulary)

    def generate(self, source: torch.Tensor, length: int) -> torch.Tensor:
        """Token ids (b, length), greedily; nothing ends early."""
        memory, keys, padding, state = self.read(source)
        tokens, found = source.new_full((len(source), 1), START), []
        for _ in range(length):
            logits, state = self.write(tokens, memory, keys, padding, state)
            tokens = logits.argmax(-1)  # (b, 1)
            found.append(tokens)
        return torch.cat(found, dim=1)


def repeated(call: Any, seconds: float) -> dict[str, float]:
    """How often `call` ran in at least that time, after a first time that does not count."""
    call()
    begun, count = time.perf_counter(), 0
    while not count or time.perf_counter() - begun < seconds:
        call()
        count += 1
    return {"calls": count, "seconds": time.perf_counter() - begun}


class Worker:
    """One model and its optimizer, on one batch."""

    def __init__(self, flags: argparse.Namespace):
        kind: Any = {"classifier": Classifier, "translator": Translator}[flags.model]
        self.model: nn.Module = kind(flags.cell, flags.vocabulary, flags.embedding_dim, flags.width)
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-4)
        draws = [torch.randint(4, flags.vocabulary, (flags.batch, flags.length)) for _ in range(3)]
        self.inputs = draws[:1] if flags.model == "classifier" else draws[:2]
        self.wanted = torch.randint(2, (flags.batch,)) if flags.model == "classifier" else draws[2]

    def train(self, seconds: float) -> dict[str, float]:
        self.model.train()

        def step() -> None:
            self.optimizer.zero_grad()
            logits = self.model(*self.inputs)
            functional.cross_entropy(logits.flatten(0, -2), self.wanted.flatten()).backward()
            self.optimizer.step()

        return repeated(step, seconds)

    def generate(self, seconds: float) -> dict[str, float]:
        self.model.eval()
        with torch.inference_mode():
            return repeated(lambda: self.model.generate(self.inputs[0], self.inputs[0].shape[1]), seconds)

    def parameters(self) -> int:
        spare = "bias_hh" if isinstance(getattr(self.model, "body", None), nn.LSTM) else "none"
        return sum(weight.numel() for name, weight in self.model.named_parameters() if spare not in name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("classifier", "translator"))
    parser.add_argument("--cell", choices=("lstm", "gru"), default="gru")
    parser.add_argument("--vocabulary", type=int, default=1000)
    parser.add_argument("--embedding_dim", type=int, default=64)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=32)
    torch.manual_seed(0)
    worker = Worker(parser.parse_args())
    ready = {"parameters": worker.parameters(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(getattr(worker, job.pop("what"))(**job)), flush=True)


if __name__ == "__main__":
    main()
