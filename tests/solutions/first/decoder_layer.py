# ==== wrong: pre-norm, the norm before each sublayer instead of behind the sum
# says: A norm stands elsewhere than behind the sum: before
def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    n = norms[0](x)
    x = x + self_attention(n, n, mask)
    x = x + cross_attention(norms[1](x), memory, memory_mask)
    x = x + feed_forward(norms[2](x))
    return x

# ==== wrong: the two masks are exchanged
# says: cross_attention gets the mask of the target. Its keys
def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    x = norms[0](x + self_attention(x, x, memory_mask))
    x = norms[1](x + cross_attention(x, memory, mask))
    return norms[2](x + feed_forward(x))

# ==== wrong: no residual connections
# says: There are no residual connections: what goes into a
def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    a = norms[0](self_attention(x, x, mask))
    b = norms[1](cross_attention(a, memory, memory_mask))
    c = norms[2](feed_forward(b))
    return c

# ==== wrong: cross-attention reads the decoder's own state with its mask and never the memory
# says: cross_attention never sees the memory: its keys are those
def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    norm_a, norm_b, norm_c = norms
    x = norm_a(x + self_attention(x, x, mask))
    x = norm_b(x + cross_attention(x, x, mask))
    x = norm_c(x + feed_forward(x))
    return x

# ==== wrong: every residual adds the layer's input instead of the previous step's output
# says: A later sublayer gets the input of the layer,
def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    y = norms[0](x + self_attention(x, x, mask))
    y = norms[1](x + cross_attention(y, memory, memory_mask))
    y = norms[2](x + feed_forward(y))
    return y

# ==== wrong: the first norm is used three times
# says: The norms are mixed up: norms[0] is for self-attention,
def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    norm = norms[0]
    for sub in (
        lambda h: self_attention(h, h, mask),
        lambda h: cross_attention(h, memory, memory_mask),
        feed_forward,
    ):
        x = norm(x + sub(x))
    return x

# ==== wrong: cross-attention comes before self-attention
# says: The order is wrong: self-attention, cross-attention, feed-forward.
def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    h = norms[0](x + cross_attention(x, memory, memory_mask))
    h = norms[1](h + self_attention(h, h, mask))
    return norms[2](h + feed_forward(h))

# ==== wrong: feed_forward before cross-attention
# says: The order is wrong: self-attention, cross-attention, feed-forward.
def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    n1, n2, n3 = norms
    h = n1(x + self_attention(x, x, mask))
    h = n2(h + feed_forward(h))
    return n3(h + cross_attention(h, memory, memory_mask))

# ==== wrong: self_attention is called for the look at the source too, cross_attention never
# says: The two attentions are mixed up: one is called
def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    for (kv, m), norm in zip([(None, mask), (memory, memory_mask)], norms):
        x = norm(x + self_attention(x, x if kv is None else kv, m))
    return norms[2](x + feed_forward(x))

# ==== wrong: memory_mask is not used, padding of the source is seen
# says: cross_attention gets no mask: every token reads the padding
import torch


def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    see_all = torch.ones(x.shape[0], 1, x.shape[1], memory.shape[1], dtype=torch.bool, device=x.device)
    x = norms[0](x + self_attention(x, x, mask))
    x = norms[1](x + cross_attention(x, memory, see_all))
    x = norms[2](x + feed_forward(x))
    return x

# ==== wrong: the norms are popped, which empties the caller's list
# says: it was changed in place
def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    x = norms.pop(0)(x + self_attention(x, x, mask))
    x = norms.pop(0)(x + cross_attention(x, memory, memory_mask))
    x = norms.pop(0)(x + feed_forward(x))
    return x

# ==== wrong: the first sum is made in place and changes the caller's x
# says: it was changed in place
def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    x.add_(self_attention(x, x, mask))
    h = norms[0](x)
    h = norms[1](h + cross_attention(h, memory, memory_mask))
    return norms[2](h + feed_forward(h))

# ==== wrong: the query of cross-attention is the layer's input, not what self-attention wrote
# says: A later sublayer gets the input of the layer,
def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    self_out = self_attention(x, x, mask)
    cross_out = cross_attention(x, memory, memory_mask)
    h = norms[0](x + self_out)
    h = norms[1](h + cross_out)
    h = norms[2](h + feed_forward(h))
    return h

# ==== wrong: both masks are inverted (True = hide)
# says: A mask is turned upside down on its way.
def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    def post(i, a, b):
        return norms[i](a + b)

    x = post(0, x, self_attention(x, x, ~mask))
    x = post(1, x, cross_attention(x, memory, ~memory_mask))
    return post(2, x, feed_forward(x))

# ==== wrong: two: the residual around cross-attention is missing, and the causal mask is replaced by all True
# says: self_attention gets no mask: tokens see padding and their
import torch


def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    x = norms[0](x + self_attention(x, x, torch.ones_like(mask)))
    x = norms[1](cross_attention(x, memory, memory_mask))
    return norms[2](x + feed_forward(x))

# ==== wrong: two: the norms are used in the reverse order, and cross-attention comes first
# says: The order is wrong: self-attention, cross-attention, feed-forward. And: The
def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    c, b, a = norms
    out = a(x + cross_attention(x, memory, memory_mask))
    out = b(out + self_attention(out, out, mask))
    out = c(out + feed_forward(out))
    return out

# ==== wrong: two: pre-norm, and the memory is normed too
# says: A norm stands elsewhere than behind the sum: before
def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    h = norms[0](x)
    y = x + self_attention(h, h, mask)
    y = y + cross_attention(norms[1](y), norms[1](memory), memory_mask)
    return y + feed_forward(norms[2](y))

# ==== wrong: the norm is on the sublayer's output before the sum
# says: A norm stands elsewhere than behind the sum: before
def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    x = x + norms[0](self_attention(x, x, mask))
    x = x + norms[1](cross_attention(x, memory, memory_mask))
    x = x + norms[2](feed_forward(x))
    return x

# ==== wrong: the norm behind cross-attention is forgotten, and so norms[1] stands behind feed_forward
# says:
def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    x = norms[0](x + self_attention(x, x, mask))
    x = x + cross_attention(x, memory, memory_mask)
    return norms[1](x + feed_forward(x))

# ==== wrong: self_attention and cross_attention are exchanged
# says: The two attentions are mixed up: one is called
def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    x = norms[0](x + cross_attention(x, x, mask))
    x = norms[1](x + self_attention(x, memory, memory_mask))
    return norms[2](x + feed_forward(x))

# ==== right: three lines
from torch import Tensor


def decoder_layer(
    x: Tensor,
    mask: Tensor,
    memory: Tensor,
    memory_mask: Tensor,
    self_attention,
    cross_attention,
    feed_forward,
    norms,
) -> Tensor:
    x = norms[0](x + self_attention(x, x, mask))
    x = norms[1](x + cross_attention(x, memory, memory_mask))
    return norms[2](x + feed_forward(x))

# ==== right: a loop over sublayers and norms
def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    def look_at_self(h):
        return self_attention(h, h, mask)

    def look_at_source(h):
        return cross_attention(h, memory, memory_mask)

    for sub, norm in zip([look_at_self, look_at_source, feed_forward], norms):
        x = norm(x + sub(x))
    return x

# ==== right: unpacked norms, torch.add, a new name for each step
import torch


def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    norm_self, norm_cross, norm_ff = norms
    after_self = norm_self(torch.add(self_attention(x, x, mask), x))
    after_cross = norm_cross(torch.add(cross_attention(after_self, memory, memory_mask), after_self))
    after_ff = norm_ff(torch.add(feed_forward(after_cross), after_cross))
    return after_ff
