"""Files as they were downloaded: what is in the place of a file is told by its first bytes, and JSON is read."""

import json
from pathlib import Path
from typing import Any

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype html", b"<html", b"<?xml")


def check_downloaded(path: Path) -> None:
    """ValueError, in one line, for what is there when a download went wrong: nothing, a pointer, or a web page."""
    with open(path, "rb") as file:
        begin = file.read(200)
    if not begin:
        raise ValueError(f"{path} is empty: download it again")
    if begin.startswith(_LFS_POINTER):
        raise ValueError(
            f"{path} is a pointer of git-lfs in the place of the file: run `git lfs pull` where it is from"
        )
    if begin.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGES):
        raise ValueError(f"{path} is a web page in the place of the file: download the file that the page offers")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. ValueError, naming the file, for anything else."""
    check_downloaded(path)
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as fault:
        raise ValueError(f"{path} is no JSON: {fault}; download it again") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path} holds no JSON object: download it again")
    return fields
