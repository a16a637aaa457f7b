"""Makes `gpt2_*/` and `llama_*/`: tiny random checkpoints of Hugging Face, what they answer and what they write.

    python tests/golden/make_gpt.py [NAME …]

The files here were made with transformers 5.23.0 and torch 2.13.0. Neither is needed to run the tests.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from make_bert import randomized
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model, LlamaConfig, LlamaForCausalLM
from transformers.generation import RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

HERE = Path(__file__).parent
GPT2 = {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 80, "vocab_size": 60}
LLAMA = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 40,
    "max_position_embeddings": 80,
    "vocab_size": 60,
}
ROPE = {"rope_type": "default", "rope_theta": 50.0}
CASES = {
    "gpt2_lm": (GPT2LMHeadModel, GPT2Config(**GPT2)),
    "gpt2_features": (GPT2Model, GPT2Config(**GPT2, n_inner=40)),
    "llama_grouped": (LlamaForCausalLM, LlamaConfig(**LLAMA, num_key_value_heads=2, rope_parameters=ROPE)),
    "llama_tied": (
        LlamaForCausalLM,
        LlamaConfig(**LLAMA, head_dim=8, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    ),
}
LINEAR = {"rope_type": "linear", "rope_theta": 50.0, "factor": 2.5}
# Of the four wavelengths of heads of 8 the first stays, the second is between, and the others are divided.
LLAMA3 = {"rope_type": "llama3", "rope_theta": 50.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 40}
CASES |= {
    f"llama_{name}": (LlamaForCausalLM, LlamaConfig(**LLAMA, head_dim=8, num_key_value_heads=2, rope_parameters=rope))
    for name, rope in {"linear": LINEAR, "llama3": LLAMA3}.items()
}
LENGTHS = (9, 5, 1)


def main() -> None:
    """Writes the checkpoints; logits of texts, and 64 tokens that greedy search writes after prompts of 9, 5, 1."""
    for place, (name, (kind, config)) in enumerate(CASES.items()):
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        torch.manual_seed(place)
        model = randomized(kind(config))
        model.save_pretrained(HERE / name, safe_serialization=True)
        token_ids = torch.randint(0, 60, (3, 9))
        with torch.no_grad():
            answer = model(token_ids, output_hidden_states=True)
        found = {"hidden": answer.hidden_states[-1]}
        if "logits" in answer:
            found["logits"] = answer.logits
            left = torch.zeros_like(token_ids)
            seen = torch.zeros_like(token_ids)
            for row, length in enumerate(LENGTHS):
                left[row, 9 - length :], seen[row, 9 - length :] = token_ids[row, :length], 1
            plain = {"do_sample": False, "max_new_tokens": 64, "pad_token_id": 0}
            given = {"input_ids": left, "attention_mask": seen, **plain}
            found["written"] = model.generate(**given, eos_token_id=None)[:, 9:]
            end = int(found["written"][0, 20])  # a token that ends some texts early
            ended = model.generate(**given, eos_token_id=end)[:, 9:]
            found["end"] = torch.tensor(end)
            found["ended"] = torch.nn.functional.pad(ended, (0, 64 - ended.shape[1]))
            one = {"input_ids": token_ids[:1], "attention_mask": torch.ones_like(token_ids[:1]), **plain}
            found["penalized"] = model.generate(**one, eos_token_id=None, repetition_penalty=1.3)[:, 9:]
        np.savez_compressed(
            HERE / f"{name}.npz", token_ids=token_ids.numpy(), **{key: value.numpy() for key, value in found.items()}
        )
    torch.manual_seed(0)
    logits, before = 3 * torch.randn(4, 50), torch.randint(0, 50, (4, 6))
    np.savez_compressed(
        HERE / "sampling.npz",
        logits=logits.numpy(),
        before=before.numpy(),
        top_k=TopKLogitsWarper(7)(before, logits).softmax(-1).numpy(),
        top_p=TopPLogitsWarper(0.8)(before, logits).softmax(-1).numpy(),
        penalty=RepetitionPenaltyLogitsProcessor(1.7)(before, logits.clone()).numpy(),
    )


if __name__ == "__main__":
    main()
