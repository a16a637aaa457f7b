"""Makes `xlnet_features/`, `xlnet_lm/` and `xlnet_classifier/`: tiny random XLNets of Hugging Face, and their answers.

    python tests/golden/make_xlnet.py

The files here were made with transformers 5.23.0 and torch 2.13.0. Neither is needed to run the tests. Hugging Face's
masks are 1 where a place may not look; they are kept here as ours, true where it may. Every target sees something: a
query that sees nothing gets the mean of all values there, and zeros here.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import XLNetConfig, XLNetForSequenceClassification, XLNetLMHeadModel, XLNetModel

HERE = Path(__file__).parent
VOCABULARY, PADDING, TIMES = 40, 5, 9


def config(**changes) -> XLNetConfig:
    sizes = {"vocab_size": VOCABULARY, "d_model": 16, "n_layer": 2, "n_head": 4, "d_head": 4, "d_inner": 24}
    return XLNetConfig(**(sizes | {"mem_len": None, "bi_data": False} | changes))


def scattered(model: torch.nn.Module) -> torch.nn.Module:
    """Away from zeros and ones, so that no bias or scale can be missed."""
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter) + (parameter.data == 1)
    return model.eval()


def texts(count: int = 4) -> dict[str, torch.Tensor]:
    """Pairs of sentences, of which one is padded on the left and one on the right."""
    token_ids = torch.randint(6, VOCABULARY, (count, TIMES))
    token_ids[1, :3], token_ids[2, 7:] = PADDING, PADDING
    segment_ids = (torch.arange(TIMES) >= torch.tensor([[4], [6], [3], [9]])[:count]).long()
    return {"token_ids": token_ids, "segment_ids": segment_ids}


def asked(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A model's inputs by their names there."""
    seen = (inputs["token_ids"] != PADDING).float()
    return {"input_ids": inputs["token_ids"], "token_type_ids": inputs["segment_ids"], "attention_mask": seen}


def orders(count: int = 4, targets: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """What may be seen (b, t, t) and a target mapping (b, k, t) of random orders, of which the last are targets."""
    order = torch.stack([torch.randperm(TIMES) for _ in range(count)])
    rank = order.argsort(1)
    seen = rank[:, None] < rank[:, :, None]
    return seen, torch.nn.functional.one_hot(order[:, -targets:], TIMES).float()


def arrays(**tensors) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def features() -> None:
    """Hidden states, with distances clamped and half of the batch read backwards; and the query stream's."""
    model = scattered(XLNetModel(config(clamp_len=3, bi_data=True, ff_activation="gelu_new")))
    model.save_pretrained(HERE / "xlnet_features", safe_serialization=True)
    inputs, (seen, mapping) = texts(), orders()
    masks = {"perm_mask": 1 - seen.float(), "target_mapping": mapping}
    hidden, queries = model(**asked(inputs)), model(**asked(inputs), **masks)
    answers = {"hidden": hidden.last_hidden_state, "queries": queries.last_hidden_state}
    np.savez_compressed(
        HERE / "xlnet_features.npz", **arrays(**inputs, permutation_mask=seen, target_mapping=mapping, **answers)
    )


def language_model() -> None:
    """Logits of the content stream; of the query stream; and of both after a segment that is remembered."""
    model = scattered(XLNetLMHeadModel(config(mem_len=12, reuse_len=7)))
    model.save_pretrained(HERE / "xlnet_lm", safe_serialization=True)
    first, second = texts(), texts()
    first["token_ids"][first["token_ids"] == PADDING] = 7  # a memory of padding is looked at there
    seen, mapping = orders()
    masks = {"perm_mask": 1 - seen.float(), "target_mapping": mapping}
    before = model(**asked(first))
    alone, after = model(**asked(second), **masks), model(**asked(second), **masks, mems=before.mems)
    content = model(**asked(second), mems=before.mems)
    np.savez_compressed(
        HERE / "xlnet_lm.npz",
        **{f"first_{name}": array for name, array in arrays(**first).items()},
        **arrays(**second, permutation_mask=seen, target_mapping=mapping),
        **arrays(logits=before.logits, targets=alone.logits, targets_after=after.logits, logits_after=content.logits),
        memory=np.stack([one.transpose(0, 1).numpy() for one in content.mems]),
    )


def classifier() -> None:
    """Scores of three classes, of texts that are padded on the left, as the tokenizer does it."""
    model = scattered(XLNetForSequenceClassification(config(num_labels=3, ff_activation="relu")))
    model.save_pretrained(HERE / "xlnet_classifier", safe_serialization=True)
    inputs = texts()
    inputs["token_ids"][2, 7:] = 8  # no padding on the right
    np.savez_compressed(HERE / "xlnet_classifier.npz", **arrays(**inputs, logits=model(**asked(inputs)).logits))


def main() -> None:
    """Writes the checkpoints, the inputs and the answers."""
    torch.manual_seed(11)
    with torch.no_grad():
        features()
        language_model()
        classifier()


if __name__ == "__main__":
    main()
