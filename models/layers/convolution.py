"""Convolution, batch normalization, activation: the step that most image classifiers repeat."""

import keras


def conv_norm(
    x,
    filters: int,
    kernel_size: int | tuple[int, int],
    *,
    strides: int = 1,
    padding: str = "same",
    use_bias: bool = False,
    activation: str | None = "relu",
    momentum: float = 0.9,
    epsilon: float = 1e-3,
    scale: bool = True,
    gamma: str = "ones",
    initializer="he_normal",
    name: str,
):
    """A convolution, its batch normalization, an activation: `<name>_conv`, `<name>_bn`, `<name>_<activation>`.

    Args:
        x: (b, h, w, c)
        filters: number of channels that come out.
        kernel_size: height and width of the kernel, in pixels.
        strides: step of the kernel, in pixels.
        padding: "same", "valid", or "centred": half a kernel of zeros on every side, whatever the stride.
        use_bias: whether the convolution has a bias (which the normalization then cancels).
        activation: name of the activation, or None for none.
        momentum: share of the old moving mean and variance kept at each step.
        epsilon: added to the variance.
        scale: whether the normalization learns a scale.
        gamma: initializer of that scale.
        initializer: initializer of the kernel.
        name: prefix of the names.

    Returns:
        (b, h / strides, w / strides, filters)

    Reference: Ioffe and Szegedy 2015, "Batch normalization", alg. 1; He et al. 2015, "Delving deep into rectifiers",
        eq. 10, for the initial kernel.
    """
    if padding == "centred":
        x, padding = centred_padding(x, kernel_size, name=f"{name}_pad"), "valid"
    x = keras.layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding=padding,
        use_bias=use_bias,
        kernel_initializer=initializer,
        name=f"{name}_conv",
    )(x)  # (b, h / strides, w / strides, filters)
    x = keras.layers.BatchNormalization(
        momentum=momentum, epsilon=epsilon, scale=scale, gamma_initializer=gamma, name=f"{name}_bn"
    )(x)
    return x if activation is None else keras.layers.Activation(activation, name=f"{name}_{activation}")(x)


def centred_padding(x, kernel_size, *, name: str):
    """Half a kernel of zeros on every side, so that a strided convolution stays centred on every backend.

    Args:
        x: (b, h, w, c)
        kernel_size: height and width of the kernel, in pixels; 1 adds no layer.
        name: name of the layer.

    Returns:
        (b, h + 2 * (kernel_size // 2), w + 2 * (kernel_size // 2), c)
    """
    if kernel_size == 1:
        return x
    return keras.layers.ZeroPadding2D(kernel_size // 2, name=name)(x)
