"""A folder of pictures: where captions come from, what is skipped, and when that is too much."""

import pytest
from made_pictures import fill_folder, picture

from omnigram.data.sources.folder import FolderSource


def captions(source):
    return {document.key: document.segments[0].text for document in source}


def test_text_files_beside_the_pictures(tmp_path):
    fill_folder(tmp_path, 2)
    (tmp_path / "000.txt").write_bytes("\ufeff  Ünïcode, 赤リンゴ \n".encode())
    source = FolderSource(tmp_path, license="CC0")
    assert captions(source) == {"000": "Ünïcode, 赤リンゴ", "001": "picture number 1"}
    document = next(iter(source))
    assert document.license == "CC0"
    assert document.segments[1].data == (tmp_path / "000.png").read_bytes()
    assert len(source) == 2


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("captions.csv", 'file,caption\n000.png,"one, two"\n001.png,three\n'),
        ("captions.tsv", "image\ttext\n000.png\tone, two\n001.png\tthree\n"),
        (
            "metadata.jsonl",
            '{"file_name": "000.png", "text": "one, two"}\n\n{"file_name": "001.png", "text": "three"}\n',
        ),
        ("metadata.csv", '\ufefffile_name,text\r\n./000.png,"one, two"\r\n001.png,three\r\n'),
    ],
)
def test_a_table_of_captions_comes_first(tmp_path, name, table):
    fill_folder(tmp_path, 2)
    (tmp_path / name).write_text(table, encoding="utf-8")
    assert captions(FolderSource(tmp_path)) == {"000": "one, two", "001": "three"}


def test_a_table_from_elsewhere(tmp_path):
    fill_folder(tmp_path / "pictures", 1)
    (tmp_path / "all.csv").write_text("file,caption\npictures/000.png,from the table\n")
    assert captions(FolderSource(tmp_path / "pictures", tmp_path / "all.csv")) == {"000": "from the table"}


def test_file_names_are_the_last_resort_and_it_is_said(tmp_path):
    (tmp_path / "red-apple_2.PNG").write_bytes(picture())
    source = FolderSource(tmp_path)
    assert captions(source) == {"red-apple_2": "red apple 2"}
    assert "file names serve as captions" in source.notes[0]


