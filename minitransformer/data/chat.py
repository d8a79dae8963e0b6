"""Chat templates: a conversation as the text that its model was trained on, by the folder's Jinja.

template = ChatTemplate.load(folder)
text = template.render([{"role": "user", "content": "Hello!"}])
ids = tokenizer.encode([text], add_special=False)[0]  # the template has written the special tokens
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from minitransformer.data.files import InputError, read_file, read_object

try:
    from jinja2 import TemplateError, TemplateSyntaxError, nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace
except ImportError:
    raise ImportError("chat templates need jinja2: pip install jinja2") from None

TEMPLATE, CONFIG = "chat_template.jinja", "tokenizer_config.json"
LARGEST = 2**20  # bytes of a template


@dataclass(frozen=True)
class ChatTemplate:
    """A folder's chat template, which runs in a sandbox set up as the transformers library's.

    The sandbox keeps it from Python and from files, not from using time and memory without end:
    whoever renders a stranger's template needs a limit around that.
    """

    source: str
    tokens: Mapping[str, str]  # bos_token, eos_token, ...: the names that templates know them by
    file: Path

    @classmethod
    def load(cls, folder: str | Path) -> "ChatTemplate":
        """From chat_template.jinja or tokenizer_config.json. Raises InputError with the file."""
        folder = Path(folder)
        source, file = _read_template(folder)
        return cls(source, _read_tokens(folder), file)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The conversation and what stands before the next answer, special tokens included.

        Raises InputError for a template that is not Jinja, that fails, or that refuses the
        conversation (some know no system message, say).
        """
        try:
            template = _environment().from_string(self.source)
            return template.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self.tokens,
            )
        except TemplateSyntaxError as error:
            what = f"is not Jinja: line {error.lineno}: {error.message}"
        except SecurityError as error:
            what = f"does what templates may not do: {error}"
        except Exception as error:  # whatever its expressions raise
            refuses = type(error) is TemplateError  # as `raise_exception` has it, no kind of it
            kind = "refuses this conversation" if refuses else f"fails: {type(error).__name__}"
            what = f"{kind}: {error}"
        raise InputError(f"{self.file}: the chat template {what}")


def _read_template(folder: Path) -> tuple[str, Path]:
    """The template and its file; of several with names the one that is called default."""
    file = folder / TEMPLATE
    if os.path.lexists(file):
        try:
            return read_file(file, LARGEST).decode(), file
        except UnicodeDecodeError:
            raise InputError(f"{file}: is not UTF-8") from None
    file = folder / CONFIG
    said = read_object(file).get("chat_template") if os.path.lexists(file) else None
    if said is None:
        raise InputError(
            f"{folder}: holds no chat template, neither {TEMPLATE} nor chat_template in {CONFIG}; "
            "expected the folder of a model for chats"
        )
    named = {"template": said} if isinstance(said, str) else _default_of(said)
    if not isinstance(named.get("template"), str):
        raise InputError(
            f"{file}: chat_template must be a text, or a list of objects with name and template, "
            "of which one is named default"
        )
    return named["template"], file


def _default_of(several: Any) -> dict[str, Any]:
    named = [one for one in several if isinstance(one, dict)] if isinstance(several, list) else []
    return next((one for one in named if one.get("name") == "default"), {})


def _read_tokens(folder: Path) -> dict[str, str]:
    tokens = {}
    for file in (folder / "special_tokens_map.json", folder / CONFIG):
        said = read_object(file) if os.path.lexists(file) else {}
        for key, token in said.items():
            token = token.get("content") if isinstance(token, dict) else token
            if key.endswith("_token") and isinstance(token, str):
                tokens[key] = token
    return tokens


# ---- the sandbox, in which templates find what they find in the transformers library -------------


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)  # no HTML escapes
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": lambda format: datetime.now().strftime(format),
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment


class _Generation(Extension):
    """{% generation %} marks what is to be learned of a conversation; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Dict:
    """`dict` without what else a class can be asked for."""

    def __call__(self, *pairs: Any, **named: Any) -> dict:
        return dict(*pairs, **named)

    def fromkeys(self, *given: Any) -> dict:
        return dict.fromkeys(*given)


class _Namespace(Namespace):
    """Jinja's namespace without names that mean something to Python."""

    def __init__(*given: Any, **named: Any):  # one of its names may be `self`
        self, *pairs = given
        Namespace.__init__(self)
        for name, value in dict(*pairs, **named).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace holds no {name!r}")
        super().__setitem__(name, value)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
