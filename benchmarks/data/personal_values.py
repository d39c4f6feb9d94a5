"""Values of personal data that are valid, drawn by a seed."""

import ipaddress
import random
import string
from collections.abc import Callable

import phonenumbers

from lifecycle.data.personal import national_ids
from lifecycle.data.personal.checksums import luhn_valid, mod_97_valid, verhoeff_valid

LETTERS = string.ascii_letters + string.digits
NAMES = (
    "maria",
    "j.smith",
    "Anna.Kowalska",
    "lee_wong",
    "k-mueller",
    "tom.o.brien",
    "s.garcia81",
    "rahul",
    "ines",
    "bob",
)
HOSTS = ("gmail.com", "web.de", "mail.ru", "uni-jena.de", "bbc.co.uk", "laposte.net", "corp.acme.io", "hotmail.com")


class Hand:
    """Draws values and writes them down."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def digits(self, num: int, first: str = string.digits) -> str:
        return self.chance.choice(first) + "".join(self.chance.choices(string.digits, k=num - 1))

    def key(self, num: int, letters: str = LETTERS) -> str:
        return "".join(self.chance.choices(letters, k=num))

    def until(self, make: Callable[[], str], is_valid: Callable[[str], bool]) -> str:
        while not is_valid(value := make()):
            pass
        return value

    def email(self) -> str:
        name = self.chance.choice(NAMES) + self.chance.choice(("", "", self.digits(2), "+news"))
        return f"{name}@{self.chance.choice(HOSTS)}"

    def ipv4(self) -> str:
        def make() -> str:
            return ".".join(str(self.chance.randint(1, 254)) for _ in range(4))

        return self.until(make, _is_public)

    def ipv6(self) -> str:
        groups = [f"{self.chance.randrange(65536):x}" for _ in range(8)]
        groups[0] = self.chance.choice(("2a02", "2600", "2401", "2003"))
        if self.chance.random() < 0.5:
            at = self.chance.randint(2, 4)
            groups[at:7] = [""]
        return ":".join(groups)

    def card(self) -> str:
        prefix, size = self.chance.choice(
            (("4", 16), ("5" + self.chance.choice("12345"), 16), ("37", 15), ("6011", 16))
        )
        body = prefix + self.digits(size - len(prefix) - 1)
        return next(body + digit for digit in string.digits if luhn_valid(body + digit))

    def grouped_card(self) -> str:
        card, gap = self.card(), self.chance.choice((" ", "-", ""))
        sizes = (4, 6, 5) if len(card) == 15 else (4, 4, 4, 4)
        return gap.join(_cut(card, sizes))

    def iban(self) -> str:
        country, form = self.chance.choice(
            (
                ("DE", "d" * 18),
                ("GB", "aaaa" + "d" * 14),
                ("FR", "d" * 23),
                ("NL", "aaaa" + "d" * 10),
                ("CH", "d" * 17),
                ("ES", "d" * 20),
                ("PL", "d" * 24),
                ("NO", "d" * 11),
            )
        )
        body = "".join(self.chance.choice(string.digits if kind == "d" else string.ascii_uppercase) for kind in form)
        return next(code for check in range(2, 99) if mod_97_valid(code := f"{country}{check:02d}{body}"))

    def phone(self, style: int, regions: tuple[str, ...]) -> str:
        def make() -> str:
            region = self.chance.choice(regions)
            example = phonenumbers.example_number_for_type(region, self.chance.choice((0, 1)))
            assert example is not None
            text = str(example.national_number)
            tail = self.digits(5)
            return f"+{example.country_code}{text[:-5]}{tail}"

        number = phonenumbers.parse(self.until(make, _is_dialled), None)
        return phonenumbers.format_number(number, style)

    def national_id(self) -> tuple[str, str, str]:
        """The name of the form, the number, and the word that people put before it."""
        two = f"{self.chance.randint(1, 28):02d}"
        date = f"{self.chance.randint(50, 99)}{self.chance.randint(1, 12):02d}{two}"
        back = f"{two}{self.chance.randint(1, 12):02d}{self.chance.randint(50, 99)}"
        makers: dict[str, tuple[Callable[[], str], Callable[[str], bool], tuple[int, ...], str, str]] = {
            "us_ssn": (lambda: self.digits(9), national_ids._us_ssn, (3, 2, 4), "-", "SSN"),
            "uk_nino": (
                lambda: self.key(2, "ABCEHJLM") + self.digits(6) + self.key(1, "ABCD"),
                national_ids._uk_nino,
                (2, 2, 2, 2, 1),
                self.chance.choice((" ", "")),
                "NI number",
            ),
            "de_tax_id": (
                lambda: self.digits(11, "123456789"),
                national_ids._de_tax_id,
                (2, 3, 3, 3),
                " ",
                "Steuer-ID",
            ),
            "fr_nir": (
                lambda: self.digits(1, "12") + date[:4] + self.digits(10),
                lambda code: code[5:7] not in ("00",) and national_ids._fr_nir(code),
                (1, 2, 2, 2, 3, 3, 2),
                self.chance.choice((" ", "")),
                "n° de sécu",
            ),
            "es_dni": (
                lambda: self.digits(8) + self.key(1, string.ascii_uppercase),
                national_ids._es_dni,
                (8, 1),
                self.chance.choice(("", "-")),
                "DNI",
            ),
            "in_aadhaar": (lambda: self.digits(12, "23456789"), verhoeff_valid, (4, 4, 4), " ", "Aadhaar"),
            "br_cpf": (lambda: self.digits(11), national_ids._br_cpf, (3, 3, 3, 2), "cpf", "CPF"),
            "pl_pesel": (lambda: date + self.digits(5), national_ids._pl_pesel, (11,), "", "PESEL"),
            "nl_bsn": (lambda: self.digits(9, "12"), national_ids._nl_bsn, (9,), "", "BSN"),
            "se_personal": (lambda: date + self.digits(4), national_ids._se_personal, (6, 4), "-", "personnummer"),
            "no_birth": (lambda: back + self.digits(5), national_ids._no_birth, (6, 5), " ", "fødselsnummer"),
            "ca_sin": (lambda: self.digits(9, "1234567"), luhn_valid, (3, 3, 3), self.chance.choice((" ", "-")), "SIN"),
        }
        name = self.chance.choice(list(makers))
        make, is_valid, sizes, gap, word = makers[name]
        groups = _cut(self.until(make, is_valid), sizes)
        return name, "{}.{}.{}-{}".format(*groups) if gap == "cpf" else gap.join(groups), word

    def secret(self) -> tuple[str, str]:
        forms = {
            "aws": lambda: "AKIA" + self.key(16, string.ascii_uppercase + "234567"),
            "github": lambda: self.chance.choice(("ghp_", "gho_", "ghs_")) + self.key(36),
            "gitlab": lambda: "glpat-" + self.key(20, LETTERS + "_-"),
            "slack": lambda: f"xoxb-{self.digits(12, '123456789')}-{self.digits(13)}-{self.key(24)}",
            "google": lambda: "AIza" + self.key(35, LETTERS + "_-"),
            "stripe": lambda: "sk_live_" + self.key(24),
            "openai": lambda: "sk-proj-" + self.key(48, LETTERS + "_-"),
            "anthropic": lambda: "sk-ant-api03-" + self.key(93, LETTERS + "_-") + "AA",
            "npm": lambda: "npm_" + self.key(36),
            "hugging_face": lambda: "hf_" + self.key(34, string.ascii_letters),
            "jwt": lambda: f"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJ{self.key(40)}.{self.key(43, LETTERS + '_-')}",
        }
        name = self.chance.choice(list(forms))
        return name, forms[name]()


def _is_public(address: str) -> bool:
    parsed = ipaddress.IPv4Address(address)
    return parsed.is_global and not parsed.is_multicast


def _is_dialled(number: str) -> bool:
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(number, None))
    except phonenumbers.NumberParseException:
        return False


def _cut(text: str, sizes: tuple[int, ...]) -> list[str]:
    at, groups = 0, []
    for size in sizes:
        groups.append(text[at : at + size])
        at += size
    return groups
