"""The pages: their numbers are torch's, their settings are in the address, anybody can use them.

Those that run a page need selenium and Debian's chromium and chromium-driver.
"""

import contextlib
import io
import json
import math
import random
import re
import shutil
import subprocess
import tarfile
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import from_lengths

import minitransformer as mt
from minitransformer import Config, DecoderOnly, EncoderDecoder, EncoderOnly
from minitransformer.attention import MultiHeadAttention
from minitransformer.classifier import Classifier
from minitransformer.cli import main
from minitransformer.data.files import InputError
from minitransformer.data.vocabulary import Vocabulary
from minitransformer.inference.record import attended, record_attention
from minitransformer.masks import decoder_mask, padding_mask
from minitransformer.pages import attention_page, explorer, viewer
from minitransformer.pages.explorer import address
from minitransformer.pages.page import FOLDER
from minitransformer.pages.viewer import MOST
from minitransformer.training.run import Run

CHAPTERS = Path(__file__).parent.parent / "notebooks"
LENGTHS, LENGTH = (5, 2, 7), 7
SIZES = {"vocab_size": 30, "d_model": 12, "num_layers": 2, "num_heads": 3, "max_length": 200}


def name(ids):
    return [f"w{i}" for i in ids]


def inputs_of(kind, lengths=LENGTHS, length=LENGTH):
    """Ids and attention_mask, and for an EncoderDecoder shorter targets."""
    sides = [(lengths, length)]
    if kind is EncoderDecoder:
        sides.append(([max(n - 1, 1) for n in lengths], length - 1))
    masks = [from_lengths(*side) for side in sides]
    return [x for mask in masks for x in (torch.randint(5, 30, mask.shape), mask)]


def model_of(kind, **change):
    return kind(Config(**SIZES, **change)).eval()


