"""The suite itself: whatever its subject does, each check says what it found and the next runs."""

import dataclasses
import html
import inspect
import json
import sys
import time
import warnings
from contextlib import suppress

import numpy as np
import pytest
import torch

from minitransformer import attention as attention_module
from minitransformer import checks, scaled_dot_product_attention
from minitransformer.checks import (
    CHECKS,
    SUBJECTS,
    AttentionSubject,
    Report,
    Result,
    attention_weights_of,
    check_attention,
    check_loss,
    checks_of,
    run_checks,
)
from minitransformer.checks.engine import diagnosis as diagnosis_module
from minitransformer.checks.engine.bugs import bugs
from minitransformer.checks.engine.check import Failed, NotApplicable, check
from minitransformer.checks.engine.running import run_check
from minitransformer.data import pad
from minitransformer.loss import cross_entropy
from minitransformer.masks import causal_mask


def attention(query, key, value, mask):
    """The formula, and nothing else."""
    scores = query @ key.mT / query.shape[-1] ** 0.5
    return scores.masked_fill(~mask, float("-inf")).softmax(dim=-1) @ value


def after_softmax(query, key, value, mask):
    """The commonest first try."""
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(dim=-1) * mask @ value


# ---- what a subject may do -----------------------------------------------------------------------


def hangs(query, key, value, mask):
    while True:
        with suppress(Exception):  # as careless code does
            time.sleep(9)


def spins(query, key, value, mask):
    while True:
        pass


def raises(query, key, value, mask):
    raise RuntimeError("sizes do not fit")


def exits(query, key, value, mask):
    sys.exit("done")


def returns_nothing(query, key, value, mask):
    attention(query, key, value, mask)


def drops_an_axis(query, key, value, mask):
    return attention(query, key, value, mask)[0]


def is_transposed(query, key, value, mask):
    return attention(query, key, value, mask).transpose(1, 2)


def returns_float64(query, key, value, mask):
    return attention(query, key, value, mask).double()


def lives_on_another_device(query, key, value, mask):
    return attention(query, key, value, mask).to("meta")


def returns_its_value(query, key, value, mask):
    return value[:, :, : query.shape[2]]


def scales_in_place(query, key, value, mask):
    query /= query.shape[-1] ** 0.5
    return (query @ key.mT).masked_fill(~mask, float("-inf")).softmax(dim=-1) @ value


def is_random(query, key, value, mask):
    return attention(query, key, value, mask) * (1 + 1e-3 * torch.rand(()))


def has_no_gradient(query, key, value, mask):
    return attention(query, key, value, mask).detach()


