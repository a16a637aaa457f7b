"""Schedules of the learning rate that Keras lacks."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("dl_essentials")
class TransformerSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then decay with the square root of the step.

    rate = scale * width^-0.5 * min(step^-0.5, step * warmup_steps^-1.5), where the first step is 1. The peak, at
    `warmup_steps`, is scale / sqrt(width * warmup_steps).

    Args:
        width: length of a token's vector in the model.
        warmup_steps: steps of the warm-up; 4,000 in the paper.
        scale: a factor over the paper's rate.

    Raises:
        ValueError: `width` or `warmup_steps` is not positive.

    Reference: Vaswani et al. 2017, eq. 3.
    """

    def __init__(self, width: int, warmup_steps: int = 4000, scale: float = 1.0):
        if width <= 0 or warmup_steps <= 0:
            raise ValueError(f"width and warmup_steps must be positive. Received: {width} and {warmup_steps}")
        self.width, self.warmup_steps, self.scale = width, warmup_steps, scale

    def __call__(self, step):
        step = ops.cast(step, "float32") + 1.0
        return self.scale * self.width**-0.5 * ops.minimum(step**-0.5, step * self.warmup_steps**-1.5)

    def get_config(self):
        return {"width": self.width, "warmup_steps": self.warmup_steps, "scale": self.scale}