def test_keys_are_unique_and_the_order_fixed(tmp_path):
    for name in ("b/a.b.png", "b/a.b.jpg", "b/a_b.png", "c.png", "b/a_b_png.png", ".hidden.png", ".git/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture(kind="JPEG" if name.endswith("jpg") else "PNG"))
    documents = list(FolderSource(tmp_path))
    keys = [document.key for document in documents]
    assert len(set(keys)) == 5
    assert keys == [document.key for document in FolderSource(tmp_path)]
    assert documents[0].fields == {"family": "b"}
    assert documents[-1].fields == {}


def break_one(folder, how):
    """Break the first of the pictures; the reason it should be skipped for."""
    image, text = folder / "000.png", folder / "000.txt"
    if how == "truncated":
        image.write_bytes(image.read_bytes()[:60])
        return "cannot be decoded"
    if how == "one pixel":
        image.write_bytes(picture(size=(1, 1)))
        return "side of fewer than 8 pixels"
    if how == "no caption":
        text.unlink()
        return "no caption"
    contents = {
        "empty": (b" \n", "empty caption"),
        "huge": (b"a" * 100_000, "caption longer than 4096 characters"),
        "latin-1": ("Äpfel".encode("latin-1"), "caption is not UTF-8"),
    }
    text.write_bytes(contents[how][0])
    return contents[how][1]


@pytest.mark.parametrize("how", ["truncated", "one pixel", "no caption", "empty", "huge", "latin-1"])
def test_what_is_broken_is_skipped_and_counted(tmp_path, how):
    reason = break_one(fill_folder(tmp_path, 4), how)
    source = FolderSource(tmp_path, max_skipped=0.25)
    assert list(captions(source)) == ["001", "002", "003"]
    skipped = source.skipped.to_json()
    assert skipped["count"] == 1
    assert reason in next(iter(skipped["by_reason"]))
    assert skipped["first"][0]["key"] == "000"
    with pytest.raises(ValueError, match=rf"1 of 4 samples cannot be used.*max_skipped=0\.24.*000: .*{reason}"):
        list(FolderSource(tmp_path, max_skipped=0.24))


def test_too_much_that_is_broken_stops_early(tmp_path):
    fill_folder(tmp_path, 30)
    for text in list(tmp_path.glob("*.txt"))[:-1]:
        text.unlink()
    source = FolderSource(tmp_path, max_skipped=0.1)
    with pytest.raises(ValueError, match="4 of 30"):
        list(source)
    assert source.skipped.seen <= 5


def test_only_the_first_twenty_are_listed(tmp_path):
    fill_folder(tmp_path, 25)
    for text in list(tmp_path.glob("*.txt"))[:-1]:
        text.unlink()
    source = FolderSource(tmp_path, max_skipped=1.0)
    list(source)
    assert source.skipped.count == 24
    assert len(source.skipped.first) == 20


def test_documents_that_are_done_are_not_made_again(tmp_path):
    fill_folder(tmp_path, 3)
    assert [d.key for d in FolderSource(tmp_path).documents(done={"000", "002"})] == ["001"]


def test_the_fingerprint_follows_captions_and_pictures(tmp_path):
    fill_folder(tmp_path, 2)
    before = FolderSource(tmp_path).fingerprint()
    assert FolderSource(tmp_path).fingerprint() == before
    (tmp_path / "001.txt").write_text("picture, number 1.")
    assert FolderSource(tmp_path).fingerprint() != before


def test_no_more_pixels_than_the_next_step_takes(tmp_path):
    fill_folder(tmp_path, 1)
    with pytest.raises(ValueError, match=r"data\.source\.max_pixels=80000000 must be 1 to 50000000"):
        FolderSource(tmp_path, max_pixels=80_000_000)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.source\.path=.*nowhere is no folder"):
        FolderSource(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no pictures"):
        FolderSource(tmp_path)
    fill_folder(tmp_path, 1)
    with pytest.raises(FileNotFoundError, match=r"data\.source\.captions=x\.csv is no file"):
        FolderSource(tmp_path, "x.csv")
    with pytest.raises(ValueError, match="max_skipped=2"):
        FolderSource(tmp_path, max_skipped=2)
    table = tmp_path / "captions.csv"
    table.write_text("name,words\n000.png,x\n")
    with pytest.raises(ValueError, match=r"has the columns \['name', 'words'\]"):
        FolderSource(tmp_path)
    table.write_bytes(b"file,caption\n000.png,\xff\n")
    with pytest.raises(ValueError, match=r"captions\.csv cannot be read"):
        FolderSource(tmp_path)
    table.unlink()
    for line in ("[1]", "{broken"):
        (tmp_path / "captions.jsonl").write_text(f'{{"file": "000.png", "caption": "x"}}\n{line}\n')
        with pytest.raises(ValueError, match=r"captions\.jsonl cannot be read: line 2 is no JSON object"):
            FolderSource(tmp_path)


@pytest.mark.parametrize("name", ["captions.csv", "captions.jsonl"])
def test_a_line_separator_within_a_caption_ends_no_row(tmp_path, name):
    fill_folder(tmp_path, 2)
    caption = "one\u2028line"
    rows = {
        "captions.csv": f"file,caption\n000.png,{caption}\n001.png,b\n",
        "captions.jsonl": f'{{"file": "000.png", "caption": "{caption}"}}\n{{"file": "001.png", "caption": "b"}}\n',
    }
    (tmp_path / name).write_text(rows[name], encoding="utf-8")
    assert list(captions(FolderSource(tmp_path)).values()) == [caption, "b"]
