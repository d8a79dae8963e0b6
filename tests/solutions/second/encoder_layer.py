# ==== wrong: no residual connections, the norm is of the sublayer's output alone
# says: The residual connection around attention is missing: x is
from torch import Tensor


def encoder_layer(x: Tensor, mask: Tensor, attention, feed_forward, norm1, norm2) -> Tensor:
    x = norm1(attention(x, x, mask))
    x = norm2(feed_forward(x))
    return x

# ==== wrong: pre-norm, each norm stands before the sublayer instead of behind the sum
# says: A norm stands before its sublayer (pre-norm, as in
def encoder_layer(x, mask, attention, feed_forward, norm1, norm2):
    n = norm1(x)
    x = x + attention(n, n, mask)
    return x + feed_forward(norm2(x))

# ==== wrong: the second residual adds the layer's input x instead of the output of the attention part
# says: The second sum adds the input of the layer.
def encoder_layer(x, mask, attention, feed_forward, norm1, norm2):
    attended = attention(x, x, mask)
    hidden = norm1(x + attended)
    out = feed_forward(hidden)
    return norm2(x + out)

# ==== wrong: the sum is made in place (x +=), so the caller's x is changed
# says: it was changed in place
def encoder_layer(x, mask, attention, feed_forward, norm1, norm2):
    x += attention(x, x, mask)
    x = norm1(x)
    x = x + feed_forward(x)
    return norm2(x)

# ==== wrong: two mistakes: the mask is inverted, and norm1 is used twice (norm2 never)
# says: The mask is turned upside down before attention gets
def encoder_layer(x, mask, attention, feed_forward, norm1, norm2):
    blocked = ~mask
    for sublayer in (lambda h: attention(h, h, blocked), feed_forward):
        x = norm1(x + sublayer(x))
    return x

# ==== wrong: two mistakes: x + norm(sublayer(x)) instead of norm of the sum, and the two norms are swapped
# says:
def encoder_layer(x, mask, attention, feed_forward, norm1, norm2):
    y = x + norm2(attention(x, x, mask))
    z = y + norm1(feed_forward(y))
    return z

# ==== right: two lines
def encoder_layer(x, mask, attention, feed_forward, norm1, norm2):
    x = norm1(x + attention(x, x, mask))
    return norm2(x + feed_forward(x))

# ==== right: a loop over pairs of sublayer and norm
import torch


def encoder_layer(x, mask, attention, feed_forward, norm1, norm2):
    def self_attend(h):
        return attention(h, h, mask)

    h = x
    for part, norm in zip([self_attend, feed_forward], [norm1, norm2]):
        h = norm(torch.add(part(h), h))
    return h
