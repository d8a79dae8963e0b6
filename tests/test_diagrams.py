"""Guards the diagrams of the course: what stands where, and which mask goes where."""

from itertools import combinations

import pytest
import torch
from matplotlib.patches import Rectangle

from minitransformer import visualize
from minitransformer.diagrams import (
    encoder_decoder_diagram,
    encoder_layer_diagram,
    projections_diagram,
)


def parts(axes):
    """The texts of a panel from bottom to top, those in a box or a circle alone."""
    inside = sorted((text.get_position()[1], text.get_text()) for text in axes.texts)
    return [text for _, text in inside if text in ("self-attention", "feed-forward", "norm", "+")]


def test_a_post_norm_layer_normalizes_the_sum_and_a_pre_norm_layer_the_input():
    post, pre = map(parts, encoder_layer_diagram().axes)
    assert post == ["self-attention", "+", "norm", "feed-forward", "+", "norm"]
    assert pre == ["norm", "self-attention", "+", "norm", "feed-forward", "+"]


def test_the_residual_connection_goes_around_the_sublayer():
    for norm in ("post", "pre"):
        (axes,) = encoder_layer_diagram([norm]).axes
        where = {text.get_text(): text.get_position()[1] for text in axes.texts}
        attention, feed_forward = (line.get_ydata() for line in axes.lines)
        assert attention[0] < where["self-attention"] < attention[-1]
        assert attention[-1] < feed_forward[0] < where["feed-forward"] < feed_forward[-1]
        assert {line.get_color() for line in axes.lines} == {visualize.LINES[1]}


@pytest.mark.parametrize("norms", [(), ("post", "sandwich"), "pre"])
def test_an_unknown_kind_of_norm_is_refused(norms):
    with pytest.raises(ValueError, match="norms: expected some of post, pre, got"):
        encoder_layer_diagram(norms)


def test_projections_have_the_widths_that_are_asked_for():
    (axes,) = projections_diagram(dimensions=5, width=2).axes
    squares = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert len(squares) == 5 + 3 * 2
    texts = {text.get_text() for text in axes.texts}
    assert {"query matrix", "key matrix", "value matrix"} < texts


@pytest.mark.parametrize("draw", [encoder_layer_diagram, projections_diagram])
def test_no_text_of_a_diagram_overlaps_another(draw):
    figure = draw()
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
        assert not [(a, b) for a, b in combinations(boxes, 2) if a.overlaps(b)]


def masks_of_encoder_and_decoder():
    """Source 1 2 3 and a pad, target <s> 7 and a pad."""
    source, target = torch.tensor([1, 1, 1, 0]) != 0, torch.tensor([1, 1, 0]) != 0
    decoder = target[:, None] & target & torch.ones(3, 3).tril().bool()
    masks = source[:, None] & source, decoder, target[:, None] & source
    return (*masks, ["1", "2", "3", None], ["<s>", "7", None])


def test_each_of_the_three_masks_is_drawn_with_its_queries_and_keys():
    drawn = encoder_decoder_diagram(*masks_of_encoder_and_decoder(), title="three masks")
    whole, *grids = drawn.axes
    assert [axes.get_title(loc="left") for axes in grids] == [
        "source → source",
        "target → target",
        "target → source",
    ]
    sizes = [axes.images[0].get_array().shape[:2] for axes in grids]
    assert sizes == [(4, 4), (3, 3), (3, 4)]
    words = [text.get_text() for text in whole.texts]
    attentions = [word for word in words if word.endswith("attention")]
    assert sorted(attentions) == ["cross-attention", "self-attention", "self-attention"]
    assert words.count("add, norm") == 5  # two of the encoder, three of the decoder
    reasons = [text.get_text() for text in whole.get_legend().get_texts()]
    assert reasons == ["allowed", "forbidden: padding (·)", "forbidden: future"]


def test_a_cross_mask_the_wrong_way_round_is_refused():
    encoder, decoder, cross, *tokens = masks_of_encoder_and_decoder()
    with pytest.raises(ValueError, match=r"target → source: .*\(3, 4\), got \(4, 3\)"):
        encoder_decoder_diagram(encoder, decoder, cross.T, *tokens)
