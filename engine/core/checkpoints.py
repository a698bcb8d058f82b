"""A state as bytes and back: `load(dump(state))` goes on exactly as `state` would.

Out: one msgpack document. Masks are a table of the distinct ones and an index per job, positions and counters are
arrays as they lie in memory, members are roaring bitmaps; events and definitions are the JSON that the log
has. What follows from the rest (conditions, watchers, reverse indexes, heaps) is not stored but worked out. Where
the order of a dict means something (queues, pending evaluations) it is kept, elsewhere it is made canonical: equal
states give equal bytes, so `fingerprint` is how two states are compared. It is a cache: `load` refuses another
fold version, and whoever loads a large one switches the garbage collector off meanwhile.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial

import msgspec
from pyroaring import BitMap

from datatask.engine.core.cells import put_at
from datatask.engine.core.define import NEVER, wire
from datatask.engine.core.expressions import compile_condition
from datatask.engine.core.gathering import APART, Gathering, Group
from datatask.engine.core.leaves import DerivedState, LeafState
from datatask.engine.core.quotas import QuotaState
from datatask.engine.core.state import FOLD_VERSION, Pending, PendingKey, State
from datatask.engine.core.tasks import CONTENDING, Episode, Intent, OpenRun, TaskState
from datatask.schema.definition import GatheredDef, PipelineDef, QuotaDef, RepositoryDef, Selection, TaskDef
from datatask.schema.errors import LogDamagedError
from datatask.schema.events import Ending, EngineOpened, StoreWriteIntended

_json = msgspec.json.encode


GroupImage = tuple[str, int, int, bool, bytes, bytes, bytes | None, bytes | None, list[tuple[int, bytes]]]
"""A group, as `Group` has it."""


class LeafImage(msgspec.Struct, array_like=True):
    """One leaf; `forward` are the keys and the targets of a translation, or the groups of what is gathered."""

    id: str
    definition: bytes
    bit: bytes
    synced: bool
    incarnation: int
    held: str
    positions: bytes
    versions: bytes
    members: bytes
    derived: bool
    forward: tuple[bytes, bytes]
    root: str


class TaskImage(msgspec.Struct, array_like=True):
    """One task; its definition is left out where the pipeline's has it."""

    name: str
    definition: bytes | None
    claim: bytes
    views: tuple[str, str, str]
    queue: list[tuple[float, int, int]]
    awaiting: list[tuple[int, int]]
    episodes: list[tuple[int | float | None, ...]]
    last_run: bytes
    episode_count: bytes
    paused: int
    constraint: str


Amount = int | str
"""Billionths; as text where they do not fit the 64 bits of the encoding, which 18 GB of memory do not."""


class RunImage(msgspec.Struct, array_like=True):
    """One open run: the fields of `OpenRun`, the ending as JSON."""

    fields: tuple[int, str, int, int, int, int, str, dict[str, Amount], str | None, dict[str, int], bool, int]
    started_at: int | None
    handle: dict[str, str | int] | None
    where: str
    unreachable: bool
    stopping: str | None
    settling: bytes | None
    intents: list[tuple[str, int, int, bytes]]


class HoldingRunImage(RunImage, array_like=True):
    """An open run that has identities; what has none lies as ever."""

    identities: dict[str, tuple[str, ...]] = {}


class QuotaImage(msgspec.Struct, array_like=True):
    """One quota: as defined, as it is in force, and what counts against it."""

    definition: bytes
    limits: dict[str, Amount]
    launches: int | None
    used: list[tuple[str, Amount]]
    recent: list[int]


class Image(msgspec.Struct, array_like=True):
    """A whole state; `masks` are the distinct ones, `mask_of` an index into them for each job."""

    version: int
    position: int
    at: int
    log: str
    pipeline: str
    engine: bytes | None
    closed: bool
    definition: bytes
    defined_at: int
    bits: int
    jobs: list[str]
    masks: list[bytes]
    mask_of: bytes
    leaves: list[LeafImage]
    tasks: list[TaskImage]
    quotas: list[QuotaImage]
    runs: list[HoldingRunImage]
    pending: list[tuple[str, str, int, int, str, int]]
    intents: list[tuple[str, int, int, bytes]]
    requests: list[tuple[str, int]]
    marks: list[tuple[int, int]]
    mark_every: int


class SelectedImage(Image, array_like=True):
    """A state under a selection: what has none lies as ever, so that equal states give equal bytes for ever."""

    selection: bytes | None = None


class MarkedImage(SelectedImage, array_like=True):
    """A state that knows fingerprints of tasks; here too, what knows none lies as ever."""

    fingerprints: dict[str, list[tuple[int, str]]] = {}


