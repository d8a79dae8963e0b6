"""The idea in a picture: padding and causality are masks, `&` makes of them a decoder's.

python scripts/idea.py notebooks/pictures/idea.png
"""

import sys

import torch

import minitransformer as mt
from minitransformer.visualize import combination_figure, save

TOKENS = ["the", "cat", "sat", "on", "it", None, None]


def main(path: str) -> None:
    attention_mask = torch.tensor([[token is not None for token in TOKENS]])
    padding, causal = mt.padding_mask(attention_mask), mt.causal_mask(len(TOKENS))
    torch.manual_seed(1)
    x = torch.randn(1, 1, len(TOKENS), 8)
    _, weights = mt.scaled_dot_product_attention(2 * x.flip(-1), x, x, padding & causal)
    masks = {"padding mask": padding[0, 0], "causal mask": causal[0, 0]}
    save(combination_figure(masks, weights[0, 0], TOKENS), path)


if __name__ == "__main__":
    main(*sys.argv[1:])
