"""E-mail and IP addresses that belong to somebody.

Not those reserved for documentation (RFC 2606, 5737, 3849, 9637), private, loopback and multicast ones, networks with
a prefix length, version and section numbers, and what only has an `@` in it: names of files, units and remote paths.
"""

import ipaddress
import re

from lifecycle.data.personal.pii_rule import Found, Rule, Sign, Where, before, whole

# A letter of a word in Latin script: ASCII, or two bytes of UTF-8 from À on.
_LOCAL = rb"(?:[\w.+%-]|[\xc3-\xc9][\x80-\xbf])"
_LABEL = rb"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_EMAIL = re.compile(
    rb"(?<![\w.+%@-])(?<![\xc3-\xc9][\x80-\xbf])(?:[A-Za-z0-9]|[\xc3-\xc9][\x80-\xbf])"
    + _LOCAL + rb"{0,63}@(?:" + _LABEL + rb"\.)+[A-Za-z]{2,24}(?!\w)"
)  # fmt: skip
_SPELT_AT = (
    rb" ?[\[({] ?at ?[\])}] ?" + _LABEL + rb"(?: ?(?:\.|[\[({] ?dot ?[\])}]) ?" + _LABEL
    + rb"){0,4} ?(?:\.|[\[({] ?dot ?[\])}]) ?[A-Za-z]{2,24}(?!\w)"
)  # fmt: skip
_SPELT = re.compile(rb"(?<![\w.+%@-])[A-Za-z0-9][\w.+%-]{0,63}" + _SPELT_AT, re.IGNORECASE)
# A second host behind an address: what masking the address would leave is another.
_MORE = re.compile(rb"@(?:" + _LABEL + rb"\.)+[A-Za-z]{2,24}(?!\w)|" + _SPELT_AT, re.IGNORECASE)
RESERVED = re.compile(r"[@.](?:example(?:\.[a-z]+){0,2}|test|invalid|localhost|local|localdomain|lan|internal)$")
_FILE = re.compile(  # endings of files and of systemd's units, none of them a top-level domain
    r"\.(?:png|jpe?g|gif|svg|webp|ico|bmp|css|scss|less|js|mjs|jsx|ts|tsx|json|x?html?|xml|txt|pdf|exe|dll|jar|whl|gz|"
    r"tgz|bz2|xz|zst|deb|rpm|log|cfg|conf|ini|yaml|yml|toml|lock|map|woff2?|ttf|mp[34]|wav|csv|service|socket|target|"
    r"timer|mount|device|slice|scope|path|swap)$"
)
_REMOTE_PATH = re.compile(rb":[\w/~]|\(")  # git@host.org:owner/name, and a product of matrices in Python

_IPV4 = re.compile(rb"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\w|/\d{1,2}(?![\w/.]))")
_IPV6 = re.compile(  # whole, or short and of the addresses that are given out
    rb"(?<![\w:.])(?:[23][0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{0,4}){2,7}|[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{1,4}){7})"
    rb"(?![\w:]|/\d{1,3}(?![\w/.]))"
)
_VERSION = re.compile(
    rb"(?:\bv|\bver|version|release|revision|build|firmware|driver|section|chapter|clause|[=~<>!]=)[\s:=\"'()]*$",
    re.IGNORECASE,
)
_DOCUMENTED = ipaddress.IPv6Network("3fff::/20")  # RFC 9637


def _email(match: re.Match[bytes], where: Where) -> Found | None:
    return _with_more(match) if _is_somebodys(match) else None


def _is_somebodys(match: re.Match[bytes]) -> bool:
    """Whether an address, or the second host of one, is no reserved one, no file's name and no remote path."""
    value = _plain(match)
    is_other = value.startswith("git@") or RESERVED.search(value) or _FILE.search(value)
    return not is_other and (b"@" not in match[0] or not _REMOTE_PATH.match(match.string, match.end()))


def _plain(match: re.Match[bytes]) -> str:
    """An address as it is when nothing is spelt out."""
    value = match[0].decode("utf-8", "replace").lower()
    if b"@" in match[0]:
        return value
    value = re.sub(r" ?[\[({] ?at ?[\])}] ?", "@", value)
    return re.sub(r" ?(?:\.|[\[({] ?dot ?[\])}]) ?", ".", value)


def _with_more(match: re.Match[bytes]) -> Found:
    """An address with the hosts that follow it."""
    end = match.end()
    while (more := _MORE.match(match.string, end)) is not None and _is_somebodys(more):
        end = more.end()
    return Found(match.start(), end, _plain(match))


def _ipv4(match: re.Match[bytes], where: Where) -> Found | None:
    parts = match[0].decode().split(".")
    if sum(len(part) == 1 for part in parts) >= 3:  # 1 in 5,000 addresses, nearly all version numbers
        return None
    if any(int(part) > 255 or (len(part) > 1 and part[0] == "0") for part in parts):
        return None
    address = ipaddress.IPv4Address(".".join(parts))
    if not address.is_global or address.is_multicast or _VERSION.search(before(match, 24)):
        return None
    return whole(match)


def _ipv6(match: re.Match[bytes], where: Where) -> Found | None:
    try:
        address = ipaddress.IPv6Address(match[0].decode())
    except ValueError:
        return None
    if not address.is_global or address in _DOCUMENTED:
        return None
    # At least three groups: `2000::3` is also a slice in source code. Not all short: those are a network card's name.
    groups = match[0].split(b":")
    is_address = sum(map(bool, groups)) >= 3 and sum(len(group) >= 3 for group in groups) >= len(groups) // 2
    return whole(match, address.compressed) if is_address else None


ADDRESSES = (
    Rule("email", "email", Sign.AT, _EMAIL, _email),
    Rule("email", "email_spelt", Sign.SPELT_AT, _SPELT, _email),
    Rule("ip", "ipv4", Sign.DIGITS, _IPV4, _ipv4, least_digits=6, needs=b"."),
    Rule("ip", "ipv6", Sign.IPV6, _IPV6, _ipv6),
)
