# ==== wrong: cross-attention gets the mask of self-attention instead of memory_mask
# says: cross_attention gets the mask of the target. Its keys
from torch import Tensor


def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    x = norms[0](x + self_attention(x, x, mask))
    x = norms[1](x + cross_attention(x, memory, mask))
    x = norms[2](x + feed_forward(x))
    return x

# ==== wrong: the queries of cross-attention come from the layer's input instead of the output of self-attention
# says: A later sublayer gets the input of the layer,
def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    norm1, norm2, norm3 = norms
    a = norm1(x + self_attention(x, x, mask))
    b = norm2(a + cross_attention(x, memory, memory_mask))
    return norm3(b + feed_forward(b))

# ==== wrong: the residual of feed_forward adds the output of self-attention instead of that of cross-attention
# says, in part wrongly: A later sublayer gets the input of the layer,
def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    h1 = norms[0](self_attention(x, x, mask) + x)
    h2 = norms[1](cross_attention(h1, memory, memory_mask) + h1)
    h3 = norms[2](feed_forward(h2) + h1)
    return h3

# ==== wrong: pre-norm, the norms stand before the sublayers instead of behind the sums
# says: A norm stands elsewhere than behind the sum: before
def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    y = norms[0](x)
    x = x + self_attention(y, y, mask)
    y = norms[1](x)
    x = x + cross_attention(y, memory, memory_mask)
    y = norms[2](x)
    return x + feed_forward(y)

# ==== wrong: two mistakes: cross-attention has no residual connection, and the second and third norm are swapped
# says:
def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    self_norm, ff_norm, cross_norm = norms
    target = self_norm(x + self_attention(x, x, mask))
    read = cross_norm(cross_attention(target, memory, memory_mask))
    return ff_norm(read + feed_forward(read))

# ==== wrong: two mistakes: cross-attention comes before self-attention, and both masks are inverted
# says:
def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    steps = [
        lambda h: cross_attention(h, memory, ~memory_mask),
        lambda h: self_attention(h, h, ~mask),
        feed_forward,
    ]
    for step, norm in zip(steps, norms):
        x = norm(x + step(x))
    return x

# ==== right: three lines
def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    x = norms[0](x + self_attention(x, x, mask))
    x = norms[1](x + cross_attention(x, memory, memory_mask))
    return norms[2](x + feed_forward(x))

# ==== right: a generator of sublayers in a loop
def decoder_layer(x, mask, memory, memory_mask, self_attention, cross_attention, feed_forward, norms):
    def sublayers():
        yield lambda h: self_attention(h, h, mask)
        yield lambda h: cross_attention(h, memory, memory_mask)
        yield feed_forward

    out = x
    for f, n in zip(sublayers(), norms):
        out = n(f(out).add(out))
    return out
