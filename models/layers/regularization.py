"""Noise that keeps a network from leaning on single paths: stochastic depth. The noise layers own their seeds."""

import keras


def check_rate(name: str, rate: float) -> float:
    """Returns a rate in [0, 1), or raises a `ValueError`."""
    if not 0 <= rate < 1:
        raise ValueError(f"{name} must be at least 0 and below 1. Received: {rate}")
    return rate


def stochastic_depth(x, rate: float, *, name: str):
    """Drops whole examples of a residual branch in training, and scales the kept ones so that the mean is unchanged.

    Args:
        x: output of the residual branch, before it is added. # (b, ...)
        rate: probability that an example's branch is dropped; 0 adds no layer.
        name: name of the layer.

    Returns:
        A tensor of the same shape.

    Raises:
        ValueError: `rate` is not in [0, 1).

    Reference: Huang et al. 2016, "Deep networks with stochastic depth", eq. 2. They scale the branch in testing, in
        eq. 5; here the kept examples are scaled in training, so that a trained network is used as it is.
    """
    if check_rate("stochastic_depth", rate) == 0:
        return x
    noise_shape = (None,) + (1,) * (len(x.shape) - 1)
    return keras.layers.Dropout(rate, noise_shape=noise_shape, name=name)(x)
