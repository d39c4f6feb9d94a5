"""Keys and tokens in prose and code: those of providers by their published forms, blocks of private keys, JSON web
tokens, passwords in addresses, and what is assigned to a name such as `api_key` and looks random.

The forms follow the providers' documentation and the rules of gitleaks and detect-secrets; the entropy that a random
value must have is gitleaks' 3.5 bits a character. What documentation puts in the place of a key is none: words such as
`example`, variables and templates, one character over and over.
"""

import math
import re
from collections import Counter
from functools import lru_cache

from lifecycle.data.personal.addresses import RESERVED
from lifecycle.data.personal.pii_rule import Found, Rule, Sign, Where, whole

MIN_ENTROPY = 3.5  # bits a character of a key
MIN_PASSWORD_ENTROPY = 2.5
_START, _END = rb"(?<![A-Za-z0-9_])", rb"(?![A-Za-z0-9_])"
_PROVIDERS = {
    "aws_access_key": rb"(?:A3T[A-Z0-9]|AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}",
    "github": rb"gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{82}",
    "gitlab": rb"gl(?:pat|dt|rt|ptt|cbt|soat|ft|imt|agent|oas|sbt)-[\w-]{20,255}|GR1348941[\w-]{20}",
    "slack": rb"xox[abeoprs]-(?:\d+-)*[A-Za-z0-9-]{10,250}|xapp-\d-[A-Z0-9]+-\d+-[a-z0-9]+",
    "slack_webhook": rb"hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9+/]{40,60}",
    "google": rb"AIza[\w-]{35}|GOCSPX-[\w-]{28}|ya29\.[\w-]{20,1000}",
    "anthropic": rb"sk-ant-(?:api|admin|sid|oat)\d\d-[\w-]{80,120}",
    "openai": rb"sk-(?:proj|svcacct|admin|None)-[\w-]{20,200}|sk-[A-Za-z0-9]{48}",
    "stripe": rb"(?:sk|rk|pk)_(?:live|test|prod)_[A-Za-z0-9]{10,99}|whsec_[A-Za-z0-9+/=]{32,60}",
    "npm": rb"npm_[A-Za-z0-9]{36}",
    "pypi": rb"pypi-AgE[\w-]{50,1000}",
    "hugging_face": rb"hf_[A-Za-z0-9]{34}|api_org_[A-Za-z0-9]{34}",
    "sendgrid": rb"SG\.[\w-]{20,24}\.[\w-]{39,50}",
    "mailgun": rb"key-[0-9a-f]{32}",
    "mailchimp": rb"[0-9a-f]{32}-us\d{1,2}",
    "twilio": rb"(?:SK|AC)[0-9a-f]{32}",
    "telegram": rb"\d{8,10}:AA[\w-]{32,33}",
    "discord": rb"[MNO][A-Za-z\d_-]{23,27}\.[\w-]{6}\.[\w-]{27,40}",
    "digitalocean": rb"do[opr]_v1_[a-f0-9]{64}",
    "shopify": rb"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}",
    "databricks": rb"dapi[a-f0-9]{32}",
    "square": rb"sq0(?:atp|csp)-[\w-]{22,43}|EAAA[\w-]{60}",
    "hashicorp": rb"hvs\.[\w-]{24,120}|[A-Za-z0-9]{14}\.atlasv1\.[\w=-]{60,70}",
    "docker": rb"dckr_pat_[\w-]{27,40}",
    "linear": rb"lin_api_[A-Za-z0-9]{40}",
    "grafana": rb"gl(?:c|sa)_[A-Za-z0-9+/_=]{32,400}",
    "new_relic": rb"NRAK-[A-Z0-9]{27}",
    "azure_storage": rb"(?<=AccountKey=)[A-Za-z0-9+/]{86}==",
    "age": rb"AGE-SECRET-KEY-1[QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L]{58}",
}
_PROVIDER = re.compile(
    _START
    + rb"(?:"
    + b"|".join(b"(?P<%s>%s)" % (name.encode(), form) for name, form in _PROVIDERS.items())
    + rb")"
    + _END
)
# From the point behind its header on: a row of headers without this is read once, not from the beginning of each.
_WEB_TOKEN = re.compile(rb"\.eyJ[\w-]{10,4000}+\.[\w-]{10,1000}" + _END)
_HEADER = re.compile(_START + rb"eyJ[\w-]{10,4000}")
_MOST_HEADER = 4003  # bytes
_TOKEN_BYTES = bytes(byte for byte in range(128) if chr(byte).isalnum() or byte in b"_-")
_LONG_WORD = re.compile(rb"[\w-]{16,}")
_NAME = re.compile(r"(?:[A-Za-z]*\d{0,4}[_.-])+[A-Za-z]*\d{0,4}")  # words with numbers behind them, joined
_SECRET = (
    rb"(?:passw(?:or)?d|passwd|passphrase|pwd|secret|token|(?:api|access|private|auth|encryption|signing|client|account)"
    rb"[_ -]?key|credentials?|creds)"
)
_ASSIGNED = re.compile(
    rb"(?P<name>" + _SECRET + rb")[\w.-]{0,20}[\"'`\])]{0,2}[ \t]{0,4}(?::=|=>|[:=])[ \t]{0,4}"
    rb"(?:(?P<quote>[\"'`])(?P<quoted>[^\s\"'`]{8,200})(?P=quote)|(?P<bare>[^\s\"'`,;()<>{}\[\]]{8,200}))",
    re.IGNORECASE,
)
_AUTHORISED = re.compile(
    rb"authorization[\"']?[ \t]{0,4}[:=][ \t]{0,4}[\"']?(?:bearer|basic|token) (?P<value>[\w.~+/=-]{16,240})",
    re.IGNORECASE,
)
_KEY_BLOCK = re.compile(
    rb"-----BEGIN (?P<kind>(?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?)-----(?:(?:[^-]|-(?!----)){1,16000}"
    rb"-----END (?P=kind)-----"
    rb"|(?:(?:\s|\\n){0,4}[A-Za-z0-9+/=]{16,100}){1,150})"
)
_IN_ADDRESS = re.compile(
    rb"[A-Za-z][A-Za-z0-9+.-]{1,20}://(?P<user>[\w.%+-]{0,60}):(?P<value>[^\s/@\"'<>()\[\]{},;`|\\]{3,100})@(?P<host>[\w.-]{1,255})"
)
# What stands where a key would be, in documentation, templates and code.
_PLACEHOLDER = re.compile(
    r"example|placeholder|change[-_]?me|your[-_]?|my[-_]|dummy|sample|redacted|insert|replace|foobar|xxxx|\*\*\*|\.\.\.|"
    r"[<>{}()\[\]$]|%s|^[%&@/.#]|://|process\.env|environ|0123456789|12345678|abcdefgh",
    re.IGNORECASE,
)
_HEX = re.compile(r"[0-9a-f]+|[0-9A-F]+")


