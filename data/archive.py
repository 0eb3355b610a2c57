"""Tar files, read forwards with clear errors and bounded memory, whatever is in them.

tarfile believes its input: a header that claims terabytes is read, a missing end is an end, a block of zeros hides what
comes behind it, links and devices are members. Here sizes have limits, only files are taken, and an archive is whole
only when its end mark is there with nothing behind it.
"""

import re
import tarfile
from collections.abc import Iterator
from typing import IO, NamedTuple

MAX_SAMPLE = 1 << 30  # bytes of all members of a sample
MAX_TEXT = 1 << 24  # bytes of a member that is text
MAX_MEMBERS = 4096  # of a sample
MAX_GLOBALS = 256  # attributes for all members
MAX_HEADER = 1 << 17  # bytes of a long name or of extended attributes
_PIECE = 1 << 20  # bytes that are passed over at once
TEXTS = ("json", "txt", "text", "caption")
_MEMBER = re.compile(r"(?P<key>(?:.*/)?[^/.]+)\.(?P<extension>[^/]+)", re.DOTALL)
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME)
_EXTENDED += (tarfile.GNUTYPE_LONGLINK,)
_KINDS = {
    tarfile.LNKTYPE: "a link",
    tarfile.SYMTYPE: "a link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}
# what tarfile raises on hostile headers beside its own errors; MemoryError is none of them
_FAULTS = (tarfile.TarError, EOFError, ValueError, ArithmeticError, LookupError, RecursionError, TypeError)


class ShardError(ValueError):
    """A shard that cannot be read, or a faulty sample in it; the message names both."""


class CutShardError(ShardError):
    """A shard that ends before its end, or whose structure is damaged: what comes behind is lost.

    reason: in few words, to be counted. detail: where.
    """

    def __init__(self, name: str, reason: str, detail: str) -> None:
        super().__init__(f"{name} is {reason} {detail}")
        self.reason, self.detail = f"shard is {reason}", detail


class Found(NamedTuple):
    """A sample as it is in an archive: its members by extension, or in few words why it cannot be used."""

    key: str
    members: dict[str, bytes]
    fault: str = ""


class _StrictHeader(tarfile.TarInfo):
    """tarfile takes a header that is missing, cut or damaged for the end of the archive; here only the end mark is."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_StrictHeader":
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise
            raise tarfile.ReadError("no end mark" if not buf else str(error)) from None
        if header.size < 0 or (header.type in _EXTENDED and header.size > MAX_HEADER):
            raise tarfile.ReadError(f"a header claims {header.size:,} bytes")
        return header

    def _proc_sparse(self, tarfile: object) -> "_StrictHeader":  # both would read a list as long as it says it is
        raise _sparse_error()

    def _proc_gnusparse_10(self, *arguments: object) -> None:
        raise _sparse_error()


def _sparse_error() -> tarfile.ReadError:
    return tarfile.ReadError("a file with holes")


def open_archive(stream: IO[bytes]) -> tarfile.TarFile:
    """A tar, compressed or not, that is read forwards; tarfile.ReadError when its beginning is damaged."""
    try:
        return tarfile.open(fileobj=stream, mode="r|*", tarinfo=_StrictHeader)
    except _FAULTS as error:
        raise tarfile.ReadError(str(error)) from None


def archive_samples(stream: IO[bytes], name: str) -> Iterator[Found]:
    """The samples of a tar, in order; CutShardError, which names the tar, behind the last one when it is not whole.

    Neighbouring members with the same name up to the first dot of its last part are one sample. Folders and names that
    webdataset reserves (`__…__`) are passed over; all else that is no file makes its sample a faulty one.
    """
    key, members, fault = "", {}, ""
    try:
        archive = open_archive(stream)
    except tarfile.TarError as error:
        raise CutShardError(name, *_told(error, "no tar file or damaged", "at its beginning")) from None
    with archive:
        inside = False  # a member that is read
        try:
            while (member := _next(archive)) is not None:
                path = member.name.removeprefix("./")
                found = _MEMBER.fullmatch(path)
                if member.isdir() or path.startswith("__"):
                    continue
                if found is None:
                    if kind := _kind(member):
                        yield Found(path, {}, f"member is {kind}")
                    continue
                if found["key"] != key:
                    if members or fault:
                        yield Found(key, members, fault)
                    key, members, fault = found["key"], {}, ""
                extension = found["extension"].lower()
                fault = fault or _refused(member, extension, members)
                if fault:
                    members = {}
                    continue
                inside = True
                members[extension] = _contents(archive, member)
                inside = False
            _check_end(archive)
        except _FAULTS as error:
            if not inside and (members or fault):  # what was read may be all there is of this sample
                yield Found(key, members, fault)
            raise CutShardError(name, *_told(error, "damaged", f"after sample {key!r}")) from None
    if members or fault:
        yield Found(key, members, fault)


def _next(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next header, after the contents of the last one have been passed over; None at the end mark."""
    assert archive.fileobj is not None
    if archive.firstmember is None:  # pyright: ignore[reportAttributeAccessIssue]
        # piece by piece: tarfile would go on asking for all that a header claims, also when there is nothing any more
        left = archive.offset - archive.fileobj.tell()
        while left > 0:
            passed = len(archive.fileobj.read(min(left, _PIECE)))
            if not passed:
                raise tarfile.ReadError("unexpected end of data")
            left -= passed
    member = archive.next()
    archive.members = []  # else every header is kept  # pyright: ignore[reportAttributeAccessIssue]
    if len(archive.pax_headers) > MAX_GLOBALS or (member is not None and member.size < 0):
        raise tarfile.ReadError("impossible header")
    return member


def _kind(member: tarfile.TarInfo) -> str:
    """What a member is that is no file; empty for a file."""
    if member.issparse():
        return "a file with holes"  # which a few bytes can make as large as they like
    return "" if member.isreg() else _KINDS.get(member.type, "no file")


def _refused(member: tarfile.TarInfo, extension: str, members: dict[str, bytes]) -> str:
    """Why a member is not read, in few words; empty when it is."""
    if kind := _kind(member):
        return f"member is {kind}"
    if extension in members:
        return "two members have the same name"
    if extension in TEXTS and member.size > MAX_TEXT:
        return f"a .{extension} member has more than {MAX_TEXT:,} bytes"
    if member.size + sum(map(len, members.values())) > MAX_SAMPLE:
        return f"sample has more than {MAX_SAMPLE:,} bytes"
    return f"sample has more than {MAX_MEMBERS:,} members" if len(members) >= MAX_MEMBERS else ""


def _contents(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    assert archive.fileobj is not None
    data = archive.fileobj.read(member.size)  # it stands there; extractfile() would do the same in four times the time
    if len(data) != member.size:
        raise tarfile.ReadError("unexpected end of data")
    return data


def _check_end(archive: tarfile.TarFile) -> None:
    """tarfile.ReadError when something comes behind the end mark, which a block of zeros in the middle resembles."""
    assert archive.fileobj is not None
    while rest := archive.fileobj.read(_PIECE):
        if any(rest):
            raise tarfile.ReadError("there is something behind an end mark")


def _told(error: Exception, otherwise: str, where: str) -> tuple[str, str]:
    """(what happened, where and why) of an error of tarfile."""
    cut = ("no end mark", "unexpected end of data", "truncated header", "empty file")
    said = " ".join(str(error).split()) or type(error).__name__
    return "cut short" if said in cut or isinstance(error, EOFError) else otherwise, f"{where}: {said}"
