"""Two writers of personal data and of what only looks like it: of the same values, in other formats."""

from collections.abc import Iterator
from dataclasses import dataclass

from phonenumbers import PhoneNumberFormat as Style

from benchmarks.data.personal_values import LETTERS, Hand

HEX = "0123456789abcdef"
KINDS = ("email", "phone", "ip", "iban", "card", "national_id", "secret")


@dataclass(frozen=True)
class Plant:
    """A sentence with something in it; `kind` is None for what only looks personal."""

    kind: str | None
    form: str
    sentence: str
    value: str


def plants(writer: int, num: int, seed: int) -> Iterator[Plant]:
    """So many personal items, of all kinds in turn, and as many look-alikes."""
    hand = Hand(seed)
    personal, alike = ((_first_personal, _first_alike), (_second_personal, _second_alike))[writer]
    for number in range(num):
        kind = KINDS[number % len(KINDS)]
        form, value, sentences = personal(hand, kind)
        yield Plant(kind, form, hand.chance.choice(sentences).replace("{}", value), value)
        form, value, sentence = alike(hand)
        yield Plant(None, form, sentence.replace("{}", value), value)


def _first_personal(hand: Hand, kind: str) -> tuple[str, str, tuple[str, ...]]:
    if kind == "email":
        return (
            "email",
            hand.email(),
            ("Write to {} for details.", "Contact: {}", "({})", "Anna <{}> wrote:", "Ask {}, please."),
        )
    if kind == "phone":
        style = hand.chance.choice((Style.INTERNATIONAL, Style.E164, Style.NATIONAL))
        if style == Style.NATIONAL and hand.chance.random() < 0.6:
            sentences = ("Call {} today.", "Our office: {}.", "({} after six)", "You can reach us at {} or by mail.")
            return "american", hand.phone(Style.NATIONAL, ("US",)), sentences
        if style == Style.NATIONAL:
            return "national", hand.phone(style, ("GB", "DE", "FR")), ("Tel. {}", "Phone: {}.", "Fax {}, room 12")
        regions = ("US", "GB", "DE", "FR", "IN", "BR", "JP", "ES", "PL")
        return (
            "international",
            hand.phone(style, regions),
            ("Call {} now.", "{} (evenings)", "My number: {}.", "or {}, always"),
        )
    if kind == "ip":
        value = hand.ipv4() if hand.chance.random() < 0.7 else hand.ipv6()
        return (
            "ip",
            value,
            ("Connection from {} refused.", "The user at {} logged in.", "client [{}]:", "{} - - GET /index.html"),
        )
    if kind == "iban":
        code = hand.iban()
        value = code if hand.chance.random() < 0.5 else " ".join(code[at : at + 4] for at in range(0, len(code), 4))
        return "iban", value, ("IBAN: {}", "Please pay to {} by Friday.", "Account {}, thank you.")
    if kind == "card":
        return "card", hand.grouped_card(), ("Card {} was charged.", "Visa or so: {}", "pay with {}, exp 10/29")
    if kind == "national_id":
        form, value, word = hand.national_id()
        return form, value, (f"{word}: {{}}", f"my {word} is {{}}.", f"{word} {{}}, born in May")
    form, value = hand.secret()
    return form, value, ("export KEY={}", 'token = "{}"', "I pushed {} by mistake.", "curl -H 'X-Key: {}' https://a.io")


