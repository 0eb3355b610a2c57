"""How messages name an address, without the secrets that it may carry, and the error of one that cannot be read."""

import re

WEB = ("http", "https")
# who is let in, at the start of what follows http://, also with a password in which / is not written as %2F
_WEB_USER = re.compile(r"[^/?#]*@|[^/?#:@\[]*:(?!\d*(?:[/?#]|$)).*@", re.DOTALL)
_USER = re.compile(r"[^/:@]*:[^/]*@")
_SHARD = re.compile(r"[\w.-]+\.(?:tar|tgz)\b[\w.]*")


class AddressError(OSError):
    """An address that cannot be read, in one line that names it."""


def shown(address: str) -> str:
    """An address as messages name it: without the signature or password that it may carry.

    Of a command it is the program, and the names of shards, by which one tells it from others.
    """
    if address.startswith("pipe:"):
        program, _, rest = address.removeprefix("pipe:").strip().partition(" ")
        words = [program if re.fullmatch(r"[\w./-]+", program) else "", *_SHARD.findall(rest)]
        return f"pipe:{' … '.join(words)}{'' if len(words) > 1 or not rest else ' …'}"
    return "::".join(map(_without_secrets, re.split(r"::(?=\w[\w+.-]*://)", address)))  # as fsspec chains them


def _without_secrets(address: str) -> str:
    scheme, mark, rest = address.partition("://")
    web = scheme.lower() in WEB
    user = (_WEB_USER if web else _USER).match(rest) if mark else None
    rest = rest[user.end() :] if user else rest
    return scheme + mark + (re.split("[?#]", rest)[0] if web else rest)