@pytest.mark.parametrize(
    ("subject", "name", "words"),
    [
        (raises, "forbidden_keys_get_exactly_zero", "RuntimeError: sizes do not fit (test_checks"),
        (exits, "forbidden_keys_get_exactly_zero", "It raised SystemExit: done"),
        (returns_nothing, "forbidden_keys_get_exactly_zero", "Does it end without `return`?"),
        (drops_an_axis, "forbidden_keys_get_exactly_zero", "where 4 axes, b h t d, were expected"),
        (is_transposed, "forbidden_keys_get_exactly_zero", "of shape (4, 5, 2, 8)"),
        (
            returns_float64,
            "the_output_has_the_shape_dtype_and_device_of_its_inputs",
            "It returned torch.float64 for inputs of torch.float32",
        ),
        (
            lives_on_another_device,
            "the_output_has_the_shape_dtype_and_device_of_its_inputs",
            "It returned a tensor on meta for inputs on cpu",
        ),
        (
            returns_its_value,
            "the_output_has_the_shape_dtype_and_device_of_its_inputs",
            "It returned its value, or a view of it",
        ),
        (scales_in_place, "the_arguments_are_left_alone", "It changes its query in place"),
        (is_random, "the_same_call_gives_the_same_result", "two equal calls differ"),
        (has_no_gradient, "gradients_are_right", "No gradient flows through it"),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_what_a_subject_does_is_reported_as_itself(subject, name, words):
    report = check_attention(subject)
    assert words in report[name].diagnosis
    assert len(report.results) == len(checks_of("attention", "core"))
    assert not report.passed
    assert words in " ".join(str(report).split())


@pytest.mark.parametrize(
    ("endless", "said"),
    [(hangs, "It had not come back after 0.3 seconds"), (spins, "It used 0.2 seconds of CPU")],
)
def test_a_subject_that_hangs_is_left_alone_after_a_while(endless, said):
    (first, *_) = checks_of("attention")
    wall = 0.3 if endless is hangs else 600.0
    result = run_check(first, AttentionSubject(endless), 0.2, wall)
    assert result.hung
    assert said in result.diagnosis


def values_first(values, keys, queries, attn_mask=None):
    return attention(queries, keys, values, attn_mask)


def bias_between(query, key, value, bias=None, mask=None):
    assert bias is None
    return attention(query, key, value, mask)


def by_keyword(*, query, key, value, mask, is_causal=False):
    return attention(query, key, value, mask)


@pytest.mark.parametrize("fn", [values_first, bias_between, by_keyword])
def test_arguments_in_another_order_are_passed_by_name(fn):
    report = check_attention(fn)
    assert report.passed
    assert report.subject == f"test_checks.{fn.__name__}"


def test_a_flag_without_a_default_does_not_stand_in_the_way():
    def fn(mask, query, key, value, causal):
        both = mask & causal_mask(query.shape[2], key.shape[2]) if causal else mask
        return attention(query, key, value, both)

    report = run_checks(AttentionSubject(fn, causal_flag="causal"))
    assert report["mask_and_causal_flag_are_combined"].outcome == "pass"


def test_a_loss_that_begins_with_its_labels_is_understood():
    assert check_loss(lambda labels, logits: cross_entropy(logits, labels)).passed


class WithDropout(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, query, key, value, mask):
        scores = query @ key.mT / query.shape[-1] ** 0.5
        return self.dropout(scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)) @ value


def test_a_module_is_checked_in_evaluation_mode_and_left_alone():
    module = WithDropout()
    assert check_attention(module).passed
    assert module.training
    inside_a_function = check_attention(lambda *given: module(*given))
    assert "the_same_call_gives_the_same_result" in inside_a_function.failed


def test_a_bug_that_ran_out_of_time_is_named_and_is_no_candidate(monkeypatch):
    """What it would have found is not known: the report must not depend on that in silence."""
    whole = check_attention(after_softmax)
    (first, *_) = bugs("attention")
    piece = dataclasses.replace(first, implementation=spins)
    monkeypatch.setattr(diagnosis_module, "bugs", lambda kind: [piece, *bugs(kind)])
    monkeypatch.setattr(diagnosis_module, "SECONDS", 0.1)
    report = check_attention(after_softmax)
    assert report.not_compared == (first.name,)
    assert report.likely == whole.likely
    for text in (str(report), report.to_json(), report._repr_html_()):
        assert first.name in text
    assert "not compared, for want of time: " in str(report)


def test_a_report_of_one_that_hangs_is_complete():
    report = run_checks(AttentionSubject(spins), "core", seconds=0.05)
    assert len(report.results) == len(checks_of("attention", "core"))
    assert not report.ran


def test_an_error_tells_what_it_was_called_with():
    diagnosis = check_attention(raises).diagnosis
    assert "query (4, 2, 5, 8) float32" in diagnosis
    assert "mask (4, 1, 5, 7) bool" in diagnosis
    assert not check_attention(raises).ran


def test_an_interruption_by_the_user_is_not_swallowed():
    def interrupted(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_attention(interrupted)


def test_what_a_subject_prints_and_warns_stays_in_the_report(capsys):
    def chatty(query, key, value, mask):
        print("scores", query.shape)
        warnings.warn("deprecated", stacklevel=1)
        return after_softmax(query, key, value, mask)

    report = check_attention(chatty)
    assert capsys.readouterr() == ("", "")
    assert "scores torch.Size" in report["weights_sum_to_one"].printed
    assert "it printed: 'scores torch.Size" in str(report)


def test_nothing_of_a_subject_is_left_behind(capsys):
    def meddler(query, key, value, mask):
        torch.manual_seed(7)
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        sys.stdout = None
        return attention(query, key, value, mask)

    torch.manual_seed(3)
    before = torch.rand(2)
    torch.manual_seed(3)
    check_attention(meddler)
    assert torch.equal(torch.rand(2), before)
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    print("still here")
    assert capsys.readouterr().out == "still here\n"


def test_a_subject_that_draws_finds_the_same_seed_in_every_check():
    drawn = []

    def draws(*given):
        drawn.append(torch.rand(2).tolist())
        return attention(*given)

    first = checks_of("attention", "core")[0]
    numbers = []
    for seed in (7, 3):
        torch.manual_seed(seed)
        drawn.clear()
        run_check(first, AttentionSubject(draws))
        numbers.append(drawn[0])
    assert numbers[0] == numbers[1]


def test_a_check_is_repeatable():
    first, second = (check_attention(after_softmax, tier="strict").to_json() for _ in range(2))
    assert first == second


# ---- checks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CHECKS)
def test_every_check_says_what_must_hold(kind):
    for one in checks_of(kind):
        assert one.statement.endswith((".", "?"))
        assert "_" in one.name  # more than a word
        assert all(link.startswith("https://") for link in one.mirrors)
    assert {one.tier for one in checks_of(kind)} <= {"core", "robust", "strict"}
    assert checks_of(kind, "core")
    assert SUBJECTS[kind].arguments


def test_tiers_contain_each_other():
    core, robust, strict = (checks_of("attention", tier) for tier in ("core", "robust", "strict"))
    assert core == robust[: len(core)]
    assert robust == strict[: len(robust)]
    assert len(core) < len(robust) < len(strict)


def test_a_check_needs_a_tier_and_a_statement():
    with pytest.raises(ValueError, match="tier must be one of core, robust, strict, got 'hard'"):
        check("attention", "hard")
    with pytest.raises(ValueError, match="needs a docstring"):
        check("attention", "core")(lambda subject: None)
    with pytest.raises(ValueError, match="tier must be one of"):
        check_attention(attention, tier="all")


def test_the_number_of_a_pass_is_reported_too():
    report = check_attention(attention)
    assert report.passed
    assert report["forbidden_keys_get_exactly_zero"].measured == 0.0
    assert 0.0 < report["weights_sum_to_one"].measured < 1e-5


# ---- reading weights -----------------------------------------------------------------------------


def test_weights_are_read_from_outside():
    query, key, value = (torch.randn(2, 3, length, 4) for length in (5, 9, 9))
    mask = torch.rand(2, 3, 5, 9) < 0.7
    mask[..., 0] = True
    _, wanted = scaled_dot_product_attention(query, key, value, mask)
    found = attention_weights_of(scaled_dot_product_attention, query, key, value, mask)
    assert torch.equal(found, wanted)
    torch.testing.assert_close(attention_weights_of(attention, query, key, value, mask), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_leak_too_small_for_the_dtype_is_read(dtype):
    """exp(-15) is 3e-7, a subnormal number of float16: times a small value it is 0."""

    def leaks(query, key, value, mask):
        scores = (query @ key.mT / query.shape[-1] ** 0.5).float()
        return scores.masked_fill(~mask, -15.0).softmax(dim=-1).to(value.dtype) @ value

    query, key, value = (torch.randn(1, 1, length, 4).to(dtype) for length in (2, 3, 3))
    mask = torch.tensor([True, True, False]).expand(1, 1, 2, 3)
    leak = attention_weights_of(leaks, query, key, value, mask)[..., 2]
    assert (leak > 0.0).all()


# ---- NaN in padding ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "without", "check", "likely"),
    [
        (
            "query = query.masked_fill(~alive, 0.0)",
            "pass",
            "nan_in_queries_that_see_nothing_reaches_nothing",
            "padded queries multiplied",
        ),
        (
            "key.masked_fill(~used, 0.0), ",
            "key, ",
            "nan_in_padding_reaches_no_gradient",
            "zero times NaN on the way back",
        ),
        (
            ", value.masked_fill(~used, 0.0)",
            ", value",
            "nan_in_padded_values_reaches_nothing",
            "zero times NaN",
        ),
    ],
    ids=["query", "key", "value"],
)
def test_whatever_the_formula_fills_with_zeros_is_asked_for(line, without, check, likely):
    source = inspect.getsource(attention_module.scaled_dot_product_attention)
    assert source.count(line) == 1
    space = dict(vars(attention_module))
    exec(source.replace(line, without), space)
    report = check_attention(space["scaled_dot_product_attention"], tier="strict")
    assert check in report.failed
    assert {one.tier for one in report if one.outcome == "fail"} == {"strict"}
    assert report.likely == (likely,)


def padded_queries_multiplied(query, key, value, mask):
    alive = mask.any(dim=-1, keepdim=True)
    key, value = (x.masked_fill(~mask.any(dim=-2).unsqueeze(-1), 0.0) for x in (key, value))
    scores = (query / query.shape[-1] ** 0.5 @ key.mT).masked_fill(~mask & alive, float("-inf"))
    return scores.softmax(dim=-1).masked_fill(~alive, 0.0) @ value


def its_keys_only(query, key, value, real):
    return padded_queries_multiplied(query, key, value, real[:, None, None])


def its_mean(query, key, value, mask):
    alive = mask.any(dim=-1, keepdim=True)
    output = padded_queries_multiplied(query, key, value, mask)
    return output.where(alive, value.mean(dim=2, keepdim=True))


def heads_after_positions(query, key, value, mask):
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return padded_queries_multiplied(query, key, value, mask[:, None]).transpose(1, 2)


@pytest.mark.parametrize(
    ("fn", "declared", "outcome"),
    [
        (padded_queries_multiplied, {}, "fail"),
        (padded_queries_multiplied, {"dead_rows": "any"}, "fail"),
        (padded_queries_multiplied, {"differentiable": False}, "pass"),
        (its_keys_only, {"mask_layout": "b k"}, "fail"),
        (its_mean, {"dead_rows": "any"}, "fail"),
        (heads_after_positions, {"layout": "b t h d", "mask_layout": "b q k"}, "fail"),
    ],
)
def test_nan_in_a_padded_query_is_looked_for_where_it_is_promised(fn, declared, outcome):
    report = check_attention(fn, tier="strict", **declared)
    result = report["nan_in_queries_that_see_nothing_reaches_nothing"]
    assert result.outcome == outcome
    if outcome == "fail":
        assert report.failed == [result.check]
        assert "is a padded query multiplied there?" in result.diagnosis


def test_where_any_output_is_allowed_a_dead_query_may_pass_its_nan_on_to_it():
    def shows_it(query, key, value, mask):
        output, _ = scaled_dot_product_attention(query, key, value, mask)
        return output.where(mask.any(dim=-1, keepdim=True), query)

    name = "nan_in_queries_that_see_nothing_reaches_nothing"
    assert check_attention(shows_it, tier="strict", dead_rows="any").passed
    assert "outputs are NaN or change" in check_attention(shows_it, tier="strict")[name].diagnosis


# ---- declarations --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"layout": "b t x"}, "layout must name t and d"),
        ({"mask_layout": "b q"}, "mask_layout must be of b h q k and 1s"),
        ({"mask_means": "ignored"}, "mask_means must be one of attend, ignore, got 'ignored'"),
        ({"mask_values": "float"}, "mask_values must be one of bool, int, additive"),
        ({"dtypes": "float32"}, "dtypes must be a tuple"),
        ({"dtypes": ("float31",)}, "expected a torch dtype such as 'float32', got 'float31'"),
        ({"dead_rows": "nan"}, "dead_rows must be one of zeros, any"),
    ],
)
def test_declarations_are_checked(declared, words):
    with pytest.raises(ValueError, match=words):
        check_attention(attention, **declared)


