"""How long hypothesis looks: briefly by default, `--hypothesis-profile=thorough` for an hour of it."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(  # the same examples each time: what lands does not depend on luck
    "brief", max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
settings.register_profile(
    "thorough", max_examples=4000, deadline=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("brief")
