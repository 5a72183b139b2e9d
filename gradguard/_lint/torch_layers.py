"""What the layers of `torch.nn` hold; tests compare these names with torch's own classes."""

_SIZES = (1, 2, 3)

DROPOUTS = frozenset(
    {"Dropout", "AlphaDropout", "FeatureAlphaDropout", "RReLU", *(f"Dropout{n}d" for n in _SIZES)}
)
"""Layers without parameters that do something else in train mode than in eval mode."""

AFFINE = frozenset({"LayerNorm", "GroupNorm", "RMSNorm"})
"""Layers that have parameters unless they are told not to."""

_SIZED = {
    f"{lazy}{kind}{n}d"
    for lazy in ("", "Lazy")
    for kind in ("BatchNorm", "Conv", "ConvTranspose")
    for n in _SIZES
}
_RECURRENT = {f"{kind}{cell}" for kind in ("RNN", "GRU", "LSTM") for cell in ("", "Cell")}
_ATTENDING = {"MultiheadAttention", "Transformer"} | {
    f"Transformer{part}Layer" for part in ("Encoder", "Decoder")
}
_OTHERS = {"Bilinear", "Embedding", "EmbeddingBag", "LazyLinear", "Linear", "PReLU"} | {
    "AdaptiveLogSoftmaxWithLoss",
    "SyncBatchNorm",
}

PARAMETRIC = frozenset(_SIZED | _RECURRENT | _ATTENDING | _OTHERS)
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
