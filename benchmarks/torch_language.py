"""Language models of Hugging Face transformers on PyTorch, timed: the peer of `python -m benchmarks.language`.

    echo '{"what": "forward", "batch": 8, "length": 64, "seconds": 1}' | python benchmarks/torch_language.py FOLDER

Needs torch and transformers alone, so that it can run with an interpreter that has nothing else of this project. Reads
a checkpoint's folder, prints one JSON object when it is ready, then answers each line of standard input with one: both
sides are timed in turns. float32, transformers' own choice of attention, Adam in its fused form. `generate` is theirs,
greedy, with their cache of keys and values.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import torch
import transformers
from torch.nn import functional

KINDS = {"bert": "BertForSequenceClassification", "gpt2": "GPT2LMHeadModel", "t5": "T5ForConditionalGeneration"}


def repeated(call: Any, seconds: float) -> dict[str, float]:
    """How often `call` ran in at least that time, after a first time that does not count where it compiles."""
    begun, count = time.perf_counter(), 0
    while not count or time.perf_counter() - begun < seconds:
        call()
        count += 1
    return {"calls": count, "seconds": time.perf_counter() - begun}


class Worker:
    """One model, and the jobs it can do; a job with `compiled` runs it as `torch.compile` made it."""

    def __init__(self, folder: str):
        with open(f"{folder}/config.json") as file:
            self.kind = json.load(file)["model_type"]
        self.model = getattr(transformers, KINDS[self.kind]).from_pretrained(folder)
        if self.kind != "bert":
            self.model.generation_config.eos_token_id = None
            self.model.generation_config.pad_token_id = 0
        self.compiled: Any = None
        self.steps: dict[tuple, Any] = {}
        self.optimizer: Any = None

    def ids(self, batch: int, length: int) -> torch.Tensor:
        return torch.randint(4, self.model.config.vocab_size, (batch, length))

    def network(self, compiled: bool) -> Any:
        if compiled and self.compiled is None:
            self.compiled = torch.compile(self.model)
        return self.compiled if compiled else self.model

    def forward(self, batch: int, length: int, seconds: float, compiled: bool = False) -> dict[str, Any]:
        network, ids = self.network(compiled), self.ids(batch, length)
        self.model.eval()
        with torch.inference_mode():
            return repeated(lambda: network(input_ids=ids).logits, seconds)

    def train(self, batch: int, length: int, seconds: float, compiled: bool = False) -> dict[str, Any]:
        if self.optimizer is None:
            self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-4, betas=(0.9, 0.98), eps=1e-9, fused=True)
        network, ids = self.network(compiled), self.ids(batch, length + 1)
        self.model.train()

        def step() -> None:
            self.optimizer.zero_grad()
            logits = network(input_ids=ids[:, :-1]).logits
            wanted = ids[:, 0] % 2 if self.kind == "bert" else ids[:, 1:].flatten()
            functional.cross_entropy(logits.flatten(0, -2), wanted).backward()
            self.optimizer.step()

        return repeated(step, seconds)

    def generate(self, batch: int, length: int, new: int, seconds: float) -> dict[str, Any]:
        ids = self.ids(batch, length)
        return repeated(lambda: self.write(ids, new), seconds)

    def write(self, ids: torch.Tensor, new: int) -> torch.Tensor:
        self.model.eval()
        with torch.inference_mode():
            given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            return self.model.generate(**given, do_sample=False, max_new_tokens=new)

    def answers(self, ids: list[list[int]]) -> dict[str, Any]:
        """Logits of given token ids."""
        self.model.eval()
        with torch.inference_mode():
            given = {"input_ids": torch.tensor(ids)}
            given |= {"decoder_input_ids": given["input_ids"]} if self.kind == "t5" else {}
            return {"logits": self.model(**given).logits.flatten().tolist()}

    def written(self, ids: list[list[int]], new: int) -> dict[str, Any]:
        """Tokens that greedy search writes."""
        return {"token_ids": self.write(torch.tensor(ids), new)[:, -new:].tolist()}

    def try_compiled(self, job: dict[str, Any]) -> dict[str, Any]:
        """Whether torch.compile builds a job, and in how many seconds."""
        begun = time.perf_counter()
        try:
            getattr(self, job.pop("what"))(**job, compiled=True, seconds=0)
        except Exception as error:  # whatever a compiler says
            return {"built": False, "why": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
        return {"built": True, "seconds": time.perf_counter() - begun}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="of a checkpoint")
    parser.add_argument("--threads", type=int, help="of PyTorch (default: its own choice)")
    flags = parser.parse_args()
    if flags.threads:
        torch.set_num_threads(flags.threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    worker = Worker(flags.folder)
    ready = {"parameters": sum(weight.numel() for weight in worker.model.parameters()), "torch": torch.__version__}
    ready |= {"transformers": transformers.__version__, "threads": torch.get_num_threads()}
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(getattr(worker, job.pop("what"))(**job)), flush=True)


if __name__ == "__main__":
    main()