def data_of(page):
    """What Python wrote into the viewer."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(text)


# ---- files, commands, notebooks ------------------------------------------------------------------


@pytest.mark.parametrize("file", ["explorer.html", "viewer.html"])
def test_a_page_asks_nothing_of_the_network(file):
    text = (FOLDER / file).read_text(encoding="utf-8")
    assert not re.search(r"https?:|\bsrc=|\bhref=|@import|url\(|fetch\(|XMLHttp|innerHTML", text)
    assert len(text.encode()) < 55_000


def test_the_pages_have_one_palette():
    """Each is one file that can be opened as it is, so that it stands in both."""
    texts = [
        (FOLDER / file).read_text(encoding="utf-8") for file in ("explorer.html", "viewer.html")
    ]
    first, second = (re.search(r":root \{(.*?--bad:.*?)\n", text, re.DOTALL)[1] for text in texts)
    assert first == second


def test_explore_opens_the_page_at_a_state(monkeypatch, capsys):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    assert main(["explore", "causal=1&own=[[1, 0]]"]) == 0
    assert opened == [(FOLDER / "explorer.html").as_uri() + "#causal=1&own=%5B%5B1,%200%5D%5D"]
    assert capsys.readouterr().out == opened[0] + "\n"


def test_explore_says_what_to_do_without_a_browser(monkeypatch, capsys):
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    assert main(["explore"]) == 0
    assert capsys.readouterr().out.startswith(address() + "\nno browser was found")


def test_explore_writes_the_page(tmp_path, capsys):
    assert main(["explore", "--out", str(tmp_path / "masks.html")]) == 0
    written = (tmp_path / "masks.html").read_text(encoding="utf-8")
    assert written == explorer() == (FOLDER / "explorer.html").read_text(encoding="utf-8")
    assert main(["explore", "--out", str(tmp_path / "no folder" / "masks.html")]) == 2
    assert "no folder" in capsys.readouterr().err


def test_a_notebook_shows_a_page_in_a_frame():
    html = explorer()._repr_html_()
    assert html.startswith("<iframe ")
    assert html.count("<") == 2  # the page itself is text in an attribute
    with pytest.raises(InputError, match="nowhere"):
        explorer().save("/nowhere/at/all.html")


# ---- what Python writes into the viewer ----------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "change"),
    [(EncoderOnly, {}), (DecoderOnly, {"window": 2}), (EncoderDecoder, {"window": 3})],
)
def test_the_masks_beside_the_weights_are_those_that_the_layers_were_given(kind, change):
    model, inputs = model_of(kind, **change), inputs_of(kind)
    given = {}

    def keep(layer, module, call):
        given[layer] = call[2]

    for layer, module in model.named_modules():
        if isinstance(module, MultiHeadAttention):
            module.register_forward_pre_hook(partial(keep, layer))
    with record_attention(model) as maps:
        model(*inputs)
    seen = 0
    for kind_of_attention in attended(model, *inputs):
        assert len(kind_of_attention.layers(maps)) == 2
        for layer, weights in maps.items():
            if any(weights is one for one in kind_of_attention.layers(maps)):
                mask = getattr(given[layer], "mask", given[layer])
                assert mask.equal(kind_of_attention.mask)
                seen += 1
    assert seen == len(maps)


def test_every_weight_on_a_masked_key_is_counted():
    model, (ids, mask) = model_of(DecoderOnly), inputs_of(DecoderOnly)
    (kind,) = data_of(attention_page(model, ids, mask, names=name))["kinds"]
    masked = (~decoder_mask(mask)).sum(dim=(1, 2, 3)) * 2 * 3  # layers, heads
    assert [panel["masked"] for panel in kind["panels"]] == masked.tolist()
    assert all(panel["leaks"] == panel["nan"] == 0 for panel in kind["panels"])
    assert kind["panels"][1]["queries"] == [*name(ids[1, :2].tolist()), *[None] * 5]


def test_each_masked_key_has_its_first_reason():
    """Padding, then another document, then the future, then what lies before the window."""
    model = model_of(DecoderOnly, window=2)
    mask = torch.tensor([[1, 1, 1, 2, 2, 0]])
    (kind,) = attended(model, torch.ones_like(mask), mask)
    assert viewer._reasons(kind)[0].tolist() == [
        [0, 3, 3, 2, 2, 1],
        [0, 0, 3, 2, 2, 1],
        [4, 0, 0, 2, 2, 1],
        [2, 2, 2, 0, 3, 1],
        [2, 2, 2, 0, 0, 1],
        [1, 1, 1, 1, 1, 1],
    ]


def test_leaks_and_nan_are_counted():
    """A layer that attends to everything alike, and one NaN."""
    model, (ids, mask) = model_of(EncoderOnly), inputs_of(EncoderOnly)

    def leak(tap, inputs, weights):
        leaking = torch.full_like(weights, 1 / LENGTH)
        leaking[0, 0, 0, 0] = math.nan
        return leaking

    model.encoder.layers[1].attention.tap.register_forward_hook(leak)
    (kind,) = data_of(attention_page(model, ids, mask, names=name))["kinds"]
    expected = (~padding_mask(mask)).sum(dim=(1, 2, 3)) * 3  # heads of one of two layers
    assert [panel["leaks"] for panel in kind["panels"]] == expected.tolist()
    assert [panel["nan"] for panel in kind["panels"]] == [1, 0, 0]
    assert kind["panels"][1]["largest"] == pytest.approx(1 / LENGTH)


def test_a_long_text_is_cut_and_the_page_says_so():
    model, inputs = model_of(DecoderOnly), inputs_of(DecoderOnly, (MOST + 7, 3), MOST + 7)
    (kind,) = data_of(attention_page(model, *inputs, names=name))["kinds"]
    panel = kind["panels"][0]
    assert len(panel["queries"]) == len(panel["keys"]) == MOST
    assert panel["left_out"].startswith("Shown: the first 128 of 135 queries")
    assert panel["masked"] == 2 * 3 * (MOST + 7) * (MOST + 6) // 2  # the future, all of it


def test_a_model_of_twelve_layers_and_heads_stays_small():
    sizes = {"vocab_size": 100, "d_model": 192, "num_layers": 12, "num_heads": 12}
    model = EncoderOnly(Config(**sizes, max_length=64)).eval()
    page = attention_page(model, *inputs_of(EncoderOnly, (64,), 64), names=name)
    assert len(page.encode()) < 500_000


def test_a_page_leaves_the_model_as_it_was():
    model, inputs = model_of(EncoderOnly, dropout=0.5).train(), inputs_of(EncoderOnly)
    first, again = (attention_page(model, *inputs, names=name) for _ in range(2))
    assert first == again  # no dropout
    assert model.training
    assert model.encoder.layers[0].attention.is_recorded is False


def test_what_a_page_cannot_show_is_refused():
    model, inputs = model_of(EncoderOnly), inputs_of(EncoderOnly)
    with pytest.raises(ValueError, match="texts must be those of the 3 rows"):
        attention_page(model, *inputs, names=name, texts=["one"])
    with pytest.raises(TypeError, match=r"expected an EncoderOnly.*got a Linear"):
        attention_page(torch.nn.Linear(1, 1), *inputs, names=name)
    page = attention_page(Classifier(model, 2), *inputs, names=name)
    assert data_of(page)["about"].startswith("Classifier, ")


def test_show_writes_one_page(tmp_path, monkeypatch, capsys):
    vocabulary = Vocabulary("abc")
    sizes = {**SIZES, "vocab_size": len(vocabulary), "max_length": 8}
    run = Run("pairs", EncoderDecoder(Config(**sizes)).eval(), vocabulary)
    monkeypatch.setattr(Run, "load", lambda folder: run)
    file = tmp_path / "attention.html"
    assert main(["show", "a run", "abcab", "ca", "--html", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}\n"
    data = data_of(file.read_text(encoding="utf-8"))
    kinds = ["Encoder self-attention", "Decoder self-attention", "Cross-attention"]
    assert [kind["name"] for kind in data["kinds"]] == kinds
    assert [kind["is_cross"] for kind in data["kinds"]] == [False, False, True]
    assert data["kinds"][2]["panels"][1]["keys"] == ["c", "a", None, None, None]
    assert data["title"] == "Attention: a run"
    assert data["texts"][1].endswith("ca")
    assert main(["show", "a run", "ca", "--html", "a.html", "--layer", "0"]) == 2
    assert "leave out --out and --layer" in capsys.readouterr().err


# ---- pages in a browser --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium, by selenium."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    programs = [shutil.which(program) for program in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("needs Debian's chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    folder = tmp_path_factory.mktemp("chromium")
    quiet = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    for flag in (*quiet.split(), f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
    yield driver
    errors = [one for one in driver.get_log("browser") if one["level"] == "SEVERE"]
    driver.quit()
    assert errors == []


@pytest.fixture
def page(browser):
    """The explorer, as it opens."""
    return visit(browser, address())


def visit(browser, url, width=1280, dark=False):
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get("about:blank")  # or another address behind the # would be no new page
    browser.get(url)
    return browser


def by_id(browser, name):
    return browser.find_element("id", name)


# A number that is added to all scores, as the product of two that are exact in each format.
SHIFTS = {"0": (0, 0), "-10": (1, -10), "-1000": (10, -100), "-10000": (100, -100)}
SHIFTS["-60000"] = (240, -250)
FILLS = ["exact", "inf", "min", "added", "1e9", "1e4", "after", "zeroed", "none"]


def some_state(seed):
    draw = random.Random(seed)
    return {
        "lengths": [draw.randint(1, 7), draw.randint(0, 7), draw.randint(0, 7)],
        "targets": [draw.randint(1, 7), draw.randint(0, 7), draw.randint(0, 7)],
        "attention": draw.choice(["self", "cross"]),
        "causal": draw.choice([True, False]),
        "window": draw.choice([0, 0, 1, 2, 4]),
        "layout": draw.choice(["left", "right", "packed"]),
        "dtype": draw.choice(["float32", "float16", "bfloat16"]),
        "fill": draw.choice(FILLS),
        "shift": draw.choice(list(SHIFTS)),
        "nan": draw.choice([True, False]),
    }


# JSON has no NaN and no infinities: they pass as words that `float` reads.
COMPUTE = """
const words = x => Array.isArray(x) ? x.map(words) : Number.isFinite(x) ? x : String(x);
return arguments[0].map(change => {
  const state = { ...START, ...change }, batch = batchOf(state);
  const rows = batch.queries.map((query, row) => {
    const { why, scores, weights, values, outputs, refused } = attend(state, row, batch);
    const known = { queries: query.mask, keys: batch.keys[row].mask, why, refused };
    known.positions = positionsOf(query.mask);
    const numbers = refused ? [scores] : [scores, weights, values, outputs.map(x => [x])];
    const names = ["scores", "weights", "values", "outputs"];
    numbers.forEach((x, i) => { known[names[i]] = words(x); });
    return known;
  });
  return { code: pythonOf(state), sentences: sentencesOf(state), rows };
});
"""


def numbers(found):
    return torch.tensor(_floats(found), dtype=torch.float64)


def _floats(found):
    return [_floats(x) if isinstance(x, list) else float(x) for x in found]


def ours(row, mask, state, dtype):
    """Our weights and outputs, from queries and keys whose product gives the page's scores.

    A query holds its scores, a key one 1, and the shift is the product of two further entries. All
    of these, times √64, are exact in each of the number formats.
    """
    queries, keys = mask.shape
    a, b = SHIFTS[state["shift"]]
    shift = torch.tensor(float(a * b))
    raw = numbers(row["scores"])
    base = numbers(row["base"])
    assert raw.equal((base.float() + shift).double())
    query, key = torch.zeros(queries, 64), torch.zeros(keys, 64)
    query[:, :keys], query[:, 63] = 8 * base.float(), 8 * a
    key[:, :keys], key[:, 63] = torch.eye(keys), b
    value = numbers(row["values"]).to(dtype)[:, None]
    heads = (x.to(dtype)[None, None] for x in (query, key, value))
    output, weights = mt.scaled_dot_product_attention(*heads, mask[None, None])
    return weights[0, 0], output[0, 0]


def torchs(row, mask, state, dtype):
    """Weights and outputs of the usual ways, written with torch."""
    scores, fill = numbers(row["scores"]).to(dtype), state["fill"]
    lowest = torch.finfo(dtype).min
    constants = {"inf": -math.inf, "min": lowest, "1e9": -1e9, "1e4": -1e4}
    if fill in constants:
        scores = scores.masked_fill(~mask, constants[fill])
    elif fill == "added":
        scores = scores + torch.zeros_like(scores).masked_fill(~mask, lowest)
    elif fill == "zeroed":
        scores = scores * mask
    weights = scores.softmax(dim=-1)
    if fill == "after":
        weights = weights * mask
    return weights, weights @ numbers(row["values"]).to(dtype)[:, None]


def same(found, wanted, tolerance):
    """Zero and NaN in the same places; elsewhere equal to rounding."""
    assert found.isnan().equal(wanted.isnan())
    assert (found == 0).equal(wanted == 0)
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=1e-7, equal_nan=True)


SETTINGS = 300


@pytest.fixture(scope="module")
def computed(browser):
    """What the explorer computes at hundreds of random settings; also scores before the shift."""
    page = visit(browser, address())
    states = [some_state(seed) for seed in range(SETTINGS)]
    found = page.execute_script(COMPUTE, states)
    unshifted = [{**state, "shift": "0", "fill": "exact"} for state in states]
    for one, base in zip(found, page.execute_script(COMPUTE, unshifted), strict=True):
        for row, before in zip(one["rows"], base["rows"], strict=True):
            row["base"] = before["scores"]
    return list(zip(states, found, strict=True))


def mask_of(state, rows):
    queries, keys = (torch.tensor([row[side] for row in rows]) for side in ("queries", "keys"))
    if state["attention"] == "cross":
        return padding_mask(queries, keys)
    if state["causal"]:
        return decoder_mask(keys, window=state["window"] or None)
    return padding_mask(keys)


def test_the_explorers_masks_and_positions_are_ours(computed):
    for state, found in computed:
        mask = mask_of(state, found["rows"])
        why = [row["why"] for row in found["rows"]]
        assert mask[:, 0].tolist() == [[[not no for no in line] for line in row] for row in why]
        ids = torch.tensor([row["queries"] for row in found["rows"]])
        positions = [row["positions"] for row in found["rows"]]
        assert mt.token_positions(ids).tolist() == positions


def test_the_explorers_weights_and_outputs_are_torchs(computed):
    rounding = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
    refused = compared = 0
    for state, found in computed:
        dtype, masks = getattr(torch, state["dtype"]), mask_of(state, found["rows"])
        for row, mask in zip(found["rows"], masks[:, 0], strict=True):
            if row["refused"]:
                with pytest.raises(RuntimeError, match=re.escape(row["refused"])):
                    torchs({**row, "values": []}, mask, state, dtype)
                refused += 1
                continue
            weights, output = (ours if state["fill"] == "exact" else torchs)(
                row, mask, state, dtype
            )
            same(numbers(row["weights"]), weights.double(), rounding[state["dtype"]])
            found_output = numbers(row["outputs"])
            assert found_output.isnan().equal(output.isnan())
            allowed = 4 * rounding[state["dtype"]]
            torch.testing.assert_close(
                found_output, output.double(), rtol=allowed, atol=allowed, equal_nan=True
            )
            compared += 1
    assert refused > 10
    assert compared > 500


def test_the_explorers_words_are_true(computed):
    """Its count of leaks, and whether all is well, counted again from its weights."""
    for state, found in computed:
        said = " ".join(sentence for _, sentence in found["sentences"])
        if any(row["refused"] for row in found["rows"]):
            assert said.startswith("torch raises")
            continue
        leaks = largest = nan = 0
        for row, mask in zip(found["rows"], mask_of(state, found["rows"])[:, 0], strict=True):
            weights, alive = numbers(row["weights"]), mask.any(dim=-1)
            masked = weights[alive][~mask[alive]]
            leaks += int((masked != 0).sum())
            nan += int(weights[alive].isnan().sum())
            largest = max([largest, *masked[masked > 0].tolist()])
        if nan:
            assert f"{nan} weights of queries that see something are NaN" in said
        elif leaks:
            assert f"{leaks} of " in said
            number = re.search(r"largest is (\S+)\.( |$)", said).group(1)
            assert float(number.replace("−", "-")) == pytest.approx(largest, rel=0.06)
        else:
            assert "are not 0" not in said
        if state["fill"] == "exact":
            assert all(good for good, _ in found["sentences"]), said


def test_the_explorers_python_makes_its_masks(computed):
    for state, found in computed[:60]:
        space = {}
        with contextlib.redirect_stdout(io.StringIO()):
            exec(found["code"], space)
        assert space["mask"].equal(mask_of(state, found["rows"])), found["code"]


def test_the_explorer_rounds_as_torch_does(page):
    draw = random.Random(0)
    ties = [0.0, -0.0, 65504.0, 65519.9, 65520.0, -65520.0, 5.9e-8, 2.98e-8, 2.99e-8, 1 + 2**-11]
    ties += [1 + 2**-8, 1 + 3 * 2**-8]  # of bfloat16
    some = [draw.uniform(-1, 1) * 10 ** draw.uniform(-9, 6) for _ in range(2000)] + ties
    for dtype in ("float32", "float16", "bfloat16"):
        program = "return arguments[0].map(ROUND[arguments[1]]).map(String)"
        found = numbers(page.execute_script(program, some, dtype))
        assert found.equal(torch.tensor(some).to(getattr(torch, dtype)).double())


def test_the_explorers_labels_are_ours(page):
    program = """
