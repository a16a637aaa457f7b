"""What is learned: one flat file per architecture, each with a builder of the file's name.

A builder takes what the task decides by position and what the architecture decides by keyword, and returns an
uncompiled `keras.Model` that answers logits: `resnet(input_shape, num_classes, *, depths=..., name="resnet")`.
Published sizes are the table `SIZES` of the file: `resnet((224, 224, 3), 1000, **SIZES["50"])`. Every classifier reads
a float tensor named `image` and holds a layer `features`, whose output is (b, d), under the head `logits`.
Everything here uses `keras` and `keras.ops` alone and so runs on TensorFlow, JAX and PyTorch.
"""
