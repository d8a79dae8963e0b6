# ==== wrong: only the first layer gets the mask, the others a mask that is True everywhere
# says: Some layers get the mask and others do not.
import torch


def encoder_stack(x, mask, layers):
    for i, layer in enumerate(layers):
        if i == 0:
            x = layer(x, mask)
        else:
            x = layer(x, torch.ones_like(mask))
    return x

# ==== wrong: every layer reads the original x, only the last layer's output is returned
# says: Every layer reads the input of the stack, and
from torch import Tensor


def encoder_stack(x: Tensor, mask: Tensor, layers) -> Tensor:
    out = x
    for layer in layers:
        out = layer(x, mask)
    return out

# ==== wrong: an additional residual connection around each layer
# says: x is added to what each layer wrote. A
def encoder_stack(x, mask, layers):
    for layer in layers:
        x = x + layer(x, mask)
    return x

# ==== wrong: return stands inside the loop, so only the first layer is applied
# says: Only the first layer is called: a return inside
def encoder_stack(x, mask, layers):
    for layer in layers:
        x = layer(x, mask)
        return x
    return x

# ==== wrong: the mask is inverted for every layer (True = hide)
# says: The mask is turned upside down on its way
def encoder_stack(x, mask, layers):
    hide = ~mask
    h = x
    for f in layers:
        h = f(h, hide)
    return h

# ==== wrong: the mask is forgotten, no layer gets it (a mask of all True instead)
# says: No layer gets the mask: every one reads padding,
import torch


def encoder_stack(x, mask, layers):
    b, n, d = x.shape
    everything = torch.ones((b, 1, n, n), dtype=torch.bool, device=x.device)
    for layer in layers:
        x = layer(x, everything)
    return x

# ==== wrong: the last layer is left out (range stops one too early)
# says: A layer at the beginning or at the end
def encoder_stack(x, mask, layers):
    for i in range(len(layers) - 1):
        x = layers[i](x, mask)
    return x

# ==== wrong: the layers are applied in the reverse order
# says: The layers are called in the wrong order, the
from functools import reduce


def encoder_stack(x, mask, layers):
    return reduce(lambda h, layer: layer(h, mask), layers[::-1], x)

# ==== wrong: the layers are popped from the list, which empties the caller's list
# says: it was changed in place
def encoder_stack(x, mask, layers):
    while layers:
        layer = layers.pop(0)
        x = layer(x, mask)
    return x

# ==== wrong: the result of each layer is written into the caller's x (in-place change)
# says: it was changed in place
def encoder_stack(x, mask, layers):
    for layer in layers:
        x[:] = layer(x, mask)
    return x

# ==== wrong: the same layer (the first) is applied every time
# says: The same layer is called again and again. Each
def encoder_stack(x, mask, layers):
    h = x
    for _ in range(len(layers)):
        h = layers[0](h, mask)
    return h

# ==== wrong: the outputs of the layers, each on the original x, are summed
# says: Every layer reads the input of the stack, and
def encoder_stack(x, mask, layers):
    return sum(layer(x, mask) for layer in layers)

# ==== wrong: the mask is flipped from layer to layer, every second one gets it inverted
# says: The mask is turned upside down on its way
import torch


def encoder_stack(x, mask, layers):
    m = mask
    for layer in layers:
        x = layer(x, m)
        m = torch.logical_not(m)
    return x

# ==== wrong: two: the first layer is skipped, and the mask is inverted
# says: The mask is turned upside down on its way
def encoder_stack(x, mask, layers):
    out = x
    for k in range(1, len(layers)):
        out = layers[k](out, mask == False)
    return out

# ==== wrong: two: each layer reads the original x, and the outputs are averaged instead of the last returned
# says: Every layer reads the input of the stack, and
import torch


def encoder_stack(x, mask, layers):
    outputs = [] if len(layers) else [x]
    for layer in layers:
        outputs.append(layer(x, mask))
    return torch.stack(outputs).mean(dim=0)

# ==== wrong: two: a residual is added around each layer, and only the last layer gets the mask
# says: Some layers get the mask and others do not.
import torch


def encoder_stack(x, mask, layers):
    n = len(layers)
    for i in range(n):
        m = mask if i == n - 1 else torch.full_like(mask, True)
        x = x + layers[i](x, m)
    return x

# ==== wrong: padded positions are set to 0 after every layer, which the task does not ask
# says: Positions are set to 0 that the mask hides.
def encoder_stack(x, mask, layers):
    real = mask[:, 0].any(dim=-2).unsqueeze(-1)
    for layer in layers:
        x = layer(x, mask)
        x = x * real
    return x

# ==== wrong: the outputs of all layers are returned in one stacked tensor, not the last one
# says: The outputs of all layers come back. What the
import torch


def encoder_stack(x, mask, layers):
    hidden_states = [x]
    for layer in layers:
        hidden_states.append(layer(hidden_states[-1], mask))
    return torch.stack(hidden_states)

# ==== wrong: the mask is passed as None to each layer
# says: No layer gets the mask: every one reads padding,
def encoder_stack(x, mask=None, layers=()):
    h = x
    for layer in layers:
        h = layer(h, None)
    return h

# ==== right: loop
from torch import Tensor


def encoder_stack(x: Tensor, mask: Tensor, layers) -> Tensor:
    for layer in layers:
        x = layer(x, mask)
    return x

# ==== right: recursion
def encoder_stack(x, mask, layers):
    if len(layers) == 0:
        return x
    first, *rest = layers
    return encoder_stack(first(x, mask), mask, rest)

# ==== right: functools.reduce
from functools import partial, reduce


def encoder_stack(x, mask, layers):
    steps = [partial(lambda f, h: f(h, mask), f) for f in layers]
    return reduce(lambda h, step: step(h), steps, x)