class AcceptedImage(MarkedImage, array_like=True):
    """A state that knows accepted results: pairs of job and position by task."""

    accepted: dict[str, list[tuple[int, int]]] = {}


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AcceptedImage)


def fingerprint(state: State) -> str:
    """Return the SHA-256 of the state's bytes, in hex: equal exactly for equal states."""
    return hashlib.sha256(dump(state)).hexdigest()


def dump(state: State) -> bytes:
    """Return the state as bytes; without the reason for opening, which nothing rests on and which may be redacted."""
    kind: Callable[..., Image] = Image
    selection = None if state.selection is None else _json(state.selection)
    fingerprints = dict(sorted(state.fingerprints.items()))
    if state.accepted:
        accepted = {task: sorted(jobs.items()) for task, jobs in sorted(state.accepted.items())}
        kind = partial(AcceptedImage, selection=selection, fingerprints=fingerprints, accepted=accepted)
    elif fingerprints:
        kind = partial(MarkedImage, selection=selection, fingerprints=fingerprints)
    elif selection is not None:
        kind = partial(SelectedImage, selection=selection)
    masks = list(dict.fromkeys(state.masks))
    number = {mask: index for index, mask in enumerate(masks)}
    image = kind(
        version=FOLD_VERSION,
        position=state.position,
        at=state.at,
        log=state.log,
        pipeline=state.pipeline,
        engine=None if state.engine is None else _json(msgspec.structs.replace(state.engine, reason="")),
        closed=state.closed,
        definition=_json(state.definition),
        defined_at=state.defined_at,
        bits=state.bits,
        jobs=state.jobs,
        masks=[_int_bytes(mask) for mask in masks],
        mask_of=_array_bytes(array("I", map(number.__getitem__, state.masks)), strip=False),
        leaves=[_leaf_image(leaf, state.masks) for leaf in state.leaves.values()],
        tasks=[_task_image(task, state.definition) for task in state.tasks.values()],
        quotas=[_quota_image(quota) for quota in state.quotas.values()],
        runs=[_run_image(run) for run in state.open_runs.values()],
        pending=[(*key, *why) for key, why in state.pending.items()],
        intents=_intents_image(dict(sorted(state.intents.items(), key=lambda item: item[1].position))),
        requests=list(state.requests.items()),
        marks=state.marks,
        mark_every=state.mark_every,
    )
    return _encoder.encode(image)


def load(body: bytes) -> State:
    """Return the state that was dumped; `LogDamagedError` where the bytes are not of this fold version."""
    try:
        image = _decoder.decode(body)
    except ValueError as error:  # also text that is none
        raise _unusable(f"a checkpoint does not decode: {error}") from error
    if image.version != FOLD_VERSION:
        raise _unusable(f"a checkpoint is of fold version {image.version}, not {FOLD_VERSION}")
    try:
        return _state(image)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise _unusable(f"a checkpoint holds no state: {type(error).__name__}: {error}") from error


def fold_version_of(body: bytes) -> int | None:
    """Return which version of the fold made these bytes, whatever that is; None where they do not tell."""
    start = {0xDC: 3, 0xDD: 5}.get(body[0], 1) if body else 0  # an array of many or of few
    length = {0xCC: 2, 0xCD: 3}.get(body[start], 1) if start < len(body) else 0
    try:
        return msgspec.msgpack.decode(body[start : start + length], type=int)
    except msgspec.DecodeError:
        return None


def _state(image: AcceptedImage) -> State:
    state = State()
    state.position, state.at, state.log, state.pipeline = image.position, image.at, image.log, image.pipeline
    state.engine = None if image.engine is None else msgspec.json.decode(image.engine, type=EngineOpened)
    state.closed, state.bits = image.closed, image.bits
    state.definition = msgspec.json.decode(image.definition, type=PipelineDef)
    state.defined_at = image.defined_at
    if image.selection is not None:
        state.selection = msgspec.json.decode(image.selection, type=Selection)
    state.fingerprints = image.fingerprints
    state.accepted = {task: dict(jobs) for task, jobs in image.accepted.items()}
    state.jobs = image.jobs
    state.job_index = dict(zip(image.jobs, range(len(image.jobs)), strict=True))
    state.take_masks([int.from_bytes(mask, "little") for mask in image.masks], _array("I", image.mask_of))
    state.leaves = {leaf.id: _leaf(leaf, index) for index, leaf in enumerate(image.leaves)}
    state.open_runs = {run.fields[0]: _run(run) for run in image.runs}
    state.quotas = {quota.definition.name: quota for quota in map(_quota, image.quotas)}
    definitions = {task.name: task for task in state.definition.tasks}
    state.tasks = {
        task.name: _task(state, task, index, definitions.get(task.name))
        for index, task in enumerate(image.tasks)
    }
    state.hold_identities()
    state.intents = _intents(image.intents)
    for run in state.open_runs.values():
        state.tasks[run.task].open_runs += 1
        for key, intent in run.intents.items():
            if key in state.intents and state.intents[key].position == intent.position:
                state.intents[key] = intent
    state.pending = {PendingKey(*entry[:3]): Pending(*entry[3:]) for entry in image.pending}
    state.requests = OrderedDict(image.requests)
    state.marks, state.mark_every = image.marks, image.mark_every
    wire(state)
    return state


