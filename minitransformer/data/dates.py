"""Dates as people write them, in many languages and scripts, to be translated to ISO 8601.

>>> writings(datetime.date(2025, 6, 3), "fr")
['mardi 3 juin 2025', '3 juin 2025', 'mar. 3 juin 2025']

Patterns and names come from the Unicode CLDR (https://cldr.unicode.org) through Babel; the letters
of a pattern ("EEEE d MMMM y") are those of https://unicode.org/reports/tr35/tr35-dates.html.
Nothing is stored: the examples of a training step are a function of (seed, step), and the held-out
days appear in none of them, in any language.

A text names one day only, whatever its language. That is less obvious than it seems: "listopada" is
November in Polish and October in Croatian, and only two dots tell "3 listopada 2025" from
"3. listopada 2025.". tests/test_dates.py proves it for every text that can be produced.

What Babel does not write is not here: the French "1er juin", the Buddhist years that Thai prefers,
and digits other than 0-9.
"""

import datetime
import functools
import random
import re
import unicodedata
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import babel

FIRST_DAY = datetime.date(1900, 1, 1)
LAST_DAY = datetime.date(2099, 12, 31)
_NUM_HELD_OUT_DAYS = 2_000

# fmt: off
LOCALES = (
    "en", "de", "nl", "sv", "fr", "es", "pt", "it", "pl", "cs", "hr", "fi", "hu", "tr", "vi",
    "ru", "uk",                          # Cyrillic
    "el", "ka", "hy", "he", "ar", "hi",  # Greek, Georgian, Armenian, Hebrew, Arabic, Devanagari
    "th", "ko", "ja", "zh",              # Thai, Hangul, Han, Han
)
# fmt: on

_STYLES = ("full", "long", "medium")
_SKELETONS = ("yMMMd", "yMMMEd", "yMMMMd", "yMMMMEd", "yMMMMEEEEd", "yMd")

# What people write beside CLDR. The letter "o" is ours: the ending of an ordinal, "rd" for 3.
_FREE_ENGLISH = (
    "MMMM do, y",  # June 3rd, 2025
    "EEEE, MMMM do, y",  # Tuesday, June 3rd, 2025
    "do 'of' MMMM y",  # 3rd of June 2025
    "'the' do 'of' MMMM, y",  # the 3rd of June, 2025
    "d MMMM y",  # 3 June 2025
    "E d MMM y",  # Tue 3 Jun 2025
    "MMM d y",  # Jun 3 2025
)


class DateExample(NamedTuple):
    """One pair to learn from."""

    text: str  # what the encoder reads: "mardi 3 juin 2025"
    iso: str  # what the decoder shall write: "2025-06-03"
    locale: str  # the language of the text: "fr"


def training_examples(seed: int, step: int, count: int) -> list[DateExample]:
    """The examples of one training step: a random day in a random language, in a random writing.

    They depend on the arguments alone: a run that resumes at step 300 sees what it would have seen.
    """
    draw = random.Random(f"{seed} {step}").choice
    examples = []
    for _ in range(count):
        day, locale = draw(_training_days()), draw(LOCALES)
        examples.append(DateExample(_write(draw(_writers(locale)), day), day.isoformat(), locale))
    return examples