def _first_alike(hand: Hand) -> tuple[str, str, str]:
    chance, digits, key = hand.chance, hand.digits, hand.key
    private = chance.choice(("10", "192.168", "172.16")) + ".1.2.3"
    forms = (
        ("order", f"{digits(3)}-{digits(7)}-{digits(7)}", "Your order {} has shipped."),
        ("order_3_3_4", f"{digits(3, '23456789')}-{digits(3, '23456789')}-{digits(4)}", "Order no. {} has shipped."),
        ("version", ".".join(str(chance.randint(0, 40)) for _ in range(4)), "We run version {} everywhere."),
        ("isbn", f"978-{digits(1)}-{digits(2)}-{digits(6)}-{digits(1)}", "ISBN {}"),
        ("commit", key(40, HEX), "fixed in {}."),
        ("short_commit", key(10, HEX), "see commit {}."),
        (
            "timestamp",
            f"20{digits(2, '012')}-1{digits(1, '012')}-1{digits(1)} 12:{digits(2, '012345')}:{digits(2, '012345')}",
            "At {} it stopped.",
        ),
        ("epoch", "17" + digits(8), "epoch {}"),
        ("epoch_ms", "17" + digits(11), "ts={}"),
        (
            "example_mail",
            chance.choice(("jane", "info", "a.b"))
            + "@"
            + chance.choice(("example.com", "example.org", "foo.test", "localhost")),
            "e.g. {}",
        ),
        ("rfc5737", chance.choice(("192.0.2.", "198.51.100.", "203.0.113.")) + digits(2, "12345"), "ping {}"),
        ("private_ip", ".".join(private.split(".")[:4]), "gateway {}"),
        ("ipv6_documentation", f"2001:db8:{key(4, '123456789abcdef')}::{digits(1, '123')}", "address {}"),
        ("network", hand.ipv4().rsplit(".", 1)[0] + ".0/24", "route {}"),
        ("card_wrong", _wrong(hand.grouped_card()), "number {}"),
        ("iban_wrong", _wrong(hand.iban()), "code {}"),
        (
            "uuid",
            f"{key(8, HEX)}-{key(4, HEX)}-4{key(3, HEX)}-a{key(3, HEX)}-{key(12, HEX)}",
            "id {}",
        ),
        ("fiction", f"({digits(3, '23456789')}) 555-01{digits(2)}", "Call {} in the film."),
        ("ssn_wrong", f"{chance.choice(('000', '666'))}-{digits(2, '123')}-{digits(4)}", "number {}"),
        ("amount", f"{digits(3, '123')},{digits(3)},{digits(3)}.{digits(2)}", "It cost ${} in all."),
        ("mac", ":".join(key(2, HEX) for _ in range(6)), "eth0 {}"),
        (
            "placeholder_key",
            chance.choice(("your-api-key-here-1234567890", "sk_test_xxxxxxxxxxxxxxxxxxxxxxxx", "AKIAIOSFODNN7EXAMPLE")),
            'api_key = "{}"',
        ),
        (
            "identifier",
            chance.choice(("get_token_from_header_2", "SHA256_DIGEST_LENGTH_32", "test_http2_push_promise_1")),
            "token = {}",
        ),
        ("git_remote", f"git@github.com:{key(6, 'abcdef')}/{key(5, 'abcdef')}.git", "clone {}"),
        ("serial", f"{key(2, 'ABCXYZ')}{digits(9)}", "serial {}"),
        ("pages", f"{digits(3)}-{digits(3)}", "pp. {}, 2nd ed."),
        ("doi", f"10.{digits(4)}/{key(4, 'abc')}.{digits(8)}", "doi:{}"),
    )
    return chance.choice(forms)


def _wrong(number: str) -> str:
    """A number with its last digit off by one."""
    at = max(place for place, character in enumerate(number) if character.isdigit())
    return number[:at] + str((int(number[at]) + 1) % 10) + number[at + 1 :]


