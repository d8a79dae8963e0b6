# ==== wrong: every layer reads the first x, not what the layer before wrote
# says: Every layer reads the input of the stack, and
from torch import Tensor


def encoder_stack(x: Tensor, mask: Tensor, layers) -> Tensor:
    out = x
    for layer in layers:
        out = layer(x, mask)
    return out

# ==== wrong: only the first layer gets the mask, later ones get a mask that is all True
# says: Some layers get the mask and others do not.
import torch


def encoder_stack(x, mask, layers):
    for i, layer in enumerate(layers):
        m = mask if i == 0 else torch.ones_like(mask)
        x = layer(x, m)
    return x

# ==== wrong: a residual connection is added around each layer
# says: x is added to what each layer wrote. A
def encoder_stack(x, mask, layers):
    for layer in layers:
        x = x + layer(x, mask)
    return x

# ==== wrong: without layers None comes back instead of x
# says: With no layers, encoder_stack gives None (is there a return?), not a
def encoder_stack(x, mask, layers):
    outputs = None
    for layer in layers:
        if outputs is None:
            outputs = layer(x, mask)
        else:
            outputs = layer(outputs, mask)
    return outputs

# ==== wrong: two mistakes: return inside the loop, so only the first layer runs (and None without layers), and the mask is inverted
# says: The mask is turned upside down on its way
def encoder_stack(x, mask, layers):
    padding = mask.logical_not()
    for layer in layers:
        x = layer(x, padding)
        return x

# ==== wrong: two mistakes: the first layer is called twice, and only its first call gets the real mask, all others one that is all True
# says:
def encoder_stack(x, mask, layers):
    if len(layers) == 0:
        return x
    h = layers[0](x, mask)
    everything = mask | ~mask
    for f in layers:
        h = f(h, everything)
    return h

# ==== right: a plain loop
def encoder_stack(x, mask, layers):
    for layer in layers:
        x = layer(x, mask)
    return x

# ==== right: with reduce
from functools import reduce


def encoder_stack(x, mask, layers):
    return reduce(lambda h, f: f(h, mask), layers, x)
