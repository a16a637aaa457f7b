"""Makes `vit_tiny/` and `vit_tiny.npz`: a tiny random ViT of Hugging Face, and what it answers.

    python tests/golden/make_vit.py

The files here were made with transformers 5.23.0 and torch 2.13.0. Neither is needed to run the tests.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import ViTConfig, ViTForImageClassification

HERE = Path(__file__).parent


def main() -> None:
    """Writes the checkpoint, the images, and the answers at the checkpoint's own size."""
    torch.manual_seed(7)
    config = ViTConfig(
        image_size=12,
        patch_size=4,
        num_channels=3,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        num_labels=5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = ViTForImageClassification(config).eval()
    for parameter in model.parameters():  # away from zeros and ones, so that no bias or scale can be missed
        parameter.data = 0.3 * torch.randn_like(parameter) + (parameter.data == 1)
    model.save_pretrained(HERE / "vit_tiny", safe_serialization=True)
    images = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        answer = model(images, output_hidden_states=True)
        features = model.vit(images).last_hidden_state[:, 0]
    np.savez_compressed(
        HERE / "vit_tiny.npz",
        images=images.permute(0, 2, 3, 1).numpy(),
        logits=answer.logits.numpy(),
        features=features.numpy(),
    )


if __name__ == "__main__":
    main()
