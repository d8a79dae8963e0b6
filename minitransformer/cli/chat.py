"""`minitransformer generate --chat`: a conversation, in the words of the folder's chat template."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minitransformer.checks.engine.time_limit import OutOfTime, time_limit
from minitransformer.data.chat import ChatTemplate
from minitransformer.data.files import InputError
from minitransformer.data.tokenization import Tokenizer
from minitransformer.inference.answering import stream_reply
from minitransformer.inference.prepacked import prepack
from minitransformer.models import DecoderOnly
from minitransformer.training.run import Run

SECONDS = 5.0  # of CPU time that a template may take; most take milliseconds
MEMORY = 2**29  # bytes that it may take
CHARACTERS = 1000  # that no token has
LONGEST_LINE = 2**20  # bytes
ANSWER = 512  # tokens, where nothing else is said


def converse(
    run: Run,
    folder: str | Path,
    turns: Iterable[str],
    system: str | None = None,
    max_new_tokens: int | None = None,
    **sampling: Any,
) -> Iterator[str]:
    """The answers to the turns, piece by piece, each given all that was said before it.

    Raises InputError for a folder without a chat template, for a template that cannot be used, and
    for a conversation that is longer than the model's max_length.
    """
    tokenizer = run.vocabulary
    if not isinstance(run.model, DecoderOnly) or not isinstance(tokenizer, Tokenizer):
        raise InputError(
            f"{folder}: is of task {run.task}, {type(run.model).__name__}; --chat takes a "
            "DecoderOnly in a Hugging Face folder"
        )
    template, model = ChatTemplate.load(folder), prepack(run.model)
    longest = model.config.max_length
    messages = [] if system is None else [{"role": "system", "content": system}]
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        ids = encode(tokenizer, template, messages, longest)
        limit = max_new_tokens or min(max(longest - len(ids), 1), ANSWER)
        if len(ids) + limit > longest:
            raise InputError(
                f"the conversation has {len(ids)} tokens and needs {limit} more for an answer; the "
                f"model was built for {longest}: begin a new one"
            )
        answer = ""
        for piece in stream_reply(model, tokenizer, ids, limit, **sampling):
            answer += piece
            yield piece
        yield "\n"
        messages.append({"role": "assistant", "content": answer})


def write(template: ChatTemplate, messages: list[Mapping[str, str]]) -> str:
    """The text of the conversation; a template, which is a stranger's program, has its limits."""
    try:
        with time_limit(SECONDS), memory_limit(MEMORY):
            return template.render(messages)
    except OutOfTime as error:
        raise InputError(f"{template.file}: the chat template does not end: {error}") from None


@contextmanager
def memory_limit(more: int) -> Iterator[None]:
    """On Linux a MemoryError for whoever takes so many more bytes than this process has."""
    used = Path("/proc/self/statm")  # in pages
    if not used.exists():
        yield
        return
    import resource

    pages = int(used.read_text(encoding="ascii").split()[0])
    soft, hard = before = resource.getrlimit(resource.RLIMIT_AS)
    limits = [pages * resource.getpagesize() + more, soft, hard]
    lowest = min(limit for limit in limits if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def encode(
    tokenizer: Tokenizer, template: ChatTemplate, messages: list[Mapping[str, str]], longest: int
) -> list[int]:
    """The token ids of the conversation; the template has written the special ones."""
    text = write(template, messages)
    if len(text) > CHARACTERS * longest:  # before minutes are spent on its tokens
        raise InputError(
            f"the conversation has {len(text):,} characters, more than the {longest} tokens that "
            "the model was built for"
        )
    ids = tokenizer.encode([text], add_special=False)[0]
    if not ids:
        raise InputError(f"{template.file}: the chat template writes nothing for this turn")
    return ids


def typed_turns() -> Iterator[str]:
    """The lines of standard input, each as soon as it is there; on a terminal, after a sign."""
    number = 0
    while True:
        number += 1
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.buffer.readline(LONGEST_LINE + 1)
        if not line:
            return
        if len(line) > LONGEST_LINE:
            raise InputError(f"standard input:{number}: has more than {LONGEST_LINE:,} bytes")
        try:
            yield line.decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError:
            raise InputError(f"standard input:{number}: is not UTF-8") from None