def entropy(value: str) -> float:
    """Shannon's entropy of a value's characters, in bits a character."""
    counts = Counter(value).values()
    return -sum(count / len(value) * math.log2(count / len(value)) for count in counts)


# Values in a row, as in `pwd:pwd:pwd:`, are one another's ends, and mostly the same ones.
@lru_cache(1024)
def _is_random(value: str) -> bool:
    """Whether a value looks drawn, not named: its characters are, and its digits are no name's last."""
    if len(value) < 16 or _PLACEHOLDER.search(value) or _NAME.fullmatch(value):
        return False
    digits, letters = sum(map(str.isdigit, value)), sum(map(str.isalpha, value))
    if not digits or not letters:
        return False
    if _HEX.fullmatch(value):
        return len(value) >= 20 and entropy(value) >= 3
    has_cases = value != value.lower() and value != value.upper()
    return entropy(value) >= MIN_ENTROPY and (digits >= 4 or (has_cases and (digits >= 2 or len(value) >= 32)))


@lru_cache(1024)
def _is_password(value: str) -> bool:
    """Whether a value has letters and digits, no placeholder's word, and is no number with a unit."""
    has_both = any(map(str.isalpha, value)) and any(map(str.isdigit, value))
    return has_both and entropy(value) >= MIN_PASSWORD_ENTROPY and not _PLACEHOLDER.search(value)


@lru_cache(1024)
def _is_drawn(value: str) -> bool:
    """Whether a value of a provider's form has a long word of letters and digits, or capitals, and is no example."""
    words = (word[0].decode() for word in _LONG_WORD.finditer(value.encode()))
    is_long = any(
        any(map(str.isalpha, word)) and (any(map(str.isdigit, word)) or sum(map(str.isupper, word)) >= 4)
        for word in words
    )
    return is_long and entropy(value) >= 3 and not re.search("example|xxxxxx|0000000000", value, re.IGNORECASE)


def _provider(match: re.Match[bytes], where: Where) -> Found | None:
    value = match[0].decode()
    return Found(match.start(), match.end(), value, match.lastgroup) if _is_drawn(value) else None


def _web_token(match: re.Match[bytes], where: Where) -> Found | None:
    """A match with the header before it."""
    least = max(where.done, match.start() - _MOST_HEADER)
    begin = least + len(match.string[least : match.start()].rstrip(_TOKEN_BYTES))
    header = _HEADER.search(match.string, begin, match.start())
    value = "" if header is None else (header[0] + match[0]).decode()
    return Found(header.start(), match.end(), value) if header is not None and _is_drawn(value) else None


def _assigned(match: re.Match[bytes], where: Where) -> Found | None:
    group = "quoted" if match["quoted"] else "bare"
    value = match[group].decode("utf-8", "replace").rstrip(".:!?")
    names_password = match["name"][:4].lower() in (b"pass", b"pwd")
    if group == "bare" and (where.is_code or not value.isascii()):
        return None
    is_secret = _is_password(value) if names_password else _is_random(value)
    begin = match.start(group)
    return Found(begin, begin + len(value.encode()), value) if is_secret else None


def _authorised(match: re.Match[bytes], where: Where) -> Found | None:
    value = match["value"].decode()
    return Found(*match.span("value"), value) if _is_random(value) else None


def _in_address(match: re.Match[bytes], where: Where) -> Found | None:
    value = match["value"].decode("utf-8", "replace")
    is_named = value.lower() in ("password", "passwd", "pass", "secret", "pwd", "pw", match["user"].decode().lower())
    is_reserved = RESERVED.search("@" + match["host"].decode().lower())
    return None if is_named or is_reserved or _PLACEHOLDER.search(value) else Found(*match.span("value"), value)


SECRETS = (
    Rule("secret", "private_key", Sign.KEY_BLOCK, _KEY_BLOCK, lambda match, where: whole(match)),
    Rule("secret", "json_web_token", Sign.TOKEN, _WEB_TOKEN, _web_token, part=b".eyJ"),
    Rule("secret", "provider", Sign.TOKEN, _PROVIDER, _provider),
    Rule("secret", "in_address", Sign.AT, _IN_ADDRESS, _in_address),
    Rule("secret", "authorization", Sign.ASSIGNED, _AUTHORISED, _authorised),
    Rule("secret", "assigned", Sign.ASSIGNED, _ASSIGNED, _assigned),
)
