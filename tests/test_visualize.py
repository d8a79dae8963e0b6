"""Guards the pictures: which cells are hatched and why, what the labels say, and safe saving."""

import math
import os
import sys
import warnings

import numpy as np
import pytest
import torch

from minitransformer import visualize
from minitransformer.visualize import (
    attention_figure,
    attention_map,
    combination_figure,
    curve_figure,
    drawable,
    forbidden,
    label,
    label_figure,
    save,
    wanted_beside_found,
)

TOKENS = ["<s>", "2", "0", None]  # one padded position at the end
REAL = torch.tensor([True, True, True, False])
CAUSAL = torch.ones(4, 4).tril().bool()
DATES = {
    "Cyrillic": "вторник, 3 июня 2025 г.",
    "Han": "2025年6月3日 火曜日",
    "Arabic": "٣ يونيو ٢٠٢٥",
    "Hangul": "2025년 6월 3일 화요일",
    "Thai": "วันอังคาร 3 มิถุนายน",
    "Devanagari": "मंगलवार, 3 जून",
    "Hebrew, Greek, Armenian, Georgian": "3 יוני · Ιουνίου · հունիս · ივნისი",
}


@pytest.fixture
def only_dejavu(monkeypatch):
    """A machine on which no font package is installed, whatever this one has."""
    monkeypatch.setattr(visualize, "_known_families", lambda: ("DejaVu Sans",))
    visualize._families.cache_clear()
    yield
    visualize._families.cache_clear()


@pytest.fixture
def figure():
    return attention_figure(torch.full((2, 4, 4), 0.25), CAUSAL[None], TOKENS, TOKENS)


def cells(pairs):
    array = np.zeros((4, 4), dtype=bool)
    for query, key in pairs:
        array[query, key] = True
    return array


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


# ---- forbidden: the reason of every cell ---------------------------------------------------------


def test_causal_with_a_padded_tail():
    why = forbidden(CAUSAL & REAL, TOKENS, TOKENS)
    np.testing.assert_array_equal(why["future"], cells([(0, 1), (0, 2), (1, 2)]))
    np.testing.assert_array_equal(why["padding"], cells([(0, 3), (1, 3), (2, 3), (3, 3)]))
    assert not why["other"].any()


