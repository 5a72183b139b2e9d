"""What the layers of `torch.nn` hold; tests compare these names with torch's own classes."""

DROPOUTS = frozenset(
    {
        "Dropout",
        "Dropout1d",
        "Dropout2d",
        "Dropout3d",
        "AlphaDropout",
        "FeatureAlphaDropout",
        "RReLU",
    }
)
"""Layers without parameters that do something else in train mode than in eval mode."""

AFFINE = frozenset({"LayerNorm", "GroupNorm", "RMSNorm"})
"""Layers that have parameters unless they are told not to."""

PARAMETRIC = frozenset(
    {
        "AdaptiveLogSoftmaxWithLoss",
        "BatchNorm1d",
        "BatchNorm2d",
        "BatchNorm3d",
        "Bilinear",
        "Conv1d",
        "Conv2d",
        "Conv3d",
        "ConvTranspose1d",
        "ConvTranspose2d",
        "ConvTranspose3d",
        "Embedding",
        "EmbeddingBag",
        "GRU",
        "GRUCell",
        "LSTM",
        "LSTMCell",
        "LazyBatchNorm1d",
        "LazyBatchNorm2d",
        "LazyBatchNorm3d",
        "LazyConv1d",
        "LazyConv2d",
        "LazyConv3d",
        "LazyConvTranspose1d",
        "LazyConvTranspose2d",
        "LazyConvTranspose3d",
        "LazyLinear",
        "Linear",
        "MultiheadAttention",
        "PReLU",
        "RNN",
        "RNNCell",
        "SyncBatchNorm",
        "Transformer",
        "TransformerDecoderLayer",
        "TransformerEncoderLayer",
    }
)
"""Layers that have parameters or buffers however they are made."""

CONTAINERS = frozenset({"Sequential", "ModuleList", "ModuleDict"})

NOT_MODULES = frozenset(
    {
        "Parameter",
        "ParameterDict",
        "ParameterList",
        "UninitializedBuffer",
        "UninitializedParameter",
        "Buffer",
    }
)
"""Capitalized names of `torch.nn` that are no layers, or that hold no layers."""

LAYERS = DROPOUTS | AFFINE | PARAMETRIC | CONTAINERS