def test_what_is_no_subject_is_refused():
    with pytest.raises(TypeError, match="expected a callable as attention, got Tensor"):
        check_attention(torch.ones(2))
    subject = AttentionSubject(attention)
    with pytest.raises(TypeError, match="was declared as attention, not as loss"):
        check_loss(subject)
    with pytest.raises(TypeError, match="is a subject already: declare layout there"):
        check_attention(subject, layout="b t d")
    assert check_attention(subject).passed


def test_a_subject_is_named_after_its_function():
    assert AttentionSubject(attention).name == "test_checks.attention"
    assert AttentionSubject(torch.nn.Identity()).name == "torch.nn.modules.linear.Identity"
    assert AttentionSubject(attention, name="mine").name == "mine"


# ---- reports -------------------------------------------------------------------------------------


def test_a_failure_is_told_with_number_example_and_likely_bug():
    report = check_attention(after_softmax)
    assert not report.passed
    assert "weights_sum_to_one" in report.failed
    assert report.likely == ("mask after the softmax",)
    printed = str(report)
    assert "likely bug: mask after the softmax" in printed
    assert report.diagnosis in " ".join(printed.split())
    assert "mask wanted      weights found" in printed
    assert "must hold: The weights of a query over the keys that it may see sum to 1." in printed
    assert max(map(len, printed.splitlines())) <= 110


