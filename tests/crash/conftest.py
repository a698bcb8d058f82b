"""The library of faults is that of the damage."""

from tests.damage.conftest import faults as faults
