"""Check digits: whether a number that people give each other was mistyped, or is none at all."""

from collections.abc import Sequence
from itertools import accumulate, cycle, starmap
from operator import mul
from string import ascii_letters

_DOUBLED = str.maketrans("0123456789", "0246813579")  # the digits' sum of twice a digit
_NUMBERS = str.maketrans({letter: str(int(letter, 36)) for letter in ascii_letters})  # 10 to 35
# Verhoeff's multiplication in the dihedral group of order 10, and the permutation of a digit by its place.
# Verhoeff 1969, "Error Detecting Decimal Codes".
_PERMUTED = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)
_AT = tuple(accumulate(range(7), lambda row, _: tuple(_PERMUTED[at] for at in row), initial=tuple(range(10))))


def _dihedral(left: int, right: int) -> int:
    """The product in the group of a pentagon's turns (0 to 4) and reflections (5 to 9)."""
    if left < 5:
        return (left + right) % 5 if right < 5 else 5 + (left + right) % 5
    return 5 + (left - right) % 5 if right < 5 else (left - right) % 5


# By the digit's place, for each digit what becomes of each check so far.
_TURNS = tuple(
    {str(digit): tuple(_dihedral(check, row[digit]) for check in range(10)) for digit in range(10)} for row in _AT
)


def luhn_valid(digits: str) -> bool:
    """Whether the last digit is the check digit by Luhn's formula (ISO/IEC 7812-1, annex B)."""
    return (sum(map(int, digits[::-2])) + sum(map(int, digits[-2::-2].translate(_DOUBLED)))) % 10 == 0


def verhoeff_valid(digits: str) -> bool:
    """Whether the last digit is the check digit by Verhoeff's scheme, which also finds all swapped neighbours."""
    check = 0
    for digit, turn in zip(reversed(digits), cycle(_TURNS), strict=False):
        check = turn[digit][check]
    return check == 0


def mod_97_valid(code: str) -> bool:
    """Whether a code of digits and capitals is 1 modulo 97 after its first four characters are put last, as in an IBAN
    (ISO 13616, ISO/IEC 7064)."""
    moved = code[4:] + code[:4]
    return int(moved.translate(_NUMBERS)) % 97 == 1


def mod_11_10_valid(digits: str) -> bool:
    """Whether the last digit is the check digit by ISO/IEC 7064, MOD 11,10."""
    product = 10
    for digit in digits[:-1]:
        total = (int(digit) + product) % 10 or 10
        product = total * 2 % 11
    return (11 - product) % 10 == int(digits[-1])


def weighted(digits: str, weights: Sequence[int]) -> int:
    """The sum of the digits, each times its weight."""
    return sum(starmap(mul, zip(map(int, digits), weights, strict=True)))