def test_a_report_is_json():
    report = check_attention(after_softmax, tier="strict")
    data = json.loads(report.to_json())
    assert data["as"] == "attention"
    assert data["passed"] is False
    assert data["failed"] == report.failed
    assert data["likely"] == list(report.likely)
    (one,) = (one for one in data["results"] if one["check"] == "weights_sum_to_one")
    assert one["outcome"] == "fail"
    assert one["measured"] > 0.5
    assert one["example"]["mask wanted"][0] == [True] + 6 * [False]


def test_numbers_that_json_lacks_become_words():
    nan = float("nan")
    results = [
        Result("a", "core", "A.", "fail", nan, example={"x": torch.tensor([nan, 1.0, -torch.inf])})
    ]
    data = json.loads(Report("attention", "f", "core", results).to_json())
    assert data["results"][0]["measured"] == "nan"
    assert data["results"][0]["example"]["x"] == ["nan", 1.0, "-inf"]


def test_a_report_is_a_page_in_a_notebook():
    pytest.importorskip("matplotlib")
    page = check_attention(after_softmax)._repr_html_()
    assert page.count("data:image/png;base64,") >= 1
    assert "likely bug: <b>mask after the softmax</b>" in page
    assert page.count("<tr>") == len(checks_of("attention", "core"))
    assert check_attention(attention)._repr_html_().count("img") == 0


