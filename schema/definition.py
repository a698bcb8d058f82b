"""A pipeline as declared: everything that folding, deciding and simulating need, and no code.

`PipelineDefined` carries one of these, so a log can be read without the program that wrote it. Times are
nanoseconds, amounts billionths (`resources.to_nano`). Readiness is an `Expr` over repository ids; what the
state keeps a bit for are the *leaves*: stored repositories, derived leaves (translated, filtered) and the
three views of each task (`view_id`).
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from datatask.schema.units import HOUR, MINUTE, SECOND

CONCURRENCY_IN_PROCESS = 15
INFRASTRUCTURE_ATTEMPTS = 5
PROGRESS = MINUTE
LOGS_BYTES = 1 << 20
"""So much is kept of what a run prints, of each stream its beginning and its end."""

Record = Literal["value", "digest", "version"]
Medium = Literal["native", "mirror", "foreign", "derived", "view"]
"""Where a leaf's values live: in the log; in this process, told by the log; in a store of its own; nowhere."""
ViewName = Literal["live", "succeeded", "failed"]
VIEW_NAMES: tuple[ViewName, ...] = ("live", "succeeded", "failed")


class Declared(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A declared value: immutable, stored with its defaults left out."""


class Expr(Declared, frozen=True, kw_only=True, tag_field="op", tag=str.lower):
    """A condition on a job's memberships."""


class In(Expr, frozen=True, kw_only=True):
    """The job is in this leaf."""

    leaf: str


class All(Expr, frozen=True, kw_only=True):
    """Every part holds; true when there are none."""

    of: tuple[In | All | Any | Not, ...]


class Any(Expr, frozen=True, kw_only=True):
    """At least one part holds; false when there are none."""

    of: tuple[In | All | Any | Not, ...]


class Not(Expr, frozen=True, kw_only=True):
    """The part does not hold."""

    of: In | All | Any | Not


AnyExpr = In | All | Any | Not


class TranslatedDef(Declared, frozen=True, kw_only=True, tag_field="by", tag="translated"):
    """Job k is a member when `base` holds for the job that k translates to (`Evaluated: translation`)."""

    base: AnyExpr
    translator: AnyExpr

    @property
    def candidates(self) -> AnyExpr:
        """The condition of the jobs that user code is asked about."""
        return self.translator

    @property
    def conditions(self) -> tuple[AnyExpr, ...]:
        """The conditions that membership rests on."""
        return self.base, self.translator


class FilteredDef(Declared, frozen=True, kw_only=True, tag_field="by", tag="filtered"):
    """Job k is a member when `base` holds for it and its filter said yes (`Evaluated: filter`)."""

    base: AnyExpr

    @property
    def candidates(self) -> AnyExpr:
        """The condition of the jobs that user code is asked about."""
        return self.base

    @property
    def conditions(self) -> tuple[AnyExpr, ...]:
        """The conditions that membership rests on."""
        return (self.base,)


GroupedBy = Literal["all", "name", "asked", "batch"]
"""One group of all; the text that a pattern finds in the job's name; what user code says; so many, in order."""
Late = Literal["again", "ignore"]
"""What a job that joins a complete group does: the group is complete again once it is through, or nothing."""


class GatheredDef(Declared, frozen=True, kw_only=True, tag_field="by", tag="gathered"):
    """The jobs that stand for complete groups of jobs, `job` for that of all, and `job`-1 and so on for batches.

    The jobs that are to be in a group are those where `translator` holds; those where `base` holds too are through. A group
    is complete when all of its jobs are through, or a `share` (billionths) or `count` of them. `keys`: where keys are read.
    """

    base: AnyExpr
    translator: AnyExpr
    key: GroupedBy = "all"
    job: str = "all"
    pattern: str = ""
    keys: AnyExpr | None = None
    size: int = 0
    rest: bool = False
    share: int | None = None
    count: int | None = None
    late: Late = "again"

    @property
    def candidates(self) -> AnyExpr:
        """The condition under which a job comes to be a member itself: none, others stand for it."""
        return Any(of=())

    @property
    def conditions(self) -> tuple[AnyExpr, ...]:
        """The conditions that membership rests on."""
        return (self.base, self.translator) if self.keys is None else (self.base, self.translator, self.keys)


DerivedDef = TranslatedDef | FilteredDef | GatheredDef
"""The rules by which membership follows from other leaves, and from user code's answers."""


class ViewDef(Declared, frozen=True, kw_only=True, tag_field="by", tag="view"):
    """A view over the last run of a task's current episode."""

    task: str
    view: ViewName


class RepositoryDef(Declared, frozen=True, kw_only=True):
    """One leaf: `id` names it for ever; `kind` is what the user made it with, for people to read."""

    id: str
    kind: str
    medium: Medium
    locator: str | None = None
    record: Record = "value"
    ephemeral: bool = False
    derived: TranslatedDef | FilteredDef | GatheredDef | ViewDef | None = None


class LinkDef(Declared, frozen=True, kw_only=True):
    """A repository's role in a task; `expr` is its membership, over leaves (one leaf for a stored one)."""

    name: str
    expr: AnyExpr
    kind: str = ""
    is_input: bool = False
    is_output: bool = False
    is_status: bool = False
    inhibits_start: bool = False
    required_for_start: bool = False
    inhibits_output: bool = False
    required_for_output: bool = False


OUT_OF_MEMORY = "out_of_memory"


class RetryDef(Declared, frozen=True, kw_only=True):
    """How often a run is tried in all, what is tried again, and how long between (nanoseconds).

    `on` has outcomes, `exit N`, names of signals, `out_of_memory`, and `error TYPE` for exceptions of a type or below it.

    `infrastructure_attempts` lost runs in a row are run again; one that had been up for `progress` (None: none ever)
    is the first of a new row.
    """

    attempts: int = 1
    first: int = SECOND
    factor: float = 2.0
    longest: int = HOUR
    jitter: float = 0.1
    on: tuple[str, ...] = ("failed", "timed_out")
    infrastructure_attempts: int = INFRASTRUCTURE_ATTEMPTS
    progress: int | None = PROGRESS


Conflicts = Literal["rerun", "allow"]
"""What becomes of a run that has read a key, writes it, and finds it overwritten by another meanwhile."""

OnChange = Literal["keep", "mark", "rerun"]
"""What becomes of results that are out of date: nothing, they are told, or they are computed again."""

DoneShape = Literal["function", "process", "pod", "none"]


class TaskDef(Declared, frozen=True, kw_only=True):
    """One task as the core sees it.

    `resources` are billionths, `later` those of the second attempt and so on, of which the last repeats; `concurrency` None means no limit of its own; `ready` is the start condition,
    always in addition to "no open run". `done` and `pids` are the leaves that the engine fills itself: an
    entry per ended episode, and one per live process. `logs` is the
    number of bytes that are kept of each of a run's streams. `fingerprint` holds digests of what its runs execute, by component. With `cache` a run takes over the outputs
    of one that had equal inputs and executed the same.
    """

    name: str
    kind: str
    ready: AnyExpr
    links: tuple[LinkDef, ...] = ()
    quota: str | None = None
    resources: dict[str, int] = {}
    later: tuple[dict[str, int], ...] = ()
    concurrency: int | None = None
    priority: bool = False
    retry: RetryDef = RetryDef()
    timeout: int | None = None
    grace: int = 10 * SECOND
    repeat: bool = False
    disabled: bool = False
    opaque: bool = False
    done: str | None = None
    done_shape: DoneShape = "function"
    pids: str | None = None
    conflicts: Conflicts = "rerun"
    logs: int = LOGS_BYTES
    fingerprint: dict[str, str] = {}
    on_change: OnChange = "mark"
    cache: bool = False

    @property
    def requests(self) -> tuple[dict[str, int], ...]:
        """What the attempts take, the first one first."""
        return (self.resources, *self.later)

    def request(self, spent: int) -> dict[str, int]:
        """Return what an attempt takes before which so many were spent."""
        return self.requests[min(spent, len(self.later))] if self.later else self.resources

    @property
    def fingerprint_digest(self) -> str:
        """The components of the fingerprint as one digest; empty where none are known."""
        if not self.fingerprint:
            return ""
        return hashlib.sha256(msgspec.json.encode(self.fingerprint, order="deterministic")).hexdigest()[:32]


class QuotaDef(Declared, frozen=True, kw_only=True):
    """Limits in billionths (an absent name of cpu and mem means none is granted), launches per window.

    A resource with `identities` is given out one by one; `variables` name the environment variable that tells a run its own.
    """

    name: str
    limits: dict[str, int]
    launches: int | None = None
    window: int = MINUTE
    starvation_after: int = MINUTE
    identities: dict[str, tuple[str, ...]] = {}
    variables: dict[str, str] = {}


Setting = str | int | float | bool | None
ParameterKind = Literal["text", "integer", "number", "flag"]


class ParameterDef(Declared, frozen=True, kw_only=True):
    """A parameter of the pipeline, and the value with which it was defined."""

    name: str
    kind: ParameterKind
    value: Setting = None
    default: Setting = None
    help: str = ""


class PipelineDef(Declared, frozen=True, kw_only=True):
    """A whole pipeline; equal definitions have equal `digest`s."""

    name: str = "pipeline"
    repositories: tuple[RepositoryDef, ...] = ()
    tasks: tuple[TaskDef, ...] = ()
    quotas: tuple[QuotaDef, ...] = ()
    parameters: tuple[ParameterDef, ...] = ()

    def digest(self) -> str:
        """Return the SHA-256 of the canonical JSON, in hex."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()


class Selection(Declared, frozen=True, kw_only=True):
    """What a `run` may launch: jobs of these `tasks` (empty: of all) that fulfil `jobs`, and at most `left` more.

    A leaf `job(PATTERN)` in `jobs` stands for the jobs of such names (`job_leaf`); all others are the definition's.
    """

    tasks: tuple[str, ...] = ()
    jobs: AnyExpr | None = None
    left: int | None = None

    def after(self, launches: int) -> Selection:
        """Return the selection that is left after this number of launches."""
        return self if self.left is None else msgspec.structs.replace(self, left=self.left - launches)


def job_leaf(pattern: str) -> str:
    """Return the leaf by which a selection names jobs, such as `job(lab-*)`; `*` and `?` are as in file names."""
    return f"job({pattern})"


def group_id(leaf: str, job: str) -> str:
    """Return the name under which a gathered leaf's members are asked for: those of the group that a job stands for."""
    return f"group({leaf}/{job})"


def view_id(task: str, view: ViewName) -> str:
    """Return the leaf id of a task's view, such as `live(resize)`."""
    return f"{view}({task})"
