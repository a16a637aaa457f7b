"""The transformer in PyTorch's own modules, timed: the peer of `python -m benchmarks.transformer`.

    echo '{"what": "train", "batch": 16, "length": 64, "seconds": 3}' | python benchmarks/torch_transformer.py

Needs torch alone, so that it can run with an interpreter that has nothing else of this project. Prints one JSON object
when it is ready, then answers each line of standard input with one: both sides are timed in turns. `nn.Transformer`
in eager mode, Adam, label smoothing 0.1; norms, biases, tied output and dropout stand where `models/transformer.py` has
them. Generation is greedy and caches keys and values, which `nn.Transformer` does not by itself: it is written here on
its weights and `scaled_dot_product_attention`, in preallocated memory, under `inference_mode`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from typing import Any

import torch
from torch import nn
from torch.nn import functional

PAD, START = 0, 1


class Translator(nn.Module):
    """Encoder and decoder with token embeddings; the output shares the target's matrix."""

    def __init__(self, vocabulary: int, width: int, depth: int, heads: int, hidden: int, dropout: float, longest: int):
        super().__init__()
        self.source, self.target = nn.Embedding(vocabulary, width), nn.Embedding(vocabulary, width)
        for table in (self.source, self.target):
            nn.init.normal_(table.weight, std=width**-0.5)
        self.dropout, self.scale, self.heads = nn.Dropout(dropout), math.sqrt(width), heads
        self.body = nn.Transformer(width, heads, depth, depth, hidden, dropout, batch_first=True)
        self.body.encoder.norm = self.body.decoder.norm = None  # post-norm blocks end with a norm of their own
        self.body.encoder.use_nested_tensor = False
        for layer in (*self.body.encoder.layers, *self.body.decoder.layers):
            layer.dropout = nn.Identity()  # not of the hidden layer
            layer.self_attn.dropout = 0.0  # nor of the weights
            if hasattr(layer, "multihead_attn"):
                layer.multihead_attn.dropout = 0.0
        place = torch.arange(longest)[:, None] / 10000 ** (torch.arange(0, width, 2) / width)
        waves = torch.cat([place.sin(), place.cos()], dim=1)  # (longest, d)
        self.register_buffer("waves", waves, persistent=False)

    def embed(self, table: nn.Embedding, tokens: torch.Tensor, start: int = 0) -> torch.Tensor:
        x = table(tokens) * self.scale + self.waves[start : start + tokens.shape[1]]
        return self.dropout(x)  # (b, t, d)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        padding = source == PAD  # (b, s)
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        x = self.body(
            self.embed(self.source, source),
            self.embed(self.target, target),
            tgt_mask=causal,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
            tgt_is_causal=True,
        )
        return functional.linear(x, self.target.weight)  # (b, t, vocabulary)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (b, n, t, d / n)

    def generate(self, source: torch.Tensor, length: int) -> torch.Tensor:
        """Token ids (b, length), greedily; nothing ends early."""
        padding = source == PAD
        memory = self.body.encoder(self.embed(self.source, source), src_key_padding_mask=padding)
        seen = ~padding[:, None, None]  # (b, 1, 1, s)
        batch, width = len(source), memory.shape[-1]
        layers = self.body.decoder.layers
        kept, read = [], []
        for layer in layers:
            weight, bias = layer.multihead_attn.in_proj_weight, layer.multihead_attn.in_proj_bias
            pair = functional.linear(memory, weight[width:], bias[width:]).chunk(2, dim=-1)
            read.append([self.split(x).contiguous() for x in pair])
            kept.append([memory.new_empty(batch, self.heads, length, width // self.heads) for _ in range(2)])
        tokens = source.new_full((batch, length + 1), START)
        for place in range(length):
            x = self.embed(self.target, tokens[:, place : place + 1], place)  # (b, 1, d)
            for layer, own, other in zip(layers, kept, read):
                attention = layer.self_attn
                parts = functional.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
                query, key, value = (self.split(part) for part in parts)
                own[0][:, :, place : place + 1], own[1][:, :, place : place + 1] = key, value
                found = functional.scaled_dot_product_attention(
                    query, own[0][:, :, : place + 1], own[1][:, :, : place + 1]
                )
                x = layer.norm1(x + attention.out_proj(found.transpose(1, 2).flatten(2)))
                attention = layer.multihead_attn
                query = self.split(
                    functional.linear(x, attention.in_proj_weight[:width], attention.in_proj_bias[:width])
                )
                found = functional.scaled_dot_product_attention(query, *other, attn_mask=seen)
                x = layer.norm2(x + attention.out_proj(found.transpose(1, 2).flatten(2)))
                x = layer.norm3(x + layer.linear2(layer.activation(layer.linear1(x))))
            tokens[:, place + 1] = functional.linear(x[:, 0], self.target.weight).argmax(-1)
        return tokens[:, 1:]


def repeated(call: Any, seconds: float) -> dict[str, float]:
    """How often `call` ran in at least that time, after a first time that does not count."""
    call()
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        call()
        count += 1
    return {"calls": count, "seconds": time.perf_counter() - begun}


class Worker:
    """One model and its optimizer, and the jobs it can do."""

    def __init__(self, model: Translator, vocabulary: int):
        self.model, self.vocabulary = model, vocabulary
        self.optimizer = torch.optim.Adam(model.parameters(), 1e-4, betas=(0.9, 0.98), eps=1e-9)

    def random(self, batch: int, length: int) -> torch.Tensor:
        return torch.randint(4, self.vocabulary, (batch, length))

    def train(self, batch: int, length: int, seconds: float) -> dict[str, float]:
        source, target, wanted = (self.random(batch, length) for _ in range(3))
        self.model.train()

        def step() -> None:
            self.optimizer.zero_grad()
            logits = self.model(source, target)
            loss = functional.cross_entropy(
                logits.flatten(0, 1), wanted.flatten(), ignore_index=PAD, label_smoothing=0.1
            )
            loss.backward()
            self.optimizer.step()

        return repeated(step, seconds)

    def generate(self, batch: int, length: int, seconds: float, source_length: int) -> dict[str, float]:
        source = self.random(batch, source_length)
        self.model.eval()
        with torch.inference_mode():
            return repeated(lambda: self.model.generate(source, length), seconds)

    def check(self) -> dict[str, float]:
        """The largest difference between tokens of the cached generation and those of the modules themselves."""
        source = self.random(3, 9)
        self.model.eval()
        with torch.inference_mode():
            tokens = self.model.generate(source, 7)
            given = torch.cat([tokens.new_full((3, 1), START), tokens[:, :-1]], dim=1)
            return {"different": int((self.model(source, given).argmax(-1) != tokens).sum())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=1000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--num_heads", type=int, default=4)
    parser.add_argument("--hidden_dim", type=int, default=256)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--longest", type=int, default=4096, help="positions that are prepared")
    flags = parser.parse_args()
    torch.manual_seed(0)
    sizes = (flags.vocabulary, flags.width, flags.depth, flags.num_heads, flags.hidden_dim)
    model = Translator(*sizes, flags.dropout, flags.longest)
    worker = Worker(model, flags.vocabulary)
    ready = {"parameters": sum(weight.numel() for weight in model.parameters()), "torch": torch.__version__}
    print(json.dumps(ready | worker.check() | {"threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(getattr(worker, job.pop("what"))(**job)), flush=True)


if __name__ == "__main__":
    main()
