"""Readers: what people have, and files that are broken or made to do harm, each named with what is wrong with it."""

import io
import json
import os
import struct
import zipfile
import zlib

import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

import metaprox as mp
from metaprox.data import from_json, register, to_json
from metaprox.data.preprocessing import Preprocessing
from metaprox.readers import Columns, Pictures, Texts, read_images, read_tables, read_texts
from metaprox.readers.pixels import decoded


def png(color=200, size=(6, 6), mode="L", kind="PNG"):
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, kind)
    return file.getvalue()


def bomb(width=30000, height=30000):
    """A PNG of a few bytes whose header promises a gigabyte."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.fixture
def folder(tmp_path):
    for name in ("Ä/cat", "Ä/dog", "B/eel"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "set" / name / f"{i}.png").write_bytes(png(50 * i))
    return tmp_path / "set"


def zipped(tmp_path, members):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def test_a_folder_and_its_archive_are_the_same(folder, tmp_path):
    files = sorted(path for path in folder.rglob("*.png"))
    members = [(f"outer/{path.relative_to(folder)}", path.read_bytes()) for path in files]
    there, packed = read_images(folder), read_images(zipped(tmp_path, [*members, ("outer/README.md", "x")]))
    assert there.names == packed.names == ("B/eel", "Ä/cat", "Ä/dog")
    assert list(there.groups) == list(packed.groups) == ["B"] * 3 + ["Ä"] * 6
    assert there.labels.tolist() == packed.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert not there.problems
    assert torch.equal(Pictures(6)(there.items), Pictures(6)(packed.items))


def test_pictures_of_every_kind_become_the_same_white(folder):
    kinds = {
        "grey.png": png(255),
        "wide.jpg": png((255, 255, 255), (40, 10), "RGB", "JPEG"),
        "clear.png": png((0, 0, 0, 0), mode="RGBA"),
        "deep.png": png(65535, mode="I;16"),
        "bit.PNG": png(1, mode="1"),
        "palette.gif": png(255, mode="L", kind="GIF"),
    }
    for name, data in kinds.items():
        (folder / name).write_bytes(data)
    for channels in (1, 3):
        found = Pictures(8, channels)([folder / name for name in kinds])
        assert found.shape == (len(kinds), channels, 8, 8)
        assert found.min() > 0.99
    half = png(32768, mode="I;16")
    (folder / "half.png").write_bytes(half)
    assert (Pictures(4)([folder / "half.png"]) - 0.5).abs().max() < 0.01
    assert Pictures(4, invert=True)([folder / "grey.png"]).max() == 0
    padded = Pictures(4, fit="pad")([Image.new("L", (40, 20), 0)])[0, 0]
    assert padded.tolist() == [[1] * 4, [0] * 4, [0] * 4, [1] * 4]


HARM = {
    "bomb.png": (bomb(), "could be decompression bomb"),
    "large.png": (bomb(8000, 8000), "8000 x 8000 pixels are more than"),
    "text.png": (b"no picture", "not a picture of the kinds"),
    "half.png": (png(size=(90, 90), color=7)[:60], "not a"),
    "empty.jpg": (b"", "not a picture of the kinds"),
    "note.heic": (b"x", "no picture, by its name"),
}


def test_broken_pictures_are_named_and_the_rest_is_used(folder):
    for name, (data, _) in HARM.items():
        (folder / "B" / "eel" / name).write_bytes(data)
    (folder / "stray.png").write_bytes(png())
    os.symlink(folder / "nowhere.png", folder / "B" / "eel" / "link.png")
    os.symlink("/etc", folder / "etc")
    found, pixels, _ = decoded(read_images(folder), Pictures(6))
    assert len(found) == len(pixels) == 9
    said = {problem.place.rpartition("/")[2]: problem.what for problem in found.problems}
    for name, (_, what) in HARM.items():
        assert what in said[name], said
    assert said["stray.png"] == "in no folder of a class"
    assert said["link.png"].startswith("can't be read: ")
    assert said["etc"] == "a link to a folder, which is not followed"
    assert "9 left out" in found.report()
    assert found.report().endswith("the other 9 are used")


def test_a_pipe_is_not_waited_for(folder):
    os.mkfifo(folder / "B" / "eel" / "pipe.png")
    found, _, _ = decoded(read_images(folder), Pictures(6))
    assert [problem.what for problem in found.problems] == ["not a file"]


def test_hostile_archives_write_nothing_and_are_named(tmp_path):
    link = zipfile.ZipInfo("cat/link.png")
    link.external_attr = 0o120777 << 16
    members = [
        ("../../evil.png", png()),
        ("/etc/evil.png", png()),
        ("cat/../../evil.png", png()),
        ("C:\\evil\\x.png", png()),
        (link, "/etc/passwd"),
        ("cat/huge.png", b"\0" * (65 * 2**20)),
        ("cat/a.png", png()),
        ("dog/b.png", png()),
        ("__MACOSX/cat/._a.png", b"x"),
    ]
    path = zipped(tmp_path, members)
    found, _, _ = decoded(read_images(path), Pictures(6))
    assert found.names == ("cat", "dog")
    said = [problem.what for problem in found.problems]
    assert said.count("its name leads out of the archive") == 4
    assert "a link, which is not followed" in said
    assert "unpacks to more than 64 MiB" in said
    assert sorted(one.name for one in tmp_path.iterdir()) == ["set.zip"]
    damaged = path.read_bytes()
    path.write_bytes(damaged[: len(damaged) // 2])
    with pytest.raises(mp.InputError, match=r"neither a folder nor a zip archive"):
        read_images(path)


def test_damaged_members_are_named(tmp_path):
    path = zipped(tmp_path, [("cat/a.png", png(3, (50, 50))), ("dog/b.png", png(9, (50, 50)))])
    data = bytearray(path.read_bytes())
    start = data.index(b"cat/a.png") + len("cat/a.png")
    data[start : start + 20] = b"\xff" * 20
    path.write_bytes(data)
    found, _, _ = decoded(read_images(path), Pictures(6))
    assert found.names == ("dog",)  # a class without a picture is none
    assert "can't be unpacked" in found.problems[0].what


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: read_images(p / "nowhere"), "nowhere is missing: give a folder, or a zip archive"),
        (lambda p: read_images(p), "has no pictures in it"),
        (lambda p: (p / "a.png").write_bytes(png()) and read_images(p), "has all its pictures in one folder"),
        (lambda p: Pictures(8)([p / "b.png"]), "b.png: can't be read: No such file"),
        (lambda p: Pictures(8)([5]), "5: neither a path nor a picture"),
        (lambda p: Pictures(8)([]), "there are no pictures"),
        (lambda p: Pictures(8, channels=2), "channels must be 1, for grey, or 3"),
    ],
)
def test_what_is_no_folder_of_pictures_is_refused(tmp_path, make, message):
    with pytest.raises(mp.InputError, match=message):
        make(tmp_path)


def test_texts_of_every_format_are_the_same(tmp_path):
    rows = [("Wo ist\nmeine Karte?", "Größe"), ("naïve, “quoted” 😀", "日本"), ("x", "Größe")]
    quoted = "".join(f'"{text}";{label}\r\n' for text, label in rows)
    (tmp_path / "a.csv").write_text("frage;thema\r\n" + quoted, encoding="utf-8-sig", newline="")
    (tmp_path / "a.tsv").write_text("frage\tthema\n" + "".join(f'"{a}"\t{b}\n' for a, b in rows), encoding="utf-8")
    lines = [json.dumps({"frage": text, "thema": label, "more": [1]}) for text, label in rows]
    (tmp_path / "a.jsonl").write_text("\ufeff" + "\n\n".join(lines), encoding="utf-8")
    (tmp_path / "a.json").write_text(f"[{','.join(lines)}]", encoding="utf-8")
    table = pyarrow.table({"frage": [text for text, _ in rows], "thema": [label for _, label in rows]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet"):
        found = read_texts(tmp_path / name, "frage", "thema")
        assert list(found.items) == [text for text, _ in rows], name
        assert [found.names[i] for i in found.labels] == [label for _, label in rows], name
        assert not found.problems
        assert read_texts(tmp_path / name, "frage", labels=False).labels is None
    (tmp_path / "lines.txt").write_text("one\n\ntwo\n")
    assert read_texts(tmp_path / "lines.txt", labels=False).items == ["one", "two"]


def test_bad_rows_are_named_by_line_and_the_rest_is_used(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,label\na,x\n"two\nlines",x\nb,\nc\nd,x,y\ne\0,x\n\xff,x\n  ,x\nf,y\n')
    found = read_texts(path)
    assert list(found.items) == ["a", "two\nlines", "f"]
    assert [str(problem).removeprefix(str(path)) for problem in found.problems] == [
        ", line 5: nothing in 'label'",
        ", line 6: 1 fields, where the header has 2",
        ", line 7: 3 fields, where the header has 2",
        ", line 8: a NUL byte",
        ", line 9: not in UTF-8",
        ", line 10: nothing in 'text'",
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a", "label": 3}\n{"text": \n[1]\n{"text": "b"}\n' + b"[" * 100_000 + b"\n")
    found = read_texts(path)
    assert (found.items, found.names) == (["a"], ("3",))
    assert [problem.place.rpartition(" ")[2] for problem in found.problems] == ["2", "3", "4", "5"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'text,label\na,x\n"b,x\nc,x\n', r"lines 3 to \d: a quote that is opened here is not closed"),
        (b'text,label\n"a"b,x\n', "line 2: a quote within the field"),
        (b"", "is empty: its first line must name its columns"),
        (b"text,label\n", "has no rows"),
        (b"text,label\n,\n", r"1 left out \(.*line 2: nothing in 'text', 'label'\); nothing else was found"),
        (b"text,text,label\n", "has several columns of the name 'text'"),
        (b"utterance,label\n", "has no column 'text'; its columns: 'utterance', 'label'"),
        ("text,label\na,x\n".encode("utf-16"), "is in UTF-16: save it in UTF-8"),
        (b"text,label\n" + b"a" * 200_000 + b",x\n", "line 2: a field of more than 131072 characters, or a quote"),
    ],
)
def test_files_that_can_not_be_read_are_refused(tmp_path, data, message):
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(mp.InputError, match=message):
        read_texts(tmp_path / "a.csv")


def test_space_around_labels_and_groups_is_no_part_of_them(tmp_path):
    (tmp_path / "a.csv").write_text("text,label,kind\n one ,cat,x\ntwo, cat,x \nthree,dog ,x\n")
    found = read_texts(tmp_path / "a.csv", group="kind")
    assert (found.names, found.items[0], set(found.groups)) == (("cat", "dog"), " one ", {"x"})
    (tmp_path / "b.csv").write_text("who,x,y\nann,1,ill\nann ,2, ill\n")
    assert set(read_tables(tmp_path / "b.csv", "y", by="who", names=()).groups) == {"ann"}
    assert read_tables(tmp_path / "b.csv", "y", by="who", names=()).names == ("ill",)


def test_half_a_character_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a \\ud800", "label": "x"}\n{"text": "b", "label": "y"}\n')
    found = read_texts(tmp_path / "a.jsonl")
    assert found.items == ["b"]
    assert "line 1: half of a surrogate pair" in found.report()


def test_two_files_are_not_one_group(tmp_path):
    (tmp_path / "ann.csv").write_text("x,y\n1,2\n")
    (tmp_path / "ann.jsonl").write_text('{"x": 1, "y": 2}\n')
    with pytest.raises(mp.InputError, match=r"ann.csv and .*ann.jsonl are both the group 'ann'"):
        read_tables(tmp_path, "y")


def test_an_archive_of_which_nothing_is_taken_says_why(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../cat/1.png", b"")
    with pytest.raises(mp.InputError, match="leads out of the archive"):
        read_images(tmp_path / "a.zip")


def test_a_damaged_parquet_file_and_others_are_refused(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(mp.InputError, match=r"a\.parquet can't be read as Parquet"):
        read_texts(tmp_path / "a.parquet")
    (tmp_path / "a.xlsx").write_bytes(b"")
    with pytest.raises(mp.InputError, match=r"a\.xlsx is no table by its name, which ends in \.csv"):
        read_texts(tmp_path / "a.xlsx")


def test_tables_by_file_and_by_column_are_the_same(tmp_path):
    rows = [("p2", 2, 1.5, 7), ("p1", 9, 2.5, 8), ("p1", 10, 3.5, 9)]
    (tmp_path / "one.csv").write_text("who,day,x,y\n" + "".join(f"{a},{b},{c},{d}\n" for a, b, c, d in rows[::-1]))
    folder = tmp_path / "many"
    folder.mkdir()
    for who in ("p1", "p2"):
        text = "".join(f"{b},{c},{d}\n" for a, b, c, d in rows if a == who)
        (folder / f"{who}.csv").write_text(f"day,x,y\n{text}")
    one = read_tables(tmp_path / "one.csv", "y", by="who", order="day")
    many = read_tables(folder, "y", order="day")
    for found in (one, many):
        assert found.columns == ("x",)
        assert found.items.tolist() == [[2.5], [3.5], [1.5]]  # by number, not by the letters of it
        assert found.labels.tolist() == [8, 9, 7]
        assert found.groups == ["p1", "p1", "p2"]


def test_tables_name_what_is_no_number(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x,y\n1,2\n,3\n1_0,4\ninf,5\n7,\n8,9\n")
    found = read_tables(path, "y")
    assert found.items.flatten().tolist() == [1, 8]
    assert [problem.place.rpartition(" ")[2] for problem in found.problems] == ["3", "4", "5", "6"]
    path.write_text("x,sex,y\n1,f,2\n2,m,3\n")
    with pytest.raises(mp.InputError, match=r"columns \('sex' lack some\): choose others .*, or name .*--by"):
        read_tables(path, "y")
    assert read_tables(path, "sex", names=()).names == ("f", "m")
    with pytest.raises(mp.InputError, match="has 'f' in 'sex', which is none of 'm'"):
        read_tables(path, "sex", names=["m"])


def test_columns_standardize_rows_however_they_come():
    columns = Columns(("a", "b"), (1.0, 2.0), (2.0, 4.0))
    expected = torch.tensor([[1.0, -0.5]])
    for rows in ([{"b": 0, "a": 3, "c": "x"}], [(3, 0)], torch.tensor([[3, 0]])):
        torch.testing.assert_close(columns(rows), expected)
    with pytest.raises(mp.InputError, match="row 0 has no column b"):
        columns([{"a": 1}])
    with pytest.raises(mp.InputError, match=r"row 0\[1\] must be a finite number"):
        columns([(1, float("nan"))])


@pytest.mark.parametrize("one", [Pictures(9, 3, True, "crop"), Texts(12), Columns(("é",), (0.1,), (3.0,))])
def test_preprocessings_come_back_from_json(one):
    assert from_json(json.loads(json.dumps(to_json(one)))) == one


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "os:system"}, "unknown preprocessing 'os:system'; known: columns, "),
        ({"name": "pictures", "sizes": 3}, "'pictures' has no setting sizes"),
        ({"name": "columns"}, "'columns' can't be made: .*missing"),
        ({"name": "pictures", "size": -1}, "size must be an integer >= 1"),
        ({"size": 3}, "kept as an object with a name"),
        ([], "kept as an object with a name"),
    ],
)
def test_other_json_is_refused(values, message):
    with pytest.raises(mp.InputError, match=message):
        from_json(values)


def test_a_name_is_taken_once():
    with pytest.raises(mp.InputError, match="there is a preprocessing 'texts' already"):
        register("texts")(Columns)

    class Odd(Preprocessing):
        def __call__(self, items):
            return items

    with pytest.raises(mp.InputError, match=r"Odd.*can't be kept: put @metaprox.data.preprocessing.register"):
        to_json(Odd())