def test_what_a_subject_says_cannot_break_the_page():
    def injects(query, key, value, mask):
        raise ValueError("<script>alert(1)</script>")

    assert "<script>" not in check_attention(injects)._repr_html_()


def test_a_report_is_asked_by_name():
    report = check_attention(attention)
    assert report["weights_sum_to_one"].outcome == "pass"
    with pytest.raises(KeyError, match="this report has forbidden_keys"):
        report["weights_sum_to_two"]
    assert report.headline.startswith("test_checks.attention as attention, core: 19 of 19")
    assert report.advice == 'next: the robust tier, tier="robust" or --tier robust'
    assert check_attention(after_softmax).advice.startswith("fix the first failure first: ")


def test_results_have_three_outcomes():
    @check("test", "core", measures="x")
    def it_passes_or_fails(subject):
        """It holds."""
        if subject.fn is None:
            raise NotApplicable("it has none")
        if subject.fn:
            raise Failed("it broke", 2.0)
        return 1.0

    class Subject:
        kind, name = "test", "s"

        def __init__(self, fn):
            self.fn = fn

    try:
        reports = [run_checks(Subject(fn)) for fn in (None, True, False)]
    finally:
        del CHECKS["test"]
    assert [r.results[0].outcome for r in reports] == ["not applicable", "fail", "pass"]
    assert [r.passed for r in reports] == [False, False, True]


@pytest.mark.parametrize("kind", checks.SUBJECTS)
def test_every_kind_of_subject_is_public_and_has_its_function(kind):
    name = "".join(word.capitalize() for word in kind.split("-")) + "Subject"
    assert getattr(checks, name) is checks.SUBJECTS[kind]
    assert name in checks.__all__
    assert f"check_{kind.replace('-', '_')}" in checks.__all__


# ---- was it declared as what it is? --------------------------------------------------------------


