"""The dates task: what is written is what Babel writes, and no text means two days."""

import datetime
import importlib.util
import itertools
import re
import sys
import time
import unicodedata
from collections import Counter

import pytest

babel_dates = pytest.importorskip("babel.dates")
from minitransformer.data import dates  # noqa: E402
from minitransformer.training.tasks import DatesTask  # noqa: E402

A_DAY = datetime.date(2025, 6, 3)  # a Tuesday


def every_day(year):
    first = datetime.date(year, 1, 1)
    return [first + datetime.timedelta(n) for n in range(365 + is_leap(year))]


def is_leap(year):
    return (datetime.date(year, 12, 31) - datetime.date(year, 1, 1)).days == 365


@pytest.mark.parametrize(
    ("locale", "text"),
    [
        ("en", "Tuesday, June 3, 2025"),
        ("en", "the 3rd of June, 2025"),
        ("en", "tue 3 jun 2025"),
        ("de", "3. Juni 2025"),
        ("fr", "mardi 3 juin 2025"),
        ("sv", "2025-06-03"),
        ("ru", "вторник, 3 июня 2025 г."),
        ("el", "Τρίτη 3 Ιουνίου 2025"),
        ("ar", "الثلاثاء، 3 يونيو 2025"),
        ("hi", "मंगलवार, 3 जून 2025"),
        ("ko", "2025년 6월 3일 화요일"),
        ("ja", "2025年6月3日"),
    ],
)
def test_writings_by_hand(locale, text):
    assert text in dates.writings(A_DAY, locale)


@pytest.mark.parametrize("locale", ["en", "es"])
def test_numeric_dates_of_unclear_order_are_left_out(locale):
    assert not {"6/3/2025", "3/6/2025", "06/03/2025"} & set(dates.writings(A_DAY, locale))


def test_english_ordinals():
    endings = ["st", "nd", "rd", *["th"] * 17, "st", "nd", "rd", *["th"] * 7, "st"]
    assert len(endings) == 31
    for number, ending in enumerate(endings, start=1):
        expected = f"January {number}{ending}, 2025"
        written = dates.writings(datetime.date(2025, 1, number), "en")
        assert {expected, expected.lower()} <= set(written)


@pytest.mark.parametrize("locale", dates.LOCALES)
def test_our_writer_equals_babel(locale):
    # 25 days apart: every month, every weekday, days of one and of two digits.
    days = [datetime.date(1999, 12, 31) + datetime.timedelta(25 * n) for n in range(40)]
    for pattern in dates._patterns(locale):
        if "do" in pattern:  # the ordinals are ours, not CLDR's
            continue
        writer = dates._compile(pattern, locale)
        for day in days:
            theirs = babel_dates.format_date(day, pattern, locale=locale)
            assert dates._write(writer, day) == dates._as_typed(theirs)


def test_no_text_means_two_days():
    """Exhaustive, though it looks at 14 years only.

    The year is the only run of four digits in a text, so two years never share a text. Two years
    that begin on the same weekday and are both leap or both common write the same texts except for
    the year. So one year of each of these 14 kinds stands for all.
    """
    years = {
        (is_leap(year), datetime.date(year, 1, 1).weekday()): year
        for year in range(dates.FIRST_DAY.year, dates.LAST_DAY.year + 1)
    }
    assert len(years) == 14
    long_number = re.compile(r"\d{4,}")
    for year in years.values():
        meaning = {}
        for day, locale in itertools.product(every_day(year), dates.LOCALES):
            for text in dates.writings(day, locale):
                assert meaning.setdefault(text, day) == day, (text, locale)
        assert all(long_number.findall(text) == [str(year)] for text in meaning)


def test_two_languages_give_one_word_two_meanings():
    """Why the proof above is needed: the same month's name, told apart by the dots."""
    assert "3 listopada 2025" in dates.writings(datetime.date(2025, 11, 3), "pl")
    assert "3. listopada 2025." in dates.writings(datetime.date(2025, 10, 3), "hr")


def test_texts_are_what_people_type():
    for character in dates.alphabet():
        if character != " ":
            assert unicodedata.category(character)[0] in "LMNP", hex(ord(character))
    for day, locale in itertools.product(every_day(2025), dates.LOCALES):
        for text in dates.writings(day, locale):
            assert unicodedata.is_normalized("NFC", text)
            assert text == " ".join(text.split())