return arguments[0].map(change => {
  const state = { ...START, ...change }, { queries } = batchOf(state);
  return labelsOf(state).map((row, i) => [row.right.map(x => x !== -100), queries[i].mask]);
});
"""
    states = [some_state(i) | {"attention": "self", "causal": True} for i in range(40)]
    for rows in page.execute_script(program, states):
        has_label, mask = (
            torch.tensor([row[0] for row in rows]),
            torch.tensor([row[1] for row in rows]),
        )
        assert has_label.equal(mt.next_token_labels(torch.ones_like(mask), mask.long()) != -100)


PASTED = {
    "[[1, 1, 0], [1, 1, 1]]": [[[1, 1, 0], [1, 1, 1]]],
    "tensor([[1, 1, 0],\n        [1, 1, 1]], device='cuda:0')": [[[1, 1, 0], [1, 1, 1]]],
    "tensor([[[[ True, False],\n          [ True,  True]]],\n\n\n        [[[True, False],"
    "\n          [False, False]]]])": [[[1, 0], [1, 1]], [[1, 0], [0, 0]]],
    "[[1. 1.]\n [0. 2.]]": [[[1, 1], [0, 2]]],
    "1 1 0\n1 1 1": [[[1, 1, 0], [1, 1, 1]]],
    "1,0\n1,1\n\n1,1\n1,1\n": [[[1, 0], [1, 1]], [[1, 1], [1, 1]]],
    "[1, 1, 0]": [[[1, 1, 0]]],
}


def test_what_is_pasted_is_read(page):
    for text, matrices in PASTED.items():
        assert page.execute_script("return readMatrices(arguments[0])", text) == matrices, text
    for tensor in (torch.ones(2, 3, dtype=torch.int64), mt.causal_mask(3), mt.causal_mask(2).int()):
        expected = tensor.int().reshape(-1, *tensor.shape[-2:]).tolist()
        assert page.execute_script("return readMatrices(arguments[0])", str(tensor)) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Expected rows of 0 and 1, got none"),
        ("[[0, -inf]]", "got “-inf”"),
        ("[[1, 1], [1]]", "Expected rows of one length, got 2 and 1"),
        ("tensor([[1, 1, ..., 0]])", "shortened"),
        ("[[1, <img src=x onerror=alert(1)>]]", "got “<img”"),
        (str([[1] * 40]), "at most 32 × 32 numbers, got 1 × 40"),
        (str([[[1]], [[1]]]), "An attention_mask is one matrix"),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(page, text, said):
    page.execute_script(
        "Object.assign(state, { layout: 'own', own: arguments[0] }); draw()",
        text,
    )
    assert said in by_id(page, "own-error").text
    assert not by_id(page, "findings").is_displayed()


def test_a_pasted_mask_is_shown_with_its_leaks(browser):
    page = visit(browser, address("layout=own&ownIs=mask&own=[[1,0],[0,0]]&fill=1e4&shift=-10000"))
    assert "1 of 1 weights on masked keys are not 0" in by_id(page, "findings").text
    assert "One fully masked query gets weights on masked keys" in by_id(page, "findings").text


def test_a_setting_is_in_the_address_and_comes_back(browser):
    page = visit(browser, address("lengths=7,0,3&fill=1e4&shift=-10000&causal=1&layout=left&row=2"))
    state = page.execute_script("return state")
    wanted = {"lengths": [7, 0, 3], "fill": "1e4", "shift": "-10000", "causal": True, "row": 2}
    assert {name: state[name] for name in wanted} == wanted
    assert by_id(page, "lengths-0").get_attribute("value") == "7"
    page.find_element("css selector", "#presets button:nth-child(3)").click()
    assert page.current_url.endswith("#causal=1&layout=packed&row=0&query=7")
    again = page.execute_script("return String(encode(decode(location.hash.slice(1))))")
    assert again == "causal=1&layout=packed&row=0&query=7"


@pytest.mark.parametrize(
    "nonsense",
    [
        "lengths=1e99,-4,<script>&fill=__proto__&shift=NaN&row=99&layout=constructor",
        "lengths=%&fill",
        "own=%FF",
    ],
)
def test_no_address_breaks_the_explorer(browser, nonsense):
    page = visit(browser, f"{address()}#{nonsense}")
    assert by_id(page, "findings").text


def test_every_state_that_a_chapter_names_is_one(page):
    chapters = [path.read_text(encoding="utf-8") for path in CHAPTERS.glob("*.py")]
    states = re.findall(r'minitransformer explore "([^"]+)"', "\n".join(chapters))
    assert len(states) > 5
    for state in states:
        again = page.execute_script("return encode(decode(arguments[0]));", state)
        assert sorted(again.split("&")) == sorted(state.split("&"))


def test_every_example_is_what_it_says(page):
    """Each button of the explorer shows its note; those of mistakes show something wrong."""
    wrong = {}
    for button in page.find_elements("css selector", "#presets button"):
        button.click()
        assert by_id(page, "note").text
        assert button.get_attribute("aria-pressed") == "true"
        wrong[button.text] = len(page.find_elements("css selector", "#findings .bad, #loss .bad"))
    right = {"Encoder", "Decoder", "Packed", "Window", "Translation", "Your own"}
    assert {name for name, number in wrong.items() if number == 0} == right


def test_the_explorer_by_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    by_id(page, "weights-0-0").click()
    for key in (Keys.ARROW_DOWN, Keys.ARROW_RIGHT):
        page.switch_to.active_element.send_keys(key)
    assert page.switch_to.active_element.get_attribute("id") == "weights-1-1"
    assert by_id(page, "query-title").text.startswith("Query 1")
    assert len(page.find_elements("css selector", "#steps td[tabindex='0']")) == 3  # one a matrix


def weights_on_the_page(browser):
    """The decoded weights of the panel, (layers, heads, queries, keys)."""
    program = """