def held_out_examples(per_day: int = 1) -> list[DateExample]:
    """`per_day` examples of each held-out day; languages take turns, and so do their writings.

    The days come in random order, so the first n examples are a fair sample.
    """
    examples = []
    for i in range(_NUM_HELD_OUT_DAYS * per_day):
        day = _held_out_in_order()[i // per_day]
        turn, which = divmod(i, len(LOCALES))
        writers = _writers(LOCALES[which])
        text = _write(writers[turn % len(writers)], day)
        examples.append(DateExample(text, day.isoformat(), LOCALES[which]))
    return examples


def held_out_days() -> frozenset[datetime.date]:
    """The days that no training example shows, in any language."""
    return frozenset(_held_out_in_order())


def writings(day: datetime.date, locale: str) -> list[str]:
    """Every distinct way in which `locale` writes the day."""
    if locale not in LOCALES:
        raise ValueError(f"locale must be one of {', '.join(LOCALES)}, got {locale!r}")
    if not FIRST_DAY <= day <= LAST_DAY:
        raise ValueError(f"day must be from {FIRST_DAY} to {LAST_DAY}, got {day}")
    return list(dict.fromkeys(_write(writer, day) for writer in _writers(locale)))


def alphabet() -> list[str]:
    """Every character that a text or an ISO date can contain, sorted."""
    characters = set("0123456789-")
    for locale in LOCALES:
        for writer in _writers(locale):
            for _, spelling in writer:
                characters.update(*spelling.values())
    return sorted(characters)


def longest_text() -> int:
    """No text has more characters than this."""
    return max(
        sum(max(map(len, spelling.values())) for _, spelling in writer)
        for locale in LOCALES
        for writer in _writers(locale)
    )


# --- days ---


@functools.cache
def _held_out_in_order() -> tuple[datetime.date, ...]:
    return tuple(random.Random("held-out days").sample(_all_days(), _NUM_HELD_OUT_DAYS))


@functools.cache
def _training_days() -> tuple[datetime.date, ...]:
    held_out = held_out_days()
    return tuple(day for day in _all_days() if day not in held_out)


def _all_days() -> list[datetime.date]:
    ordinals = range(FIRST_DAY.toordinal(), LAST_DAY.toordinal() + 1)
    return [datetime.date.fromordinal(ordinal) for ordinal in ordinals]


# --- patterns ---

# Babel takes a pattern apart again for each date. Here each pattern is compiled once into a writer:
# a list of (which number of the day to show, how each value of that number is spelled).
_Writer = list[tuple[str, dict[int, str]]]


def _write(writer: _Writer, day: datetime.date) -> str:
    number = {
        "year": day.year,
        "month": day.month,
        "day": day.day,
        "weekday": day.weekday(),
        "constant": 0,
    }
    return "".join([spelling[number[name]] for name, spelling in writer])


@functools.cache
def _writers(locale: str) -> list[_Writer]:
    """One writer for each pattern of the locale; English also in lower case."""
    writers = [_compile(pattern, locale) for pattern in _patterns(locale)]
    if locale == "en":
        writers += [
            [(name, {n: text.lower() for n, text in spelling.items()}) for name, spelling in writer]
            for writer in writers
        ]
    return writers


def _patterns(locale: str) -> list[str]:
    """The patterns that cannot confuse day and month: the month has a name or the year is first."""
    formats, skeletons = _cldr(locale).date_formats, _cldr(locale).datetime_skeletons
    known = [formats[style].pattern for style in _STYLES]
    known += [skeletons[name].pattern for name in _SKELETONS if name in skeletons]
    if locale == "en":
        known += _FREE_ENGLISH
    distinct = dict.fromkeys(map(_as_typed, known))
    return [pattern for pattern in distinct if re.search("MMM|LLL|^y", pattern)]


def _compile(pattern: str, locale: str) -> _Writer:
    """The writer of a pattern: its fields in order, and the constant text between them."""
    writer = []
    for quoted, field, _, other in re.findall(r"'([^']*)'|(([A-Za-z])\3*)|([^A-Za-z']+)", pattern):
        name, spelling = _spelling(field, locale) if field else ("constant", {0: quoted or other})
        writer.append((name, {n: _as_typed(text) for n, text in spelling.items()}))
    return writer


def _spelling(field: str, locale: str) -> tuple[str, dict[int, str]]:
    """Which number a field shows, and its spellings: "MMMM" is ("month", {1: "janvier", ...})."""
    cldr = _cldr(locale)
    context = "stand-alone" if field[0] in "Lc" else "format"
    width = "wide" if len(field) == 4 else "abbreviated"
    match field:
        case "y":
            return "year", {n: str(n) for n in range(FIRST_DAY.year, LAST_DAY.year + 1)}
        case "M" | "MM":
            return "month", {n: str(n).zfill(len(field)) for n in range(1, 13)}
        case "MMM" | "MMMM" | "LLL" | "LLLL":
            return "month", dict(cldr.months[context][width])
        case "d" | "dd":
            return "day", {n: str(n).zfill(len(field)) for n in range(1, 32)}
        case "o":
            return "day", {n: _ordinal_ending(n) for n in range(1, 32)}
        case "E" | "EEE" | "EEEE" | "ccc" | "cccc":
            return "weekday", dict(cldr.days[context][width])  # Monday is 0, as in Python
        case "G":
            return "constant", {0: cldr.eras["abbreviated"][1]}  # all our days are AD
    raise ValueError(f"cannot write the field {field!r} of a date pattern of locale {locale!r}")


def _ordinal_ending(number: int) -> str:
    if number in (11, 12, 13):
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


def _as_typed(text: str) -> str:
    """The text in NFC, with plain spaces for narrow and no-break ones, without direction marks."""
    without_marks = re.sub("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]", "", text)
    return re.sub(r"\s", " ", unicodedata.normalize("NFC", without_marks))


@functools.cache
def _cldr(locale: str) -> "babel.Locale":
    """What CLDR knows about a locale. Only this function needs Babel, which is optional."""
    try:
        from babel import Locale
    except ModuleNotFoundError as error:
        message = "the dates task needs Babel: pip install 'minitransformer[plot]'"
        raise ModuleNotFoundError(message, name="babel") from error
    return Locale.parse(locale)
