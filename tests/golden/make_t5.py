"""Makes `t5_*`: tiny random T5s of Hugging Face as checkpoint folders, and what they answer and generate.

    python tests/golden/make_t5.py

The files here were made with transformers 5.23.0 and torch 2.13.0. Neither is needed to run the tests.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention

HERE = Path(__file__).parent
LENGTH = 64
# v1.0: tied, ReLU, heads that do not share the width, stacks of different depth, distances that leave the buckets.
V10 = {"vocab_size": 61, "d_model": 24, "d_kv": 7, "d_ff": 40, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 3}
V10 |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}
V11 = {"vocab_size": 67, "d_model": 20, "d_kv": 6, "d_ff": 28, "num_layers": 2, "num_heads": 4}
V11 |= {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
# Options of `generate` by the name of their beams.
BEAMS = {
    "plain": {},
    "early": {"early_stopping": True, "length_penalty": 2.0},
    "never": {"early_stopping": "never", "length_penalty": 0.5},
    "short": {"length_penalty": -1.0},
    "sum": {"early_stopping": "never", "length_penalty": 0.0},
}


def moved(model: torch.nn.Module) -> None:
    """Parameters away from zeros and ones, so that no scale can be missed; places count, so that the answers vary."""
    parts = {
        "relative_attention_bias": 4.0,
        "shared": 0.3,
        "lm_head": 0.5,
        "DenseReluDense": 0.5,
        ".q.": 0.4,
        ".k.": 0.4,
    }
    for name, parameter in model.named_parameters():
        parameter.data = 0.5 * torch.randn_like(parameter) + (parameter.data == 1)
        for part, factor in parts.items():
            parameter.data *= factor if part in name else 1.0


def inputs(vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sources (8, 30) of mixed lengths with padding, and targets (8, 33), longer than the distances of v1.0."""
    source = torch.randint(2, vocab_size, (8, 30))
    for row, length in enumerate((30, 25, 3, 17, 1, 9, 22, 12)):
        source[row, length - 1] = 1
        source[row, length:] = 0
    target = torch.randint(2, vocab_size, (8, 33))
    target[:, 0] = 0
    return source, target


@torch.no_grad()
def generated(model, source: torch.Tensor) -> dict[str, np.ndarray]:
    """Greedy answers (b, t), and four beams (b, k, t) with their scores (b, k), of each of the options."""

    def answers(**options):
        found = model.generate(
            source,
            attention_mask=(source != 0).long(),
            max_new_tokens=LENGTH,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
        tokens = torch.nn.functional.pad(found.sequences[:, 1:], (0, LENGTH + 1 - found.sequences.shape[1]))
        over = torch.cumsum(tokens == 1, 1) - (tokens == 1).int() > 0
        tokens[over] = 0  # where a beam's answer is over the library writes the end again and not padding
        return tokens.numpy().astype("int8"), found.get("sequences_scores")

    made = {"greedy": answers(do_sample=False, num_beams=1)[0]}
    for name, options in BEAMS.items():
        tokens, scores = answers(do_sample=False, num_beams=4, num_return_sequences=4, **options)
        made[f"{name}_token_ids"] = tokens.reshape(len(source), 4, LENGTH)
        made[f"{name}_scores"] = scores.reshape(len(source), 4).float().numpy()
    return made


def writer(name: str, config: T5Config, *, seed: int, end: float) -> None:
    """Writes a T5 and its answers. The end's row of the output is scaled, so that some answers end, others do not."""
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(config).eval()
    untied = not config.scale_decoder_outputs
    if untied:  # the library ties what it makes itself, but not what was published
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.shared.weight))
    moved(model)
    model.lm_head.weight.data[1] *= end
    model.save_pretrained(HERE / name)
    source, target = inputs(config.vocab_size)
    with torch.no_grad():
        answer = model(source, attention_mask=(source != 0).long(), decoder_input_ids=target)
    made = generated(model, source)
    exact = generated(model.double(), source)
    for key in made:  # no choice hangs on the last digits
        assert key.endswith("scores") or (made[key] == exact[key]).all(), key
    ends = (made["greedy"] == 1).any(1), (made["plain_token_ids"] == 1).any(2)
    print(name, "greedy ends", ends[0].astype(int), "beams end", ends[1].sum(1))
    np.savez_compressed(
        HERE / f"{name}.npz",
        source=source.numpy(),
        target=target.numpy(),
        hidden=answer.encoder_last_hidden_state.numpy(),
        logits=answer.logits.numpy(),
        **made,
    )


def main() -> None:
    """Writes three checkpoints with their answers, and a grid of bucket numbers."""
    writer("t5_v10", T5Config(**V10, decoder_start_token_id=0), seed=2, end=1.8)
    writer("t5_v11", T5Config(**V11, decoder_start_token_id=0), seed=3, end=1.6)
    torch.manual_seed(3)
    encoder = T5EncoderModel(T5Config(**V10)).eval()
    moved(encoder)
    encoder.save_pretrained(HERE / "t5_encoder")
    source, _ = inputs(V10["vocab_size"])
    with torch.no_grad():
        hidden = encoder(source, attention_mask=(source != 0).long()).last_hidden_state
    np.savez_compressed(HERE / "t5_encoder.npz", source=source.numpy(), hidden=hidden.numpy())
    distances = torch.arange(-300, 301)
    grid = {
        f"{buckets}_{most}_{both}": T5Attention._relative_position_bucket(distances, both, buckets, most).numpy()
        for buckets in (4, 8, 10, 32, 64)
        for most in (20, 64, 100, 128, 256)
        for both in (True, False)
        if most > buckets // (4 if both else 2)
    }
    np.savez_compressed(HERE / "t5_buckets.npz", **{key: found.astype("int8") for key, found in grid.items()})


if __name__ == "__main__":
    main()