def _unusable(what: str) -> LogDamagedError:
    return LogDamagedError(what, remedy="leave the checkpoint out: folding the log gives the same state")


# --- the parts, out ---------------------------------------------------------------------------------


def _leaf_image(leaf: LeafState, masks: list[int]) -> LeafImage:
    forward = sorted(leaf.derived.forward.items()) if leaf.derived is not None else []
    gathering = None if leaf.derived is None else leaf.derived.gathering
    return LeafImage(
        leaf.id,
        _json(leaf.definition),
        _int_bytes(leaf.bit),
        leaf.synced,
        leaf.incarnation,
        _state_words(leaf),
        _array_bytes(leaf.positions),
        _array_bytes(leaf.versions),
        _bitmap_bytes(leaf.members(masks)),
        leaf.derived is not None,
        (_gathering_bytes(gathering), b"")
        if gathering is not None
        else (
            _array_bytes(array("I", (key for key, _ in forward)), strip=False),
            _array_bytes(array("I", (target for _, target in forward)), strip=False),
        ),
        leaf.root,
    )


def _bitmap_bytes(members: BitMap) -> bytes:
    fresh = BitMap(members.to_array())  # as a fresh one would lie, whatever its history
    fresh.run_optimize()
    return fresh.serialize()


def _gathering_bytes(gathering: Gathering) -> bytes:
    return _encoder.encode(
        [
            (
                group.key,
                group.job,
                group.number,
                group.complete,
                _bitmap_bytes(group.members),
                _bitmap_bytes(group.through),
                None if group.late is None else _bitmap_bytes(group.late),
                None if group.gathered is None else _bitmap_bytes(group.gathered),
                [(job, _bitmap_bytes(members)) for job, members in group.earlier],
            )
            for _, group in sorted(gathering.groups.items())
        ]
    )


def _state_words(leaf: LeafState) -> str:
    """Return why a leaf is held, its trouble and what it missed; as ever where there is none of these."""
    words = [leaf.held, leaf.trouble, str(leaf.missed or "")]
    return "\0".join(words).rstrip("\0")


def _task_image(task: TaskState, definition: PipelineDef) -> TaskImage:
    return TaskImage(
        task.name,
        None if task.definition in definition.tasks else _json(task.definition),
        _int_bytes(task.claim),
        (task.live.id, task.succeeded.id, task.failed.id),
        list(task.queue.entries()),
        list(task.awaiting.items()),
        [
            (job, own.position, own.priority, own.attempt, own.infrastructure, own.run, own.not_before)
            + (
                (own.conflicts, own.forgiven) if own.conflicts or own.forgiven else ()
            )  # as ever where there are none
            for job, own in sorted(task.episodes.items())
        ],
        _array_bytes(task.last_run),
        _array_bytes(task.episode_count),
        task.paused,
        task.constraint,
    )


def _quota_image(quota: QuotaState) -> QuotaImage:
    used = sorted((name, _packed(amount)) for name, amount in quota.used.items() if amount)
    limits = {name: _packed(amount) for name, amount in quota.limits.items()}
    return QuotaImage(_json(quota.definition), limits, quota.launches, used, list(quota.recent))


def _packed(amount: int) -> Amount:
    return amount if -(1 << 63) <= amount < 1 << 64 else str(amount)


def _run_image(run: OpenRun) -> RunImage:
    kind: Callable[..., RunImage] = RunImage
    if run.identities:
        kind = partial(HoldingRunImage, identities=run.identities)
    return kind(
        (
            run.run,
            run.task,
            run.job,
            run.episode,
            run.attempt,
            run.decided_at,
            run.origin,
            {name: _packed(amount) for name, amount in run.resources.items()},
            run.quota,
            run.inputs,
            run.meta,
            run.epoch,
        ),
        run.started_at,
        run.handle,
        run.where,
        run.unreachable,
        run.stopping,
        None if run.settling is None else _json(run.settling),
        _intents_image(run.intents),
    )


def _intents_image(intents: dict[tuple[str, int], Intent]) -> list[tuple[str, int, int, bytes]]:
    return [(*key, intent.position, _json(intent.event)) for key, intent in intents.items()]


# --- the parts, in ----------------------------------------------------------------------------------