def test_alphabet_is_what_the_texts_contain():
    characters = set("0123456789-")
    for day, locale in itertools.product(every_day(2025), dates.LOCALES):
        characters.update(*dates.writings(day, locale))
    assert dates.alphabet() == sorted(characters)


def test_many_locales_and_scripts():
    letters = [character for character in dates.alphabet() if character.isalpha()]
    scripts = {unicodedata.name(letter).split()[0] for letter in letters}
    assert len(set(dates.LOCALES)) == len(dates.LOCALES) >= 24
    assert {"LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "DEVANAGARI", "THAI"} < scripts


def test_held_out_days_are_fixed():
    days = dates.held_out_days()
    assert len(days) == 2000
    assert min(days) >= dates.FIRST_DAY
    assert max(days) <= dates.LAST_DAY
    # A checkpoint that was trained with another choice of days has seen some of these.
    first_examples = [example.iso for example in dates.held_out_examples()[:3]]
    assert first_examples == ["2032-04-18", "2027-01-12", "2058-02-09"]


def test_training_never_shows_a_held_out_day():
    held_out = {day.isoformat() for day in dates.held_out_days()}
    shown = {example.iso for example in dates.training_examples(seed=0, step=0, count=300_000)}
    assert not shown & held_out
    assert len(shown) > 0.95 * len(dates._training_days())  # so nothing else is kept out


def test_training_examples_are_true():
    for text, iso, locale in dates.training_examples(seed=1, step=2, count=2000):
        assert text in dates.writings(datetime.date.fromisoformat(iso), locale)


def test_training_examples_depend_on_seed_and_step_only():
    backwards = [dates.training_examples(7, step, 5) for step in (2, 1, 0)]
    forwards = [dates.training_examples(7, step, 5) for step in (0, 1, 2)]
    assert forwards == backwards[::-1]
    assert dates.training_examples(7, 1, 3) == forwards[1][:3]
    others = [(7, 0), (7, 1), (8, 1), (7, 10), (71, 0)]
    assert len({tuple(dates.training_examples(*other, 5)) for other in others}) == 5


def test_training_draws_locales_alike():
    expected = 1000
    count = expected * len(dates.LOCALES)
    drawn = Counter(example.locale for example in dates.training_examples(0, 0, count))
    assert set(drawn) == set(dates.LOCALES)
    assert all(abs(times - expected) < 5 * expected**0.5 for times in drawn.values())


@pytest.mark.parametrize("per_day", [1, 3])
def test_held_out_examples(per_day):
    examples = dates.held_out_examples(per_day)
    assert examples == dates.held_out_examples(per_day)
    times = Counter(example.iso for example in examples)
    assert times == {day.isoformat(): per_day for day in dates.held_out_days()}
    shares = Counter(example.locale for example in examples).values()
    assert len(shares) == len(dates.LOCALES)
    assert max(shares) - min(shares) <= 1
    for text, iso, locale in examples[:500]:
        assert text in dates.writings(datetime.date.fromisoformat(iso), locale)


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match=r"one of en, de, .* got 'xx'"):
        dates.writings(A_DAY, "xx")
    with pytest.raises(ValueError, match="from 1900-01-01 to 2099-12-31, got 1815-12-10"):
        dates.writings(datetime.date(1815, 12, 10), "en")


def test_without_babel(monkeypatch):
    monkeypatch.setitem(sys.modules, "babel", None)  # what `import babel` meets if it is missing
    spec = importlib.util.spec_from_file_location("dates_without_babel", dates.__file__)
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    assert len(fresh.held_out_days()) == 2000
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'minitransformer\[plot\]'"):
        fresh.writings(A_DAY, "fr")


def test_half_a_percent_of_the_main_jobs_batches_is_padding():
    batches = [DatesTask().batch(0, step, 128, packed=True) for step in range(0, 500, 25)]
    masks = [mask for one in batches for mask in (one.source_mask, one.target_mask)]
    tokens = sum(int((mask != 0).sum()) for mask in masks)
    assert sum(mask.numel() for mask in masks) < 1.006 * tokens


def test_a_batch_takes_less_than_8_ms_of_cpu_time():
    def seconds(step):
        start = time.process_time()
        dates.training_examples(0, step, 128)
        return time.process_time() - start

    assert min(map(seconds, range(10))) < 0.008  # about 0.4 ms on an idle core