const done = arguments[0], wait = () => {
  if (document.documentElement.dataset.ready !== "yes") return setTimeout(wait, 20);
  const shape = [panel.layers, panel.heads, panel.queries.length, panel.keys.length];
  done([...shape, Array.from(panel.codes, code => String(WEIGHTS[code]))]);
};
wait();
"""
    *shape, flat = browser.execute_async_script(program)
    return numbers(flat).view(*shape)


def open_viewer(browser, page, tmp_path, **options):
    return visit(browser, page.save(tmp_path / "page.html").as_uri(), **options)


def test_weights_arrive_in_the_viewer_and_zero_is_zero(browser, tmp_path):
    model, inputs = model_of(DecoderOnly, window=4), inputs_of(DecoderOnly)
    with record_attention(model) as maps:
        model(*inputs)
    open_viewer(browser, attention_page(model, *inputs, names=name), tmp_path)
    found, wanted = weights_on_the_page(browser), torch.stack(list(maps.values()), 1)[0].double()
    assert (found == 0).equal(wanted == 0)
    assert (found - wanted).abs().max() < 0.0045
    masked = int((~decoder_mask(inputs[1], window=4)).sum()) * 2 * 3
    assert f"All {masked:,} weights on masked keys" in by_id(browser, "promise").text
    assert "masked: outside the window" in by_id(browser, "key").text


def test_a_leak_and_nan_are_seen_in_the_viewer(browser, tmp_path):
    model, inputs = model_of(EncoderOnly), inputs_of(EncoderOnly)
    even = lambda tap, inputs, weights: torch.full_like(weights, 1 / LENGTH)  # noqa: E731
    hook = model.encoder.layers[0].attention.tap.register_forward_hook(even)
    open_viewer(browser, attention_page(model, *inputs, names=name), tmp_path)
    weights_on_the_page(browser)
    assert "are not 0; the largest is 0.143" in by_id(browser, "promise").text
    hook.remove()
    nothing = lambda tap, inputs, weights: weights * math.nan  # noqa: E731
    model.encoder.layers[0].attention.tap.register_forward_hook(nothing)
    open_viewer(browser, attention_page(model, *inputs, names=name), tmp_path)
    assert weights_on_the_page(browser)[0].isnan().all()
    assert "are NaN" in by_id(browser, "promise").text


NASTY = [
    "</script><script>window.hacked=1</script>",
    "<img src=x onerror='window.hacked=1'>",
    "\u2028<!--",
]


def test_no_text_changes_the_page(browser, tmp_path):
    model, (ids, mask) = model_of(EncoderOnly), inputs_of(EncoderOnly)
    nasty = lambda ids: [NASTY[i % 3] for i in ids]  # noqa: E731
    page = attention_page(model, ids, mask, names=nasty, texts=NASTY, title=NASTY[0])
    open_viewer(browser, page, tmp_path)
    weights_on_the_page(browser)
    assert browser.execute_script("return panel.queries") == [
        *nasty(ids[0, :5].tolist()),
        None,
        None,
    ]
    assert browser.execute_script("return window.hacked ?? document.images.length") == 0
    assert browser.title == NASTY[0]


def test_the_viewer_by_keyboard(browser, tmp_path):
    from selenium.webdriver.common.keys import Keys

    model, inputs = model_of(EncoderDecoder), inputs_of(EncoderDecoder)
    open_viewer(browser, attention_page(model, *inputs, names=name), tmp_path)
    weights_on_the_page(browser)
    browser.find_element("css selector", "#all button[tabindex='0']").send_keys(Keys.ARROW_DOWN)
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert browser.switch_to.active_element.get_attribute("id") == "head-1-1"
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert by_id(browser, "says").text.startswith("Head 1 of layer 1 looks ")
    by_id(browser, "query-0").send_keys(Keys.ARROW_DOWN)
    assert browser.switch_to.active_element.get_attribute("id") == "query-1"
    assert by_id(browser, "numbers-title").text.startswith("Weights of query 1 ")
    assert len(browser.find_elements("css selector", "#numbers tbody tr")) == LENGTH


@pytest.fixture(scope="module")
def addresses(tmp_path_factory):
    """Pages in the states that are widest, and one of each kind."""
    file = tmp_path_factory.mktemp("viewer") / "page.html"
    model, inputs = model_of(EncoderDecoder), inputs_of(EncoderDecoder)
    long = lambda ids: [f"a long name, of number {i}" for i in ids]  # noqa: E731
    attention_page(model, *inputs, names=long, title="Attention " * 9).save(file)
    states = (
        "",
        "layout=packed&lengths=7,7,7&causal=1&row=0",
        "attention=cross&fill=1e9&dtype=float16",
    )
    return [*map(address, states), address("layout=own&own=" + str([[1] * 30])), file.as_uri()]


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_no_page_is_wider_than_its_screen(browser, addresses, width):
    for url in addresses:
        visit(browser, url, width)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width, url


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """The accessibility rules of axe-core, which npm brings for the test."""
    if shutil.which("npm") is None:
        pytest.skip("needs npm, which brings axe-core")
    folder = tmp_path_factory.mktemp("axe")
    packed = subprocess.run(["npm", "pack", "axe-core"], cwd=folder, capture_output=True)
    if packed.returncode:
        pytest.skip("npm could not bring axe-core")
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as files:
        return files.extractfile("package/axe.min.js").read().decode()


@pytest.mark.slow
@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 360)], ids=["light", "dark"])
def test_axe_finds_no_barrier(browser, axe, addresses, dark, width):
    run = "const done = arguments[0]; axe.run().then(found => done(found.violations))"
    for url in addresses:
        visit(browser, url, width, dark)
        browser.execute_script(axe)
        violations = browser.execute_async_script(run)
        assert [(one["id"], one["nodes"][0]["html"]) for one in violations] == [], url
