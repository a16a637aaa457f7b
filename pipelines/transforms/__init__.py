"""Tensor functions that training and serving share: what a model was trained on is what it is asked with."""
