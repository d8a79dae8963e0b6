"""What a folder says about generation: generation_config.json, which wins over config.json."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minitransformer.config import Config
from minitransformer.data.files import InputError, read_object

NAME = "generation_config.json"
FOLLOWED = (
    "bad_words_ids",
    "decoder_start_token_id",
    "eos_token_id",
    "forced_bos_token_id",
    "suppress_tokens",
)
REFUSED = (  # they change what may be written, in ways that `generate` has no part for
    "begin_suppress_tokens",
    "constraints",
    "force_words_ids",
    "sequence_bias",
    "stop_strings",
)


def read_generation(folder: Path, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Their config.json with the keys of generation_config.json in place of its own.

    Followed are the ends, the first token of a target, and tokens that are never written. How to
    search (num_beams, temperature, penalties, lengths) is for the caller of `generate` to say.
    Raises InputError for what we cannot follow, with its file and key.
    """
    file = folder / NAME
    own = read_object(file) if os.path.lexists(file) else {}
    own = {key: own[key] for key in (*FOLLOWED, *REFUSED) if own.get(key) is not None}
    said = {**theirs, **own}

    def where(key: str) -> str:
        return f"{file if key in own else folder / 'config.json'}: {key}"

    for key in REFUSED:
        if said.get(key):
            raise InputError(f"{where(key)} cannot be followed: remove it to generate without it")
    words, tokens = said.get("bad_words_ids") or [], said.get("suppress_tokens") or []
    if not _lists_of_ids(words):
        raise InputError(f"{where('bad_words_ids')} must be a list of lists of token ids")
    if not _lists_of_ids([tokens]):
        raise InputError(f"{where('suppress_tokens')} must be a list of token ids")
    if longer := [word for word in words if len(word) != 1]:
        raise InputError(f"{where('bad_words_ids')} holds {longer[0]}; only single tokens are read")
    eos = said.get("eos_token_id")
    ends = eos if isinstance(eos, list) else [eos]
    words = [word[0] for word in words if word[0] not in ends]  # as in the library
    return said | {"suppress_tokens": tuple(dict.fromkeys([*words, *tokens]))}


def _lists_of_ids(lists: Any) -> bool:
    return isinstance(lists, list) and all(
        isinstance(ids, list) and all(type(i) is int and i >= 0 for i in ids) for ids in lists
    )


def write_generation(config: Config, encoder_decoder: bool) -> dict[str, Any]:
    """The generation_config.json of a model with this config."""
    said = {
        "eos_token_id": config.eos_id,
        "decoder_start_token_id": config.bos_id if encoder_decoder else None,
        "forced_bos_token_id": config.first_id,
        "suppress_tokens": config.forbidden_ids or None,
    }
    return {key: value for key, value in said.items() if value is not None}