def _second_personal(hand: Hand, kind: str) -> tuple[str, str, tuple[str, ...]]:
    chance = hand.chance
    if kind == "email":
        address = hand.email()
        name, _, host = address.partition("@")
        spelt = f"{name} [at] {host.replace('.', ' [dot] ')}"
        form, value = chance.choice(
            (
                ("upper", address.upper()),
                ("plain", address),
                ("spelt", spelt),
                ("spelt_at", f"{name}(at){host}"),
                ("accents", f"jos\u00e9.{name}@{host}"),
                ("long_tld", f"{name}@studio.photography"),
            )
        )
        return (
            form,
            value,
            (
                "Reply-To: {}",
                "mailto:{}?subject=Hi",
                "\u2022 {}\n",
                "E-Mail {}; Fax none",
                "author={}|",
                "\u00bb{}\u00ab",
            ),
        )
    if kind == "phone":
        american = hand.phone(Style.E164, ("US",))[2:]
        area, first, last = american[:3], american[3:6], american[6:]
        german, french = hand.phone(Style.E164, ("DE",))[3:], hand.phone(Style.E164, ("FR",))[3:]
        form, value, sentences = chance.choice(
            (
                ("dots", f"+1.{area}.{first}.{last}", ("{}", "cell {}")),
                ("slash", f"{area}/{first}-{last}", ("Phone {}", "Tel: {}")),
                ("dotted", f"{area}.{first}.{last}", ("{} (work)", "Ph. {}")),
                ("one", f"1 ({area}) {first}-{last}", ("Dial {} ext. 12", "toll-free {}")),
                ("bare", american, ("call me: {}", "WhatsApp {}")),
                ("dashes", f"{area}\u2013{first}\u2013{last}", ("office {}", "{}, ask for Tim")),
                ("zero", f"+49 (0){german[:3]} {german[3:]}", ("Zentrale {}", "{} (Durchwahl -12)")),
                ("double_zero", f"0033 {french[0]} {french[1:5]} {french[5:]}", ("appelez {}", "Tel {}")),
                (
                    "french_dots",
                    "0"
                    + ".".join((french[0], french[1:3], french[3:5], french[5:7], french[7:]))[:1]
                    + french[0]
                    + "."
                    + ".".join((french[1:3], french[3:5], french[5:7], french[7:])),
                    ("T\u00e9l. {}", "Portable : {}"),
                ),
                ("link", f"+44{hand.phone(Style.E164, ('GB',))[3:]}", ("href='tel:{}'", "tel:{};")),
                ("no_breaks", f"+1\u00a0({area})\u00a0{first}\u2011{last}", ("{}", "Mobile: {}")),
            )
        )
        return form, value, sentences
    if kind == "ip":
        value = hand.ipv4() if chance.random() < 0.6 else hand.ipv6().upper()
        port = f"{value}:443" if ":" not in value else value
        return (
            "ip",
            value,
            (
                f"http://{value}/login" if ":" not in value else f"http://[{value}]/login",
                f"sshd: Failed from {port} port",
                "X-Forwarded-For: {}, proxy",
                'remote_addr="{}"',
                "banned {} for an hour",
            ),
        )
    if kind == "iban":
        code = hand.iban()
        form, value = chance.choice(
            (
                ("dashes", "-".join(code[at : at + 4] for at in range(0, len(code), 4))),
                ("plain", code),
                ("no_breaks", "\u00a0".join(code[at : at + 4] for at in range(0, len(code), 4))),
            )
        )
        return form, value, ("Konto {} BIC FOO", "iban={};", "virement sur {}", "<td>{}</td>")
    if kind == "card":
        card = hand.card()
        sizes = (4, 6, 5) if len(card) == 15 else (4, 4, 4, 4)
        groups, at = [], 0
        for size in sizes:
            groups.append(card[at : at + size])
            at += size
        form, value = chance.choice(
            (("plain", card), ("dashes", "-".join(groups)), ("no_breaks", "\u00a0".join(groups)))
        )
        return form, value, ("CC#: {} CVV 123", '"pan": "{}"', "cc={}&exp=1129", "my card number is {} thanks")
    if kind == "national_id":
        form, value, word = hand.national_id()
        return form, value, (f"{word.upper()}# {{}}", f"({word} {{}})", f"{word}={{}};", f"{word} no. {{}}")
    form = chance.choice(("password", "url", "header", "yaml", "pem", "provider", "connection"))
    drawn, password = hand.key(40), hand.key(5) + chance.choice("!#%+") + hand.digits(3) + hand.key(3)
    block = "\n".join(hand.key(64, LETTERS + "+/") for _ in range(6))
    values = {
        "password": (password, ('password: "{}"', "DB_PASSWORD={}", "'passwd' => '{}',")),
        "url": (password.replace("#", "+"), ("amqp://svc:{}@mq.acme.io:5672/v", "https://bob:{}@git.acme.io/x.git")),
        "header": (drawn, ("Authorization: Bearer {}", "-H 'Authorization: token {}'")),
        "yaml": (drawn, ("  api-key: {}\n", "  client_secret: '{}'\n", '{"access_token":"{}"}')),
        "pem": (f"-----BEGIN PRIVATE KEY-----\n{block}\n-----END PRIVATE KEY-----", ("{}", "key:\n{}\n")),
        "provider": (hand.secret()[1], ("{}", "KEY='{}'", "[{}]")),
        "connection": (hand.key(86, LETTERS + "+/") + "==", ("AccountName=x;AccountKey={};EndpointSuffix=y",)),
    }
    value, sentences = values[form]
    return form, value, sentences


