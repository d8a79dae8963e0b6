"""Chats: the ids of the library's own chat templates, and strangers' templates within limits."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

from minitransformer import Config, DecoderOnly, EncoderOnly
from minitransformer.cli import chat
from minitransformer.cli.main import main
from minitransformer.data.chat import ChatTemplate
from minitransformer.data.files import InputError
from minitransformer.data.tokenization import Tokenizer
from minitransformer.inference.generation import generate
from minitransformer.pretrained import save_pretrained

TEMPLATES = {
    "llama 2": """\
{% if messages[0]['role'] == 'system' %}
    {%- set rest = messages[1:] %}{% set system = messages[0]['content'] %}
{%- else %}
    {%- set rest = messages %}{% set system = false %}
{%- endif %}
{%- for message in rest %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate: user, assistant, user, ...') }}
    {%- endif %}
    {%- set content = message['content'].strip() %}
    {%- if loop.first and system is not false %}
        {%- set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + content %}
    {%- endif %}
    {%- if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content + ' [/INST]' }}
    {%- else %}{{ ' ' + content + ' ' + eos_token }}{% endif %}
{%- endfor %}""",
    "llama 3": """\
{%- if not date is defined %}{% set date = strftime_now("%d %b %Y") %}{% endif -%}
{{ bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
{%- if message.role == 'system' %}Today: {{ date }}
{% endif %}
{{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
""",
    "chatml": """\
{% set ns = namespace(turns=0) %}
{% for message in messages %}
  {% if loop.first and message['role'] != 'system' %}
<|im_start|>system
You are a <helpful> assistant.<|im_end|>
  {% endif %}
  {% if message.role == 'user' %}{% set ns.turns = ns.turns + 1 %}{% endif %}
<|im_start|>{{ message['role'] }}
{% generation %}{{ message.content }}{% endgeneration %}<|im_end|>
  {% if ns.turns > 5 %}{% break %}{% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}""",
    "mistral": """\
{%- if messages[0].role == "system" %}
    {%- set system = messages[0].content %}{% set turns = messages[1:] %}
{%- else %}{% set turns = messages %}{% endif %}
{{- bos_token }}{% if tools is not none %}[TOOLS]{{ tools | tojson }}[/TOOLS]{% endif %}
{%- for message in turns %}
    {%- if message.role == "user" %}{{ "[INST] " }}
        {%- if loop.last and system is defined %}{{ system + "\\n\\n" }}{% endif %}
        {{- message.content + "[/INST]" }}
    {%- elif message.role == "assistant" %}{{ " " + message.content + eos_token }}
    {%- else %}{{ raise_exception("Only user and assistant roles are supported!") }}{% endif %}
{%- endfor %}""",
    "json": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ dict(a='<é>') | tojson }}",
}  # fmt: skip
TURNS = [
    {"role": "user", "content": " a dog & a <fox> "},
    {"role": "assistant", "content": "the 'cat'"},
    {"role": "user", "content": "naïve\n mat"},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": "sat </s>"},
]
SYSTEM = {"role": "system", "content": "the mat"}
CONVERSATIONS = {
    "one turn": TURNS[:1],
    "three turns": TURNS,
    "a system message": [SYSTEM, *TURNS[:1]],
    "a system message and three turns": [SYSTEM, *TURNS],
}
MARKS = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small decoder with a tokenizer of bytes, of which some tokens are marks of chats."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = Tokenizer.train(["the cat sat on the mat", "a dog and a naïve fox"] * 9, 300)
    tokenizer.tokenizer.add_special_tokens(MARKS)
    tokenizer.save(folder)
    torch.manual_seed(0)
    numbers = {"num_heads": 2, "max_length": 400, "eos_id": 2}
    config = Config(len(tokenizer), 16, 1, style="llama", **numbers)
    model = DecoderOnly(config)
    torch.nn.init.normal_(model.head.projection.weight)
    save_pretrained(model, folder)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made, tmp_path / "chat")
    put(tmp_path / "chat", TEMPLATES["chatml"])
    return tmp_path / "chat"


def put(folder, template) -> None:
    """The template in tokenizer_config.json, whatever JSON it is."""
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))


def ids_of(folder, messages) -> list[int]:
    text = ChatTemplate.load(folder).render(messages)
    return Tokenizer.load(folder).encode([text], add_special=False)[0]


# ---- templates ---------------------------------------------------------------------------------


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_those_of_the_library(name, messages, folder):
    tf = pytest.importorskip("transformers")
    put(folder, TEMPLATES[name])
    theirs = tf.AutoTokenizer.from_pretrained(folder)
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ids_of(folder, messages) == expected
    assert len(expected) > 10


def test_the_library_and_we_read_the_same_template_of_several(folder):
    tf = pytest.importorskip("transformers")
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    put(folder, named)
    theirs = tf.AutoTokenizer.from_pretrained(folder)
    assert theirs.apply_chat_template(TURNS, tokenize=False) == "yes"
    assert ChatTemplate.load(folder).render(TURNS) == "yes"
    (folder / "chat_template.jinja").write_text("a file of its own, {{ bos_token }}")
    theirs = tf.AutoTokenizer.from_pretrained(folder)
    assert theirs.apply_chat_template(TURNS, tokenize=False) == "a file of its own, <s>"
    template = ChatTemplate.load(folder)
    assert template.render(TURNS) == "a file of its own, <s>"
    assert template.file == folder / "chat_template.jinja"


def test_a_namespace_takes_any_name_but_pythons():
    def render(source):
        return ChatTemplate(source, {}, "file").render([])

    assert render("{% set n = namespace({'a': 1}, self=2) %}{{ n.a }}{{ n.self }}") == "12"
    for source in ("{% set n = namespace(__class__=1) %}", "{% set n.__call__ = 1 %}"):
        with pytest.raises(InputError, match="does what templates may not do: a namespace holds"):
            render("{% set n = namespace() %}" + source)
    assert render("{{ dict.fromkeys(['a'], 1) }}") == "{'a': 1}"


HOSTILE = {
    "a syntax error": ("{% if %}", "is not Jinja: line 1: Expected an expression, got 'end of"),
    "an unknown filter": ("\n{{ 1 | shell }}", "is not Jinja: line 2: No filter named 'shell'"),
    "an exception": ("{{ raise_exception('no \x1b[2J\\n') }}", r"refuses .*: no \\x1b\[2J\\n"),
    "a missing name": ("{{ a.b.c }}", "fails: UndefinedError: 'a' is undefined"),
    "a division": ("{{ 1 / 0 }}", "fails: ZeroDivisionError: division by zero"),
    "the internals": ("{{ ''.__class__.__mro__ }}", "may not do: access to attribute '__class__'"),
    "the globals": (
        "{{ raise_exception.__globals__.os }}",
        "may not do: access to attribute '__glo",
    ),
    "a method that changes": (
        "{{ messages.append(1) }}",
        "may not do: access to attribute 'append' of",
    ),
    "a file": ("{% include '/etc/passwd' %}", "fails: TypeError: no loader for this environment"),
    "a long range": ("{% for i in range(10**9) %}{% endfor %}", "fails: OverflowError: Range too"),
    "itself without end": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails: RecursionE"),
    "a deep expression": ("{{ " + "(" * 5000 + " }}", "fails: RecursionError|is not Jinja"),
    "a text of a terabyte": ("{{ 'a' * 10**12 }}", "fails: MemoryError"),
    "nothing": ("", "the chat template writes nothing for this turn"),
    "a text without end": (
        "{% for i in range(99999) %}{% for i in range(99999) %}aaaaaaaaaa{% endfor %}{% endfor %}",
        r"does not end: it used \d\S* seconds|fails: MemoryError|has [\d,]+ characters, more than",
    ),
    "a loop without end": (
        "{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}",
        r"tokenizer_config.json: the chat template does not end: it used \S+ seconds of CPU time",
    ),
    "a power without end": ("{{ 10 ** (10 ** 10) }}", "does not end|fails: MemoryError"),
}
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="limits memory on Linux only")
DOUBLING = (
    "{% set n = namespace(a='a') %}{% for i in range(99) %}{% set n.a = n.a ~ n.a %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "message"),
    [*HOSTILE.values(), pytest.param(DOUBLING, "fails: MemoryError", marks=needs_linux)],
    ids=[*HOSTILE, "a text that doubles"],
)
def test_a_hostile_template_ends_in_one_printable_line(
    template, message, folder, capsys, monkeypatch
):
    monkeypatch.setattr(chat, "SECONDS", 60.0 if template == DOUBLING else 0.5)
    put(folder, template)
    assert main(["generate", str(folder), "--chat", "hello"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    (line,) = error.splitlines()
    assert re.match(rf"minitransformer: error: .*{message}", line)
    assert line.isprintable()
    assert len(line) < 1100
    assert "tokenizer_config.json" in line or "conversation" in line


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (None, r"chat: holds no chat template, neither chat_template.jinja nor chat_template in"),
        (7, r"tokenizer_config.json: chat_template must be a text, or a list"),
        ([], "of which one is named default"),
        ([{"name": "rag", "template": "a"}], "of which one is named default"),
        ([7, {"name": "default"}], "of which one is named default"),
    ],
)
def test_what_is_no_template_is_refused_by_its_file(said, message, folder):
    put(folder, said)
    with pytest.raises(InputError, match=message):
        ChatTemplate.load(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff", "is not UTF-8"),
        (b"a" * (2**20 + 1), "has more than the 1 MiB"),
        (None, "a folder"),
    ],
)
def test_a_template_file_that_cannot_be_read_is_named(content, message, folder):
    file = folder / "chat_template.jinja"
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(InputError, match=rf"chat_template.jinja: .*{message}"):
        ChatTemplate.load(folder)


# ---- conversations -----------------------------------------------------------------------------


def expected_answers(folder, turns, system=None, new=5) -> list[str]:
    """By `generate`, which knows nothing of chats, from the ids of the whole conversation."""
    from minitransformer import load_pretrained

    model, tokenizer = load_pretrained(folder), Tokenizer.load(folder)
    messages = [] if system is None else [{"role": "system", "content": system}]
    answers = []
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        ids = torch.tensor([ids_of(folder, messages)])
        row = generate(model, ids, torch.ones_like(ids), new, eos_id=model.config.eos_id)[0]
        answers.append(tokenizer.decode(row))
        messages.append({"role": "assistant", "content": answers[-1]})
    return answers


OPTIONS = ["--temperature", "0", "--max-new-tokens", "5"]


@pytest.mark.parametrize("system", [pytest.param(None, marks=pytest.mark.slow), "the mat"])
def test_each_turn_is_answered_with_the_turns_before_it(system, folder, capsys, monkeypatch):
    turns = ["a dog", "the cat", "naïve"]
    expected = expected_answers(folder, turns, system)
    alone = [expected_answers(folder, [turn], system)[0] for turn in turns]
    assert expected[0] == alone[0]
    assert expected[1:] != alone[1:]
    said = [] if system is None else ["--system", system]
    assert main(["generate", str(folder), "--chat", *OPTIONS, *said, *turns]) == 0
    printed = "".join(f"{answer}\n" for answer in expected)
    assert capsys.readouterr().out == printed
    typed = "\n".join(["", *turns, " "]).encode()  # lines of white space are no turns
    run = subprocess.run(
        [sys.executable, "-m", "minitransformer", "generate", folder, "--chat", *OPTIONS, *said],
        input=typed,
        capture_output=True,
        check=True,
    )
    assert run.stdout.decode() == printed
    (folder / "turns").write_bytes(typed)
    file = ["--file", str(folder / "turns")]
    assert main(["generate", str(folder), "--chat", *OPTIONS, *said, *file]) == 0
    assert capsys.readouterr().out == printed


def test_an_answer_ends_at_any_end_of_generation_config_which_is_not_printed(folder, capsys):
    from minitransformer import load_pretrained

    model, tokenizer = load_pretrained(folder), Tokenizer.load(folder)
    ids = torch.tensor([ids_of(folder, [{"role": "user", "content": "a dog"}])])
    row = generate(model, ids, torch.ones_like(ids), 5)[0].tolist()
    for end in row:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, end]}))
        assert main(["generate", str(folder), "--chat", *OPTIONS, "a dog"]) == 0
        assert capsys.readouterr().out == tokenizer.decode(row[: row.index(end)]) + "\n"


HOT = ["--temperature", "5", "--max-new-tokens", "5"]


def test_drawn_answers_are_those_of_the_seed(folder, capsys):
    printed = []
    for seed in ("0", "0", "1"):
        assert main(["generate", str(folder), "--chat", "--seed", seed, *HOT, "a dog"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != printed[2]


def test_a_conversation_that_becomes_too_long_is_one_line(folder, capsys):
    assert main(["generate", str(folder), "--chat", *OPTIONS, "a dog", "the cat " * 200]) == 2
    out, error = capsys.readouterr()
    assert out == expected_answers(folder, ["a dog"])[0] + "\n"
    needs = r"has \d+ tokens and needs 5 more for an answer; the model was built for 400"
    assert re.fullmatch(
        rf"minitransformer: error: the conversation {needs}: begin a new one\n", error
    )
    assert main(["generate", str(folder), "--chat", "a" * 400_001]) == 2
    assert re.search(r"has 400,\d+ characters, more than the 400 tokens", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--system", "x", "hi"], "--system is for a conversation: add --chat"),
        (["--chat", "--num-beams", "2", "hi"], "--chat writes as it comes, which --num-beams"),
        (["--chat", "--file", "x", "hi"], "give texts or --file, not both"),
        (["--chat", "--file", "nowhere"], "nowhere: no such file"),
        (["--chat", "--top-p", "2", "hi"], "top_p must be"),
        (["--chat", "\udcff"], "the tokenizer cannot read this text"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments, message, folder, capsys):
    assert main(["generate", str(folder), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_what_is_no_decoder_is_refused(tmp_path, capsys):
    save_pretrained(
        EncoderOnly(Config(300, 8, num_heads=2, style="bert", num_segments=2)), tmp_path
    )
    Tokenizer.train(["the cat"], 300).save(tmp_path)
    assert main(["generate", str(tmp_path), "--chat", "hi"]) == 2
    assert (
        "is of task pretrained, EncoderOnly; --chat takes a DecoderOnly" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (b"a dog\n\xff\n", "standard input:2: is not UTF-8"),
        (b"a" * (2**20 + 1), "standard input:1: has more than 1,048,576 bytes"),
    ],
)
def test_lines_that_cannot_be_read_are_named(typed, message, folder, capsys, monkeypatch):
    import io

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed)))
    assert main(["generate", str(folder), "--chat", *OPTIONS]) == 2
    assert message in capsys.readouterr().err
