"""Published checkpoints into our builders: Keras's weight files, and folders in Hugging Face's format, both ways.

from models.checkpoints import from_pretrained, load_weights, to_pretrained

model = resnet((224, 224, 3), 10, **SIZES["50"])
print(load_weights(model, "imagenet"))          # or a path: resnet50.h5, a folder with model.safetensors

model, tokenizer, report = from_pretrained("google-bert/bert-base-uncased")     # or a folder
to_pretrained(model, "mine", tokenizer)
"""

from models.checkpoints.images import ARCHITECTURES, PUBLISHED, Loaded, load_weights, normalization
from models.checkpoints.pretrained import Pretrained, from_pretrained, load_tokenizer, to_pretrained

__all__ = [
    "ARCHITECTURES",
    "PUBLISHED",
    "Loaded",
    "Pretrained",
    "from_pretrained",
    "load_tokenizer",
    "load_weights",
    "normalization",
    "to_pretrained",
]
