"""Whatever is handed in: every student has a row, and what is not read is named with the reason."""

import json
import os
import stat
import struct
import zipfile

import pytest

from minitransformer.exercises import EXERCISES
from minitransformer.exercises.cells import load_cells
from minitransformer.grading import submissions
from minitransformer.grading.submissions import code_of, submissions_in

NAMES = ["causal_mask", "softmax"]
ANSWER = EXERCISES["causal_mask"].source
STUB = EXERCISES["causal_mask"].stub


def notebook(*sources, outputs=()):
    cells = [
        {"cell_type": "code", "metadata": {}, "outputs": list(outputs), "source": source}
        for source in sources
    ]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def hand_in(folder, files):
    """Files by name, the later ones newer."""
    for age, (name, content) in enumerate(files.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        os.utime(path, (1_000_000 + age, 1_000_000 + age))
    return {one.student: one for one in submissions_in(folder)}


def read(one):
    """(labels, notes)"""
    cells, notes = code_of(one, NAMES)
    return [label for label, _ in cells], notes


def answers(one):
    """What stands of the exercise in the end."""
    space, _ = load_cells(code_of(one, NAMES)[0], NAMES)
    return space["causal_mask"](2, 3).tolist()


def zipped(tmp_path, files):
    path = tmp_path / "made.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path.read_bytes()


# ---- who has a row -------------------------------------------------------------------------------


def test_every_student_has_a_row_whatever_was_handed_in(tmp_path):
    archive = zipped(tmp_path, {"homework/solution.py": ANSWER})
    found = hand_in(
        tmp_path / "in",
        {
            "ann.py": ANSWER,
            "BOB.PY": ANSWER,
            "cyd.py.txt": ANSWER,
            "dan.zip": archive,
            "eve.Ipynb": notebook(ANSWER),
            "fay.pdf": b"%PDF",
            "gus/work.TXT": ANSWER,
            "hal/work.zip": archive,
            "ida/notes.docx": b"PK",
            "__MACOSX/._ann.py": b"\0",
            ".DS_Store": b"\0",
            "README.txt": "Hand in by Friday.",
            "roster.csv": "name",
        },
    )
    right = {"ann", "BOB", "cyd", "dan", "eve", "gus", "hal"}
    assert found.keys() == right | {"fay.pdf", "ida"}
    for student in right:
        assert read(found[student])[1] == []
        assert answers(found[student]) == [[[[True, True, False], [True, True, True]]]]
    for student, name in {"fay.pdf": "fay.pdf", "ida": "notes.docx"}.items():
        assert read(found[student])[1] == [
            f"not read: {name} (only .py, .ipynb, .txt and .zip files are)",
            "nothing was handed in that can be read",
        ]


def test_one_student_under_two_spellings_and_two_under_one_are_told(tmp_path):
    files = {"Ann Lee.py": ANSWER, "ann_lee.py": ANSWER, "bob.py": ANSWER, "bob/more.py": ""}
    found = hand_in(tmp_path, files)
    assert found["Ann Lee"].notes == (
        "ann_lee has a row, too: is it one student under two spellings?",
    )
    assert found["bob"].notes == ("bob and bob.py are taken for one student's",)
    assert [file.name for file in found["bob"].files] == ["more.py", "bob.py"]


def test_nothing_an_empty_file_and_an_untouched_stub_are_three_things(tmp_path):
    documented = STUB.replace('"""True', '"""My first try. True')
    found = hand_in(
        tmp_path,
        {"ann/x.png": b"", "bob.py": "\n", "cyd.py": STUB, "dan.py": documented, "eve.py": "x = 1"},
    )
    notes = {student: read(one)[1][-1:] for student, one in found.items()}
    assert notes == {
        "ann": ["nothing was handed in that can be read"],
        "bob": ["what was handed in holds no code"],
        "cyd": ["every exercise is as it was handed out"],
        "dan": ["every exercise is as it was handed out"],
        "eve": [],
    }


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("ann.py", "# gel\u00f6st".encode("cp1252"), "UTF-8"),
        ("ann.py", ANSWER.encode("utf-16"), "UTF-8"),
        ("ann.ipynb", notebook(ANSWER).encode("utf-16"), "UTF-8"),
        ("ann.ipynb", "<!DOCTYPE html>", "it is no notebook: Expecting value: line 1 column 1"),
        ("ann.ipynb", notebook(ANSWER)[:-20], "it is no notebook: "),
        ("ann.ipynb", "[1, 2]", "open it in Jupyter and save it again"),
        ("ann.ipynb", '{"nbformat": 3, "worksheets": []}', "open it in Jupyter and save it"),
        ("ann.ipynb", '{"cells": [{"cell_type": "code"}]}', "open it in Jupyter and save it"),
        ("ann.ipynb", '{"cells": [{"cell_type": "code", "source": [1]}]}', "open it in Jupyter"),
    ],
)
def test_what_cannot_be_read_is_named_with_what_to_do(name, content, says, tmp_path):
    found = hand_in(tmp_path, {name: content})
    (note,) = read(found["ann"])[1]
    assert note.startswith(f"{name} cannot be read: ")
    assert says in note


