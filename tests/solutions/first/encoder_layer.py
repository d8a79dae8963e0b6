# ==== wrong: pre-norm, the norm stands before each sublayer instead of behind the sum
# says: A norm stands before its sublayer (pre-norm, as in
from torch import Tensor


def encoder_layer(x: Tensor, mask: Tensor, attention, feed_forward, norm1, norm2) -> Tensor:
    n = norm1(x)
    x = x + attention(n, n, mask)
    x = x + feed_forward(norm2(x))
    return x

# ==== wrong: no residual connections, x is not added to what the sublayers give
# says: The residual connection around attention is missing: x is
def encoder_layer(x, mask, attention, feed_forward, norm1, norm2):
    out = norm1(attention(x, x, mask))
    out = norm2(feed_forward(out))
    return out

# ==== wrong: the second residual adds the layer's input x instead of the output of the first half
# says: The second sum adds the input of the layer.
def encoder_layer(x, mask, attention, feed_forward, norm1, norm2):
    attended = norm1(x + attention(x, x, mask))
    return norm2(x + feed_forward(attended))

# ==== wrong: the residual around feed_forward is forgotten
# says: The residual connection around the feed-forward network is missing:
def encoder_layer(x, mask, attention, feed_forward, norm1, norm2):
    x = norm1(attention(x, x, mask) + x)
    x = norm2(feed_forward(x))
    return x

# ==== wrong: norm1 is used for both halves, norm2 never
# says: The norms are mixed up: norm1 belongs to attention,
def encoder_layer(x, mask, attention, feed_forward, norm1, norm2):
    def add_and_norm(a, b):
        return norm1(a + b)

    h = add_and_norm(x, attention(x, x, mask))
    return add_and_norm(h, feed_forward(h))

# ==== wrong: the norm is put on the sublayer's output alone, before the sum
# says: A norm is taken of what a sublayer gives,
from torch import Tensor


def encoder_layer(x: Tensor, mask: Tensor, attention, feed_forward, norm1, norm2) -> Tensor:
    residual = x
    y = residual + norm1(attention(x, x, mask))
    residual = y
    y = residual + norm2(feed_forward(y))
    return y

# ==== wrong: the mask is inverted before it is passed (convention True = hide of torch's MultiheadAttention)
# says: The mask is turned upside down before attention gets
def encoder_layer(x, mask, attention, feed_forward, norm1, norm2):
    key_padding = ~mask
    att_out = attention(x, x, key_padding)
    x = norm1(x + att_out)
    ff_out = feed_forward(x)
    return norm2(x + ff_out)

# ==== wrong: feed_forward first and attention second
# says: The sublayers are in the wrong order: attention comes
def encoder_layer(x, mask, attention, feed_forward, norm1, norm2):
    sublayers = [
        (feed_forward, norm1),
        (lambda t: attention(t, t, mask), norm2),
    ]
    for f, norm in sublayers:
        x = norm(x + f(x))
    return x

# ==== wrong: the sum is made in place (x += ...), which changes the caller's x
# says: it was changed in place
def encoder_layer(x, mask, attention, feed_forward, norm1, norm2):
    x += attention(x, x, mask)
    x = norm1(x)
    x = x + feed_forward(x)
    return norm2(x)

# ==== wrong: the mask is not used, attention gets a mask that is True everywhere
# says: The mask does not reach attention: every token collects
import torch


def encoder_layer(x, mask, attention, feed_forward, norm1, norm2):
    batch, length, _ = x.shape
    full = torch.ones(batch, 1, length, length, dtype=torch.bool, device=x.device)
    x = norm1(x + attention(x, x, full))
    return norm2(x + feed_forward(x))

# ==== wrong: feed_forward reads the layer's input x and not what the attention half wrote
# says: The feed-forward network gets the input of the layer.
def encoder_layer(x, mask, attention, feed_forward, norm1, norm2):
    a = attention(x, x, mask)
    f = feed_forward(x)
    h = norm1(x + a)
    return norm2(h + f)

# ==== wrong: the last norm (norm2) is forgotten
# says: A norm is missing: there is one behind each
def encoder_layer(x, mask, attention, feed_forward, norm1, norm2):
    x = norm1(x + attention(x, x, mask))
    return x + feed_forward(x)

# ==== wrong: norm1 and norm2 are swapped
# says: The norms are mixed up: norm1 belongs to attention,
def encoder_layer(x, mask, attention, feed_forward, norm1, norm2):
    hidden = norm2(x.add(attention(x, x, mask)))
    return norm1(hidden.add(feed_forward(hidden)))

# ==== wrong: two: pre-norm, and the memory that attention reads is the x without the norm
# says: A norm stands before its sublayer (pre-norm, as in
def encoder_layer(x, mask, attention, feed_forward, norm1, norm2):
    h = x + attention(norm1(x), x, mask)
    return h + feed_forward(norm2(h))

# ==== wrong: two: the residual around attention is forgotten, and norm2 is never used (norm1 twice)
# says: The residual connection around attention is missing: x is
def encoder_layer(x, mask, attention, feed_forward, norm1, norm2):
    z = norm1(attention(x, x, mask))
    z = norm1(z + feed_forward(z))
    return z

# ==== wrong: two: the mask is inverted, and the second residual adds the layer's input
# says: The mask is turned upside down before attention gets
import torch


def encoder_layer(x, mask, attention, feed_forward, norm1, norm2):
    inputs = x
    x = norm1(inputs + attention(x, x, torch.logical_not(mask)))
    x = norm2(inputs + feed_forward(x))
    return x

# ==== wrong: both sublayers run side by side on x with one sum, and only one norm at the end
# says: The feed-forward network gets the input of the layer.
def encoder_layer(x, mask, attention, feed_forward, norm1, norm2):
    return norm2(x + attention(x, x, mask) + feed_forward(x))

# ==== wrong: the mask's query and key axes are exchanged
# says: Queries and keys have changed places in the mask:
def encoder_layer(x, mask, attention, feed_forward, norm1, norm2):
    m = mask.transpose(-1, -2)
    y = norm1(x + attention(x, x, m))
    y = norm2(y + feed_forward(y))
    return y

# ==== wrong: the arguments of attention are in another order (x, mask, memory)
# says:
def encoder_layer(x, mask, attention, feed_forward, norm1, norm2):
    x = norm1(x + attention(x, mask, x))
    return norm2(x + feed_forward(x))

# ==== right: plain two lines
from torch import Tensor


def encoder_layer(x: Tensor, mask: Tensor, attention, feed_forward, norm1, norm2) -> Tensor:
    x = norm1(x + attention(x, x, mask))
    return norm2(x + feed_forward(x))

# ==== right: a list of (sublayer, norm) pairs folded over x
from functools import reduce


def encoder_layer(x, mask, attention, feed_forward, norm1, norm2):
    steps = ((lambda h: attention(h, h, mask), norm1), (feed_forward, norm2))
    return reduce(lambda h, step: step[1](h + step[0](h)), steps, x)

# ==== right: cloned first, then added in place on the own copy
import torch


def encoder_layer(x, mask, attention, feed_forward, norm1, norm2):
    def add_norm(inp, out, norm):
        total = inp.clone()
        total += out
        return norm(total)

    first = add_norm(x, attention(x, x, mask), norm1)
    second = add_norm(first, feed_forward(first), norm2)
    return second