def test_left_padding_is_padding_before_and_after():
    tokens = [None, "<s>", "2", "0"]
    real = torch.tensor([False, True, True, True])
    why = forbidden(CAUSAL & real & real[:, None], tokens, tokens)
    np.testing.assert_array_equal(why["future"], cells([(1, 2), (1, 3), (2, 3)]))
    np.testing.assert_array_equal(
        why["padding"], cells([(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (2, 0), (3, 0)])
    )


def test_a_real_key_that_is_not_in_the_future_is_neither():
    window = CAUSAL & torch.ones(4, 4).triu(-1).bool()
    why = forbidden(window, ["a"] * 4, ["a"] * 4)
    np.testing.assert_array_equal(why["other"], cells([(2, 0), (3, 0), (3, 1)]))
    blind = forbidden(~torch.eye(4).bool(), ["a"] * 4, ["a"] * 4)  # no query sees itself
    np.testing.assert_array_equal(blind["other"], np.eye(4, dtype=bool))


def test_each_forbidden_cell_has_one_reason_and_no_allowed_cell_has_any():
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(5, 7, generator=generator) < 0.5
    why = forbidden(mask, ["a", None, "b", "c", None], [None, *"abcde", None])
    np.testing.assert_array_equal(sum(array.astype(int) for array in why.values()), ~mask.numpy())


# ---- attention_map and attention_figure ----------------------------------------------------------


def colors(weights, mask):
    axes = visualize.Figure().subplots()
    attention_map(axes, weights, mask, TOKENS, TOKENS)
    return axes.images[0].get_array()


def test_an_allowed_zero_differs_from_both_kinds_of_forbidden_zero():
    drawn = colors(torch.zeros(4, 4), CAUSAL & REAL)
    allowed, future, padding = drawn[1, 0], drawn[0, 1], drawn[0, 3]
    assert len({tuple(color) for color in (allowed, future, padding)}) == 3


def test_the_hatch_lies_on_the_forbidden_cell():
    mask = torch.ones(3, 4).bool()
    mask[1, 3] = False  # second query, fourth key: one cell in row 1, column 3
    axes = visualize.Figure().subplots()
    attention_map(axes, torch.rand(3, 4), mask, ["a"] * 3, ["b"] * 4)
    (patch,) = axes.patches
    assert patch.get_hatch() == "////"
    np.testing.assert_array_equal(
        patch.get_path().get_extents().get_points(), [[2.5, 0.5], [3.5, 1.5]]
    )


def test_a_leak_keeps_its_color_and_nan_has_its_own():
    weights = torch.zeros(4, 4)
    weights[0, 2], weights[1, 0], weights[2, 0] = 0.5, 0.5, float("nan")
    drawn = colors(weights, CAUSAL & REAL)
    np.testing.assert_array_equal(drawn[0, 2], drawn[1, 0])
    np.testing.assert_array_equal(drawn[2, 0], visualize.COLORS.get_bad())


def test_one_panel_per_head_and_a_legend_of_the_reasons_that_occur(figure):
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["head 0", "head 1", ""]  # the last is the color bar
    assert legend(figure) == ["forbidden: padding (·)", "forbidden: future"]


def test_full_attention_has_no_legend():
    everything = torch.ones(1, 2, 3).bool()
    assert not attention_figure(torch.rand(1, 2, 3), everything, ["a"] * 2, ["b"] * 3).legends


def test_masks_may_differ_between_heads():
    mask = torch.stack([torch.ones(2, 2).bool(), torch.ones(2, 2).tril().bool()])
    figure = attention_figure(torch.rand(2, 2, 2), mask, ["a", "b"], ["a", "b"])
    assert [len(axes.patches) for axes in figure.axes[:2]] == [0, 1]
    assert legend(figure) == ["forbidden: future"]


def test_tick_labels_are_the_tokens_in_order(figure):
    figure.draw_without_rendering()
    axes = figure.axes[0]
    for axis in axes.xaxis, axes.yaxis:
        assert [text.get_text() for text in axis.get_ticklabels()] == ["<s>", "2", "0", "·"]
    assert axes.get_ylim() == (3.5, -0.5)  # the first query on top


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": torch.rand(5, 7)}, r"weights: expected \(heads.*\(any, 5, 7\), got \(5, 7\)"),
        ({"weights": torch.rand(2, 5, 8)}, r"weights: .*\(any, 5, 7\), got \(2, 5, 8\)"),
        ({"mask": torch.ones(5, 7).bool()}, r"mask: .*got \(5, 7\)"),
        ({"mask": torch.ones(3, 5, 7).bool()}, r"got \(2, 5, 7\) and \(3, 5, 7\)"),
        ({"mask": torch.ones(1, 5, 7)}, r"mask: expected torch.bool .* got torch.float32"),
        ({"queries": ["a"] * 4}, r"weights: .*\(any, 4, 7\), got \(2, 5, 7\)"),
        ({"weights": torch.rand(0, 5, 7)}, r"nothing empty, got \(0, 5, 7\)"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(change, message):
    good = {
        "weights": torch.rand(2, 5, 7),
        "mask": torch.ones(1, 5, 7).bool(),
        "queries": ["a"] * 5,
        "keys": ["b"] * 7,
    }
    with pytest.raises(ValueError, match=message):
        attention_figure(**good | change)


# ---- what was wanted beside what was found -------------------------------------------------------


def test_sums_stand_beside_the_rows_and_wrong_ones_are_red():
    """Right: a row that sums to 1, and 0 where all is masked. Wrong: 0.3, NaN, 0.5 on nothing."""
    mask = torch.tensor([[1, 1], [0, 0], [1, 0], [1, 1], [0, 0]]).bool()
    weights = torch.tensor([[0.4, 0.6], [0, 0], [0.3, 0], [math.nan, 0], [0.5, 0]])
    _, right = wanted_beside_found(mask, weights).axes
    head, *sums = right.texts
    assert head.get_text() == "sum"
    assert [text.get_text() for text in sums] == ["1.00", "0.00", "0.30", "nan", "0.50"]
    red = visualize.COLORS.get_bad()
    is_red = [np.allclose(visualize.to_rgba(text.get_color()), red) for text in sums]
    assert is_red == [False, False, True, True, True]


@pytest.mark.parametrize(("queries", "keys"), [(5, 7), (4, 4), (9, 5), (12, 12)])
def test_a_title_has_room_of_its_own(queries, keys):
    mask = torch.ones(queries, keys).bool()
    drawn = wanted_beside_found(mask, mask / keys, "Title")
    drawn.draw_without_rendering()
    bottom = drawn.texts[0].get_window_extent().y0
    assert all(axes._left_title.get_window_extent().y1 < bottom for axes in drawn.axes)


# ---- labels and fonts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (None, "·"),
        (" ", "␣"),
        ("", ""),
        ("$x$", "$x$"),
        ("<s>", "<s>"),
        ("\n", "U+000A"),
        ("\u202f", "U+202F"),  # the narrow space of French dates
        ("\u0301", "◌\u0301"),
        ("Ж", "Ж"),
    ],
)
def test_label(token, expected):
    assert label(token) == expected


@pytest.mark.usefixtures("only_dejavu")
def test_a_character_without_a_font_is_its_code_point():
    assert label("年") == "U+5E74"
    assert drawable("2025年 г.") == "2025U+5E74 г."


@pytest.mark.usefixtures("only_dejavu")
def test_a_picture_says_which_letters_no_font_has():
    keys = [*"3月", "ว", None]
    mask = torch.tensor([[[True, True, True, False]]])
    drawn = attention_figure(mask / 3, mask, ["x"], keys, title="日")
    note = drawn.legends[0].get_title().get_text()
    assert note.startswith("U+...: 3 letters that no font here has (CJK, THAI);")
    assert legend(drawn) == ["forbidden: padding (·)"]


def test_a_picture_with_all_its_letters_says_nothing(figure):
    assert figure.legends[0].get_title().get_text() == ""


@pytest.mark.parametrize("fonts", ["installed", "only_dejavu"])
def test_no_script_draws_an_empty_box(fonts, request, tmp_path):
    if fonts == "only_dejavu":
        request.getfixturevalue(fonts)
    for script, date in DATES.items():
        keys = [*date, None, r"$\bad$", None]  # no formula, but text
        mask = torch.tensor([key is not None for key in keys])[None, None]
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # matplotlib warns of each missing glyph
            drawn = attention_figure(
                mask / len(date), mask, ["$x$"], keys, title=f"{script} {date}"
            )
            save(drawn, tmp_path / "date.png")


# ---- labels --------------------------------------------------------------------------------------


def test_labels_stand_below_their_tokens_and_padding_is_hatched():
    tokens = [["the", "cat", "</s>"], ["go", "</s>", "</s>"]]
    labels = [["cat", "</s>", None], ["</s>", None, None]]
    drawn = label_figure({"all": (tokens, labels, [[1, 1, 1], [1, 1, 0]])}, title="to be learned")
    (axes,) = drawn.axes
    words = {(t.get_position()): t.get_text() for t in axes.texts if t.get_position()[0] > 0}
    assert [words[x + 0.5, 0.0] for x in range(3)] == ["the", "cat", "</s>"]
    assert [words[x + 0.5, -0.5] for x in range(3)] == ["cat", "</s>", "·"]
    assert [words[x + 0.5, -1.75] for x in range(3)] == ["</s>", "·", "·"]
    assert [box.get_xy()[0] for box in axes.patches if box.get_hatch()] == [2]
    green = [
        box.get_xy()
        for box in axes.patches
        if box.get_facecolor()[:3] == (199 / 255, 233 / 255, 192 / 255)
    ]
    assert green == [(0, -0.75), (1, -0.75), (0, -2.0)]
    assert axes.get_title(loc="left") == "all"


def test_rows_of_labels_that_are_too_short_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        label_figure({"": ([["a", "b"]], [["b"]], [[1, 1]])})


# ---- curves and saving ---------------------------------------------------------------------------


def test_masks_that_are_joined_make_the_last_one():
    padding = REAL[:, None] & REAL
    figure = combination_figure({"padding": padding, "causal": CAUSAL}, 0.1 * CAUSAL, TOKENS)
    panels = figure.axes
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles == ["padding", "causal", "the mask", "attention weights"]
    assert [text.get_text() for axes in panels for text in axes.texts] == ["&", "=", "→"]
    hatches = [{patch.get_hatch()[0] for patch in axes.patches} for axes in panels]
    assert hatches == [{"\\"}, {"/"}, {"\\", "/"}, {"\\", "/"}]  # causality alone hides no padding


def test_curves_have_a_log_loss_and_a_second_panel_for_scores():
    losses = {"training": (range(3), [2.0, 1.0, 0.5]), "validation": ([2], torch.tensor([0.7]))}
    one = curve_figure(losses)
    two = curve_figure(losses, {"validation": ([2], [0.9])}, title="dates")
    assert [len(one.axes), len(two.axes)] == [1, 2]
    assert [axes.get_yscale() for axes in two.axes] == ["log", "linear"]
    assert two.axes[0].lines[1].get_color() == two.axes[1].lines[0].get_color()
    np.testing.assert_array_equal(one.axes[0].lines[0].get_ydata(), [2.0, 1.0, 0.5])


def test_a_curve_of_two_lengths_is_refused():
    with pytest.raises(ValueError, match=r"values of training: .*\(3\), got \(2,\)"):
        curve_figure({"training": ([0, 1, 2], [1.0, 0.5])})


def test_save_writes_a_png_and_nothing_else(figure, tmp_path):
    path = save(figure, tmp_path / "map.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert os.listdir(tmp_path) == ["map.png"]


@pytest.mark.parametrize("step", ["savefig", "replace"])
def test_a_failed_save_leaves_the_old_file_and_no_temporary_one(
    step, figure, tmp_path, monkeypatch
):
    def fail(target, *args, **kwargs):
        target.write_bytes(b"half")
        raise OSError("disk full")

    (tmp_path / "map.png").write_bytes(b"old")
    monkeypatch.setattr(figure if step == "savefig" else os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        save(figure, tmp_path / "map.png")
    assert os.listdir(tmp_path) == ["map.png"]
    assert (tmp_path / "map.png").read_bytes() == b"old"


def test_save_is_for_png(figure, tmp_path):
    with pytest.raises(ValueError, match=r"ending in \.png, got '.*map\.pdf'"):
        save(figure, tmp_path / "map.pdf")


def test_pyplot_is_not_needed(figure, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would now fail
    save(figure, tmp_path / "map.png")
    save(curve_figure({"training": ([0, 1], [2.0, 1.0])}), tmp_path / "curve.png")


def test_without_matplotlib_the_message_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "minitransformer.visualize")
    with pytest.raises(ImportError, match="pip install matplotlib"):
        __import__("minitransformer.visualize")
