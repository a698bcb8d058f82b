"""Random numbers by seed, and functions of them, that have the same bits on every machine.

In: a seed, a replication, an owner and a purpose. Out: a stream of its own, so that two scenarios differ by their
differences only; Python's Mersenne Twister, whose `random()` is the same in all versions. A C library's `log` may differ in the
last bit from another's: `ln`, `exp` and `normal` are made of additions, multiplications, divisions, square roots and
scaling by powers of two, which IEEE 754 fixes. They are right to about 1e-15 (the quantile: 1.2e-9), relative.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from math import floor, frexp, ldexp, sqrt
from random import Random

_LN2 = 0.6931471805599453
_LN2_HIGH = 0.693147180369123816490
_LN2_LOW = 1.90821492927058770002e-10
_ROOT_HALF = 0.7071067811865476
_3, _5, _7, _9, _11, _13, _15, _17, _19 = (1.0 / odd for odd in range(3, 21, 2))
_FACTORIALS = tuple(
    1.0 / number
    for number in (
        6227020800,
        479001600,
        39916800,
        3628800,
        362880,
        40320,
        5040,
        720,
        120,
        24,
        6,
        2,
        1,
        1,
    )
)
_LARGEST = 709.0

# Peter J. Acklam's rational approximations of the inverse normal distribution.
_A = (-39.69683028665376, 220.9460984245205, -275.9285104469687, 138.3577518672690, -30.66479806614716, 2.506628277459239)  # fmt: skip
_B = (-54.47609879822406, 161.5858368580409, -155.6989798598866, 66.80131188771972, -13.28068155288572)
_C = (-0.007784894002430293, -0.3223964580411365, -2.400758277161838, -2.549732539343734, 4.374664141464968, 2.938163982698783)  # fmt: skip
_D = (0.007784695709041462, 0.3224671290700398, 2.445134137142996, 3.754408661907416)
_TAIL = 0.02425


def ln(x: float) -> float:
    """Return the natural logarithm of a positive number."""
    mantissa, exponent = frexp(x)
    if mantissa < _ROOT_HALF:
        mantissa *= 2.0
        exponent -= 1
    rest = mantissa - 1.0
    s = rest / (2.0 + rest)
    z = s * s
    more = (((((((_19 * z + _17) * z + _15) * z + _13) * z + _11) * z + _9) * z + _7) * z + _5) * z + _3
    return exponent * _LN2_HIGH + (2.0 * s * (more * z + 1.0) + exponent * _LN2_LOW)


def exp(x: float) -> float:
    """Return e to the power of x; 0 or the largest power that fits where x is out of range."""
    if x < -_LARGEST:
        return 0.0
    x = min(x, _LARGEST)
    power = floor(x / _LN2 + 0.5)
    rest = (x - power * _LN2_HIGH) - power * _LN2_LOW
    total = 0.0
    for part in _FACTORIALS:
        total = total * rest + part
    return ldexp(total, power)


def normal(u: float) -> float:
    """Return the number below which a standard normal one lies with probability u, 0 < u < 1."""
    if u < _TAIL:
        return _tail(sqrt(-2.0 * ln(u)))
    if u > 1.0 - _TAIL:
        return -_tail(sqrt(-2.0 * ln(1.0 - u)))
    q = u - 0.5
    r = q * q
    above = (((((_A[0] * r + _A[1]) * r + _A[2]) * r + _A[3]) * r + _A[4]) * r + _A[5]) * q
    below = ((((_B[0] * r + _B[1]) * r + _B[2]) * r + _B[3]) * r + _B[4]) * r + 1.0
    return above / below


def _tail(q: float) -> float:
    above = ((((_C[0] * q + _C[1]) * q + _C[2]) * q + _C[3]) * q + _C[4]) * q + _C[5]
    return above / ((((_D[0] * q + _D[1]) * q + _D[2]) * q + _D[3]) * q + 1.0)


Chance = Callable[[], float]
"""Returns a number in [0, 1)."""


def stream(seed: int, replication: int, owner: str, purpose: str) -> Chance:
    """Return the stream for a purpose of a task (or of a machine, or of none)."""
    named = f"{seed}\0{replication}\0{owner}\0{purpose}".encode()
    return Random(int.from_bytes(blake2b(named, digest_size=16).digest(), "big")).random