# ---- what is read --------------------------------------------------------------------------------


def test_pictures_in_a_notebook_are_no_code(tmp_path, monkeypatch):
    monkeypatch.setattr(submissions, "LARGEST", 10_000)
    picture = {"output_type": "display_data", "data": {"image/png": "A" * 50_000}}
    found = hand_in(tmp_path, {"ann.ipynb": notebook(ANSWER, outputs=[picture])})
    assert read(found["ann"]) == (["ann.ipynb cell 1"], [])


def test_a_text_that_is_no_python_is_named(tmp_path):
    found = hand_in(tmp_path, {"ann/answers.txt": "I did not\nget far.", "ann/a.py": ANSWER})
    labels, notes = read(found["ann"])
    assert labels == ["a.py"]
    assert notes[0].startswith("answers.txt cannot be read: answers.txt, line 1: ")


def test_what_no_student_wrote_is_passed_over(tmp_path):
    names = [
        "venv/lib/x.py",
        "__pycache__/a.py",
        ".git/b.py",
        "node_modules/c.py",
        "site-packages/d.py",
        "test_softmax.py",  # as it was handed out
    ]
    found = hand_in(tmp_path, {f"ann/{name}": ANSWER for name in names} | {"ann/own.py": ANSWER})
    assert read(found["ann"]) == (["own.py"], [])


def test_many_unread_files_are_one_note(tmp_path):
    found = hand_in(tmp_path, {f"ann/{i}.png": b"" for i in range(9)} | {"ann/a.py": ANSWER})
    (note,) = read(found["ann"])[1]
    assert note.startswith("not read: 0.png, 1.png, 2.png, 3.png, 4.png, ... (only ")


@pytest.mark.parametrize(
    "line",
    ["!pip install einops", "files = !ls", "%time", "torch.ones?", "?torch", "x, y = %who", "f??"],
)
@pytest.mark.parametrize("suffix", [".py", ".ipynb"])
def test_what_ipython_understands_costs_no_answer(tmp_path, line, suffix):
    source = f"{line}\n{ANSWER}\n{line}\n"
    content = notebook(source) if suffix == ".ipynb" else source
    found = hand_in(tmp_path, {f"ann{suffix}": content})
    assert answers(found["ann"])[0][0][0] == [True, True, False]


def test_a_function_can_read_its_own_text(tmp_path):
    """As torch.jit.script, doctest and readable tracebacks do."""
    source = ANSWER + "\nimport inspect\nTEXT = inspect.getsource(causal_mask)\n"
    found = hand_in(tmp_path, {"ann.py": source})
    space, errors = load_cells(code_of(found["ann"], NAMES)[0], ["TEXT"])
    assert errors == []
    assert space["TEXT"].startswith("def causal_mask(")


# ---- which answer counts -------------------------------------------------------------------------

OTHER = "def causal_mask(num_queries, num_keys):\n    return __import__('torch').tensor(7)\n"


