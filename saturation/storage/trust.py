"""What one place may lead to: a manifest or a redirect from elsewhere is not believed everything.

Whoever serves a manifest, or answers with a redirect, must not make this machine read its own
files, nor ask what only it can reach: addresses of the loopback interface and of the local link,
where cloud machines keep their credentials.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import urllib.parse

from saturation.errors import CheckpointFormatError

REMOTE_SCHEMES = ("https", "gs", "gcs", "s3", "hf")
_SCHEME = re.compile(r"([A-Za-z][\w+.:-]*)://")


def shown_url(url: str) -> str:
    """Return a URL as it may be printed and stored: without user, password and query.

    >>> shown_url("https://me:secret@host/a?key=1")
    'https://host/a'
    """
    found = _SCHEME.match(url)
    if not found:
        return url
    rest = url[found.end() :]
    host, slash, path = rest.partition("/")
    whole = f"{found[0]}{host.rpartition('@')[2]}{slash}{path}"
    return re.split(r"\?(?=[^/]*=)", whole, maxsplit=1)[0]


def refuse_lead(source: str, target: str) -> None:
    """Raise `CheckpointFormatError` where what lies at `source` may not lead to `target`.

    Args:
      source: the URL of a manifest, or of what answered with a redirect.
      target: the URL it names. One of http is let through where the source is of http too.
    """
    try:
        scheme = urllib.parse.urlsplit(target).scheme.lower()
    except ValueError as error:
        raise CheckpointFormatError(
            f"{shown_url(source)} leads to {shown_url(target)}, which is no URL: {error}."
        ) from error
    origin = urllib.parse.urlsplit(source).scheme.lower()
    if scheme not in REMOTE_SCHEMES and not (scheme == origin == "http"):
        raise CheckpointFormatError(
            f"{shown_url(source)} leads to {shown_url(target)}: what comes from elsewhere may name "
            f"{', '.join(f'{one}://' for one in REMOTE_SCHEMES if one != 'gcs')} alone."
        )
    if scheme in ("http", "https") and is_inner(target) and not is_inner(source):
        raise CheckpointFormatError(
            f"{shown_url(source)} leads to {shown_url(target)}, an address of this machine or of "
            "its local link, which what comes from elsewhere may not name."
        )


def is_inner(url: str) -> bool:
    """Say whether a URL's host is this machine or on its local link, by any of its addresses."""
    try:
        host = urllib.parse.urlsplit(url).hostname or ""
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, ValueError, UnicodeError):
        # What has no address cannot be asked either.
        return False
    return any(_is_inner(str(entry[4][0])) for entry in found)


def _is_inner(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_link_local or address.is_unspecified