def additive(query, key, value, mask):
    """Right, for masks of 0 and -inf."""
    weights = (query @ key.mT / query.shape[-1] ** 0.5 + mask).softmax(dim=-1)
    return weights @ value


def hides(query, key, value, mask):
    """Right, for masks of keys whose True hides."""
    scores = query @ key.mT / query.shape[-1] ** 0.5
    return scores.masked_fill(mask[:, None, None], float("-inf")).softmax(dim=-1) @ value


def heads_behind(query, key, value, mask):
    return attention(*(x.transpose(1, 2) for x in (query, key, value)), mask).transpose(1, 2)


@pytest.mark.parametrize(
    ("fn", "declared"),
    [
        (additive, {"mask_values": "additive"}),
        (hides, {"mask_layout": "b k", "mask_means": "ignore"}),
        (heads_behind, {"layout": "b t h d"}),
    ],
)
def test_a_right_function_is_first_asked_whether_it_takes_something_else(fn, declared):
    report = check_attention(fn)
    assert declared.items() <= report.would_pass.items()
    for name, value in declared.items():
        assert f"{name}={value!r}" in str(report).split("\n\n")[1]
    assert check_attention(fn, **declared).passed
    assert declared.items() <= json.loads(report.to_json())["would pass"].items()
    assert html.escape(report.question) in report._repr_html_()


def of_numpy(query, key, value, mask):
    """Right, and in float64, as NumPy's own numbers are."""
    query = query.astype(np.float64)
    scores = query @ np.swapaxes(key, -1, -2) / np.sqrt(query.shape[-1])
    weights = np.exp(np.where(mask, scores, -np.inf))
    return weights / weights.sum(axis=-1, keepdims=True) @ value


def one_sequence_each(query, key, value, mask):
    """(B,T,d) and (B,Q,K), without heads."""
    assert query.ndim == mask.ndim == 3
    return attention(query, key, value, mask)


def shifting(logits, labels):
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def from_dicts(features):
    return dict(pad([one["input_ids"] for one in features]))


def padded_in_front(rows):
    return dict(pad(rows, side="left"))


@pytest.mark.parametrize(
    ("ask", "fn", "declared"),
    [
        (check_attention, one_sequence_each, {"layout": "b t d", "mask_layout": "b q k"}),
        (check_loss, shifting, {"shifts": True}),
        (check_loss, torch.nn.CrossEntropyLoss(), {"flat": True}),
        (checks.check_collator, from_dicts, {"rows": "dicts"}),
        (checks.check_collator, padded_in_front, {"side": "left"}),
    ],
)
def test_conventions_of_every_kind_are_asked_for(ask, fn, declared):
    assert ask(fn).would_pass == declared
    assert ask(fn, **declared).passed


def test_aligned_labels_are_asked_for():
    def aligned(input_ids, attention_mask):
        before = torch.nn.functional.pad(attention_mask, (1, -1))
        return input_ids.masked_fill((attention_mask & before) == 0, -100)

    assert checks.check_labels(aligned).would_pass == {"aligned": True}


def test_a_declaration_that_promises_less_is_no_answer():
    """19 checks pass as declared: that with a mask of keys all of 17 do explains nothing."""

    def first_heads(query, key, value, mask):
        return attention(query, key, value, mask[:, :1])

    report = check_attention(first_heads, mask_layout="b h q k")
    assert report.failed == ["each_head_has_its_own_mask"]
    assert report.question == ""


def test_what_only_raises_is_asked_where_most_checks_would_pass():
    report = check_attention(of_numpy)
    assert not report.ran
    assert report.question == (
        "with arrays='numpy' 15 of 16 core checks pass: is that what it takes?"
    )


def test_what_is_wrong_however_declared_is_asked_nothing():
    assert check_attention(raises).question == ""
    assert check_attention(after_softmax).question == ""
    assert check_attention(attention).question == ""


def test_a_failure_can_be_raised():
    check_attention(attention).raise_for_failures()
    with pytest.raises(AssertionError, match="fix the first failure first: weights_sum_to_one"):
        check_attention(after_softmax).raise_for_failures()