def _second_alike(hand: Hand) -> tuple[str, str, str]:
    chance, digits, key = hand.chance, hand.digits, hand.key
    forms = (
        ("coordinates", f"{digits(2, '1234')}.{digits(6)}, -{digits(2, '123')}.{digits(6)}", "at {}"),
        ("vin", key(17, "ABCDEFGHJKLMNPRSTUVWXYZ123456789"), "VIN {}"),
        ("imei", digits(15, "3"), "IMEI {}"),
        ("integrity", "sha512-" + key(86, LETTERS + "+/") + "==", '"integrity": "{}"'),
        ("etag", key(32, HEX), 'ETag: "{}"'),
        ("zip", f"{digits(5)}-{digits(4)}", "Boston, MA {}"),
        ("range", f"{digits(4, '12')}-{digits(4, '12')}", "in the years {}"),
        ("date", f"{digits(2, '012')}/{digits(2, '01')}/20{digits(2)} 08:15", "on {}"),
        ("retina", f"logo@{digits(1, '23')}x.{chance.choice(('png', 'jpg', 'webp'))}", "img/{}"),
        ("unit", f"getty@tty{digits(1)}.service", "systemctl start {}"),
        ("package", f"react@{digits(2, '1')}.2.{digits(1)}", "npm i {}"),
        ("handle", f"@{key(7, 'abcdef')}", "follow {}"),
        ("oid", ".".join(digits(chance.randint(1, 3), "123456789") for _ in range(7)), "OID {}"),
        ("agent", f"Chrome/{digits(3, '1')}.0.{digits(4, '123456789')}.{digits(2, '123456789')}", "Mozilla/5.0 {}"),
        ("firmware", ".".join(str(chance.randint(10, 99)) for _ in range(4)), "firmware {}"),
        ("mask", f"255.255.{chance.choice(('255', '240', '128'))}.0", "netmask {}"),
        ("loopback", f"127.0.{digits(1)}.1", "listen {}"),
        ("link_local", f"fe80::{key(4, HEX)}:{key(4, HEX)}", "inet6 {}"),
        ("time", f"{digits(2, '01')}:{digits(2, '012345')}:{digits(2, '012345')}.{digits(6)}", "took {}"),
        ("sequence", " ".join(str(chance.randint(100, 999)) for _ in range(6)), "scores {}"),
        ("decimal", f"0.{digits(12)}", "p = {}"),
        ("exponent", f"{digits(1)}.{digits(10)}e-{digits(2, '1')}", "x = {}"),
        ("tracking", digits(16, "4"), "tracking number {}"),
        ("part", f"{digits(3)}-{digits(2)}-{digits(4)}", "Part no. {}"),
        ("long_number", digits(12, "1"), "population {}"),
        ("arxiv", f"arXiv:{digits(4, '12')}.{digits(5)}", "see {}"),
        (
            "template",
            chance.choice(("${API_TOKEN_1}", "<your-token-1>", "{{ secret_1 }}", "os.environ['KEY_1']")),
            "api_key: {}",
        ),
        ("certificate", "-----BEGIN CERTIFICATE-----\n" + key(64) + "\n-----END CERTIFICATE-----", "{}"),
        ("hexdump", " ".join(key(4, "0123456789") for _ in range(6)), "0000010: {}"),
        ("callback", "https://a.io/cb?state=" + key(12, HEX), "{}"),
        (
            "documentation_mail",
            f"user@{chance.choice(('example.net', 'host.invalid', 'mail.example.co.uk', 'box.local'))}",
            "From: {}",
        ),
        ("expression", f"{digits(3)} - {digits(3)} - {digits(4)}", "= {}"),
    )
    return chance.choice(forms)
