"""Makes `bert_*/`, `roberta_*/` and `distilbert_*/`: tiny random checkpoints of Hugging Face, and what they answer.

    python tests/golden/make_bert.py

The files here were made with transformers 5.23.0 and torch 2.13.0. Neither is needed to run the tests.
"""

from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
    "vocab_size": 60,
    "num_labels": 5,
}
DISTILBERT = {"dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 40, "max_position_embeddings": 20, "vocab_size": 60}
CASES = {
    "bert_features": ("Bert", "Model", SIZES),
    "bert_pretraining": ("Bert", "ForPreTraining", SIZES),
    "bert_classification": ("Bert", "ForSequenceClassification", SIZES),
    "bert_tokens": ("Bert", "ForTokenClassification", SIZES | {"hidden_act": "gelu_new"}),
    "bert_span": ("Bert", "ForQuestionAnswering", SIZES | {"num_labels": 2}),
    "roberta_masked_lm": ("Roberta", "ForMaskedLM", SIZES | {"type_vocab_size": 1}),
    "roberta_classification": ("Roberta", "ForSequenceClassification", SIZES | {"type_vocab_size": 1}),
    "distilbert_masked_lm": ("DistilBert", "ForMaskedLM", DISTILBERT),
    "distilbert_classification": ("DistilBert", "ForSequenceClassification", DISTILBERT | {"num_labels": 5}),
}


def randomized(model):
    """A model whose parameters are away from zeros and ones, so that no bias or scale can be missed."""
    seen = set()
    for parameter in model.parameters():
        if id(parameter) not in seen:  # tied ones once
            seen.add(id(parameter))
            parameter.data = 0.3 * torch.randn_like(parameter) + (parameter.data == 1)
    return model.eval()


def main() -> None:
    """Writes the checkpoints; token ids and segments with padding at the right; hidden states and logits."""
    for place, (name, (family, head, sizes)) in enumerate(CASES.items()):
        torch.manual_seed(place)
        config = getattr(transformers, f"{family}Config")(**sizes)
        model = randomized(getattr(transformers, f"{family}{head}")(config))
        model.save_pretrained(HERE / name, safe_serialization=True)
        token_ids = torch.randint(3, 60, (3, 12))
        token_ids[1, 8:], token_ids[2, 3:] = config.pad_token_id, config.pad_token_id
        given = {"input_ids": token_ids, "attention_mask": (token_ids != config.pad_token_id).long()}
        if family == "Bert":
            given["token_type_ids"] = (torch.arange(12) > 5).long().expand(3, 12) * given["attention_mask"]
        with torch.no_grad():
            answer = model(**given, output_hidden_states=True)
        found = {"hidden": answer.hidden_states[-1]}
        for key in ("pooler_output", "logits", "prediction_logits", "seq_relationship_logits"):
            if getattr(answer, key, None) is not None:
                found[key] = answer[key]
        if head == "ForQuestionAnswering":
            found["logits"] = torch.stack([answer.start_logits, answer.end_logits], -1)
        segments = given.get("token_type_ids", torch.zeros_like(token_ids))
        np.savez_compressed(
            HERE / f"{name}.npz",
            token_ids=token_ids.numpy(),
            segment_ids=segments.numpy(),
            **{key: value.numpy() for key, value in found.items()},
        )


if __name__ == "__main__":
    main()