@pytest.mark.parametrize(
    ("files", "counts", "why"),
    [
        ({"b.ipynb": ANSWER, "a.ipynb": STUB}, "b.ipynb", "the newest that answers it"),
        ({"a.py": STUB, "a (1).py": ANSWER}, "a (1).py", "the newest that answers it"),
        ({"z.py": OTHER, "a.py": ANSWER}, "a.py", "the newest that answers it"),
        ({"a.py": OTHER, "b.py": STUB, "c.py": ANSWER}, "c.py", "the newest that answers it"),
    ],
)
def test_the_newest_answer_counts_and_a_note_says_so(tmp_path, files, counts, why):
    written = {
        f"ann/{name}": notebook(text) if name.endswith("ipynb") else text
        for name, text in files.items()
    }
    one = hand_in(tmp_path, written)["ann"]
    (note,) = read(one)[1]
    assert note.startswith("causal_mask stands in ")
    assert note.endswith(f": {counts} counts, {why}")
    assert answers(one)[0][0][0] == [True, True, False]


def test_other_lines_of_a_file_keep_their_place_and_count(tmp_path):
    old = f"TABLE = {{}}\n{OTHER}\ndef softmax(x):\n    return len(TABLE)\n"
    one = hand_in(tmp_path, {"ann/old.py": old, "ann/new.py": ANSWER})["ann"]
    ((_, source),) = [cell for cell in code_of(one, NAMES)[0] if cell[0] == "old.py"]
    assert source.count("\n") == old.count("\n")
    assert source.index("def softmax") > 0
    assert "causal_mask" not in source


def test_two_untouched_stubs_are_no_answer(tmp_path):
    one = hand_in(tmp_path, {"ann/a.py": STUB, "ann/b.py": STUB})["ann"]
    notes = read(one)[1]
    assert notes[0].endswith("b.py counts, the newest")
    assert notes[1] == "every exercise is as it was handed out"


# ---- archives that mean harm ---------------------------------------------------------------------


def test_an_archive_is_read_and_never_written(tmp_path):
    link = zipfile.ZipInfo("link.py")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    made = tmp_path / "made.zip"
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("../../outside.py", ANSWER)
        archive.writestr("/etc/absolute.py", "x = 1")
        archive.writestr(link, "/etc/passwd")
        archive.writestr("deep/inner.zip", b"PK")
        archive.writestr("__MACOSX/._a.py", b"\0")
    before = sorted(tmp_path.rglob("*"))
    found = hand_in(tmp_path / "in", {"ann.zip": made.read_bytes()})
    labels, notes = read(found["ann"])
    assert labels == ["outside.py", "absolute.py"]
    assert notes == ["not read: inner.zip (only .py, .ipynb, .txt and .zip files are)"]
    made_now = {path.name for path in set(tmp_path.rglob("*")) - set(before)}
    assert made_now == {"in", "ann.zip"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"no archive", "it is no zip archive"),
        (b"PK\5\6" + bytes(8) + struct.pack("<I", 2**31) + bytes(6), "it holds too many files"),
        (b"PK\5\6" + bytes(8) + struct.pack("<II", 500, 7) + bytes(2), "ann.zip cannot be read: "),
    ],
)
def test_a_forged_archive_is_named(tmp_path, content, says):
    found = hand_in(tmp_path, {"ann.zip": content})
    labels, notes = read(found["ann"])
    assert labels == []
    assert says in notes[0]


def test_an_archive_may_hold_so_much_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(submissions, "LARGEST_FILE", 2**20)
    bomb = zipped(tmp_path, {"bomb.py": "#" * 2**22, "a.py": ANSWER})
    assert len(bomb) < 2**14
    labels, notes = read(hand_in(tmp_path / "in", {"ann.zip": bomb})["ann"])
    assert labels == ["a.py"]
    assert notes == ["bomb.py cannot be read: it has more than 1 MiB"]


def test_an_encrypted_member_is_named(tmp_path):
    data = bytearray(zipped(tmp_path, {"a.py": ANSWER}))
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(signature) + offset] |= 1
    _, notes = read(hand_in(tmp_path / "in", {"ann.zip": bytes(data)})["ann"])
    assert "a.py cannot be read" in notes[0]
    assert "encrypted" in notes[0]


def test_very_long_code_is_run_and_not_looked_through(tmp_path, monkeypatch):
    found = hand_in(tmp_path, {"ann/a.py": OTHER, "ann/b.py": ANSWER})
    assert read(found["ann"])[1] != []
    monkeypatch.setattr(submissions, "LONGEST", 10)
    submissions._functions.cache_clear()
    assert read(found["ann"]) == (["a.py", "b.py"], [])
    submissions._functions.cache_clear()