def _leaf(image: LeafImage, index: int) -> LeafState:
    definition = msgspec.json.decode(image.definition, type=RepositoryDef)
    leaf = LeafState(definition, index, int.from_bytes(image.bit, "little"))
    leaf.synced, leaf.incarnation, leaf.root = image.synced, image.incarnation, image.root
    leaf.held, leaf.trouble, missed, *_ = *image.held.split("\0"), "", ""
    leaf.missed = int(missed or 0)
    leaf.positions, leaf.versions = _array("q", image.positions), _array("Q", image.versions)
    leaf.load(BitMap.deserialize(image.members))
    if image.derived:
        leaf.derived = DerivedState(leaf, compile_condition(NEVER, {}), None)
        if isinstance(definition.derived, GatheredDef):
            leaf.derived.gathering = _gathering(definition.derived, image.forward[0])
            return leaf
        for key, target in zip(*(_array("I", side) for side in image.forward), strict=True):
            leaf.derived.bind(key, target)
    return leaf


def _gathering(rule: GatheredDef, data: bytes) -> Gathering:
    gathering = Gathering(rule)
    for number, image in enumerate(msgspec.msgpack.decode(data, type=list[GroupImage])):
        key, job, attempt, complete, members, through, late, gathered, earlier = image
        group = gathering.groups[number] = Group(key, job, attempt, complete)
        group.members, group.through = BitMap.deserialize(members), BitMap.deserialize(through)
        group.late = None if late is None else BitMap.deserialize(late)
        group.gathered = None if gathered is None else BitMap.deserialize(gathered)
        group.earlier = [(other, BitMap.deserialize(bits)) for other, bits in earlier]
        if number != APART:
            gathering.numbers[key] = number
            gathering.by_job.update(dict.fromkeys((job, *(other for other, _ in group.earlier)), number))
            for member in group.members:
                put_at(gathering.group_of, member, number)
    return gathering


def _task(state: State, image: TaskImage, index: int, definition: TaskDef | None) -> TaskState:
    if image.definition is not None or definition is None:
        definition = msgspec.json.decode(image.definition or b"", type=TaskDef)
    live, succeeded, failed = (state.leaves[name] for name in image.views)
    claim = int.from_bytes(image.claim, "little")
    task = TaskState(definition, index, compile_condition(NEVER, {}), claim, live, succeeded, failed)
    task.queue = task.new_queue()
    for order, position, job in image.queue:
        task.queue.push(job, -order, position)
    task.awaiting = dict(image.awaiting)
    task.episodes = {own[0]: Episode(*own[1:]) for own in image.episodes}  # type: ignore[misc,arg-type]
    for job, own in task.episodes.items():
        if own.run:
            task.contending += own.conflicts >= CONTENDING
        elif own.not_before is not None:
            task.schedule(job, own)
    task.last_run, task.episode_count = _array("q", image.last_run), _array("I", image.episode_count)
    task.paused, task.constraint = image.paused, image.constraint
    return task


def _quota(image: QuotaImage) -> QuotaState:
    definition = msgspec.json.decode(image.definition, type=QuotaDef)
    limits = {name: int(amount) for name, amount in image.limits.items()}
    used = {name: int(amount) for name, amount in image.used}
    return QuotaState(definition, limits, image.launches, used, deque(image.recent))


def _run(image: HoldingRunImage) -> OpenRun:
    number, task, job, episode, attempt, decided_at, origin, resources, *_ = image.fields
    amounts = {name: int(amount) for name, amount in resources.items()}
    run = OpenRun(number, task, job, episode, attempt, decided_at, origin, amounts, *image.fields[8:])
    run.identities = image.identities
    run.started_at, run.handle, run.where = image.started_at, image.handle, image.where
    run.unreachable, run.stopping = image.unreachable, image.stopping  # type: ignore[assignment]
    run.settling = None if image.settling is None else msgspec.json.decode(image.settling, type=Ending)
    run.intents = _intents(image.intents)
    return run


def _intents(image: list[tuple[str, int, int, bytes]]) -> dict[tuple[str, int], Intent]:
    decode = msgspec.json.Decoder(StoreWriteIntended).decode
    return {(leaf, job): Intent(position, decode(event)) for leaf, job, position, event in image}


def _int_bytes(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "little")


def _array_bytes(cells: array[int], *, strip: bool = True) -> bytes:
    """Return an array's cells, little-endian, without the zeros at its end."""
    if sys.byteorder == "big":
        cells = cells[:]
        cells.byteswap()
    data = cells.tobytes()
    if not strip:
        return data
    used = len(data.rstrip(b"\0"))
    return data[: -(-used // cells.itemsize) * cells.itemsize]


def _array(code: str, data: bytes) -> array[int]:
    cells: array[int] = array(code)
    cells.frombytes(data)
    if sys.byteorder == "big":
        cells.byteswap()
    return cells
