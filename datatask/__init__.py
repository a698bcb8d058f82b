"""Runs data pipelines and remembers everything that happened in them.

The public names, each loaded when it is first asked for: `import datatask.schema` stays as light as the schema is.
A new public name is one line in `_HOME`, and one under TYPE_CHECKING so that checkers see it too.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datatask.adapters.cli.main import main as main
    from datatask.adapters.execute.base.machines import STDOUT as STDOUT
    from datatask.adapters.execute.base.process_task import ProcessTask as ProcessTask
    from datatask.adapters.execute.base.targets import AbstractProcessManager as AbstractProcessManager
    from datatask.adapters.execute.functions.executors import ExecutorTask as ExecutorTask
    from datatask.adapters.execute.functions.in_process import (
        InProcessSyncTask as InProcessSyncTask,
    )
    from datatask.adapters.execute.kube.functions import KubeFunctionTask as KubeFunctionTask
    from datatask.adapters.execute.kube.manager import PodManager as PodManager
    from datatask.adapters.execute.kube.tasks import KubeTask as KubeTask
    from datatask.adapters.execute.kube.tasks import LiveKubeRepository as LiveKubeRepository
    from datatask.adapters.execute.local.manager import LocalLinuxManager as LocalLinuxManager
    from datatask.adapters.execute.ssh.connections import SSHHost as SSHHost
    from datatask.adapters.execute.ssh.manager import SSHLinuxManager as SSHLinuxManager
    from datatask.adapters.history.history import History as History
    from datatask.adapters.history.history import why as why
    from datatask.adapters.history.maintenance import backup as backup
    from datatask.adapters.history.replay import Replayed as Replayed
    from datatask.adapters.history.replay import replay as replay
    from datatask.adapters.history.verify.verify import LogVerified as LogVerified
    from datatask.adapters.history.verify.verify import verify as verify
    from datatask.adapters.sim.simulate import simulate as simulate
    from datatask.adapters.store.bucket_repositories import BucketRepository as BucketRepository
    from datatask.adapters.store.bucket_repositories import S3BucketInfo as S3BucketInfo
    from datatask.adapters.store.bucket_repositories import S3BucketRepository as S3BucketRepository
    from datatask.adapters.store.bucket_repositories import (
        YamlMetadataBucketRepository as YamlMetadataBucketRepository,
    )
    from datatask.adapters.store.bucket_repositories import (
        YamlMetadataS3Repository as YamlMetadataS3Repository,
    )
    from datatask.adapters.store.directories import (
        DirectoryRepository as DirectoryRepository,
    )
    from datatask.adapters.store.files import FileRepository as FileRepository
    from datatask.adapters.store.files import FileRepositoryBase as FileRepositoryBase
    from datatask.adapters.store.inprocess import (
        InProcessBlobRepository as InProcessBlobRepository,
    )
    from datatask.adapters.store.inprocess import (
        InProcessMetadataRepository as InProcessMetadataRepository,
    )
    from datatask.adapters.store.inprocess import LogBlobRepository as LogBlobRepository
    from datatask.adapters.store.inprocess import LogMetadataRepository as LogMetadataRepository
    from datatask.adapters.store.mongo_repositories import MongoMetadataRepository as MongoMetadataRepository
    from datatask.adapters.store.registry_repositories import DockerRepository as DockerRepository
    from datatask.adapters.store.yamls import (
        YamlMetadataFileRepository as YamlMetadataFileRepository,
    )
    from datatask.adapters.store.yamls import YamlMetadataRepository as YamlMetadataRepository
    from datatask.adapters.wiring.pipeline import Pipeline as Pipeline
    from datatask.adapters.wiring.rounds import Outcome as Outcome
    from datatask.adapters.wiring.verbs import cat_data as cat_data
    from datatask.adapters.wiring.verbs import delete_data as delete_data
    from datatask.adapters.wiring.verbs import inject_data as inject_data
    from datatask.adapters.wiring.verbs import launch as launch
    from datatask.adapters.wiring.verbs import list_data as list_data
    from datatask.adapters.wiring.verbs import print_status as print_status
    from datatask.adapters.wiring.verbs import print_trace as print_trace
    from datatask.adapters.wiring.verbs import run as run
    from datatask.adapters.wiring.verbs import shell as shell
    from datatask.adapters.wiring.verbs import update as update
    from datatask.engine.api.declare import dependants as dependants
    from datatask.engine.api.gathered import Gathered as Gathered
    from datatask.engine.api.links import Link as Link
    from datatask.engine.api.links import ViewRepository as ViewRepository
    from datatask.engine.api.parameters import Parameter as Parameter
    from datatask.engine.api.policies import ResourceManager as ResourceManager
    from datatask.engine.api.policies import Retry as Retry
    from datatask.engine.api.repositories import AggregateAndRepository as AggregateAndRepository
    from datatask.engine.api.repositories import AggregateOrRepository as AggregateOrRepository
    from datatask.engine.api.repositories import BlobRepository as BlobRepository
    from datatask.engine.api.repositories import BlockingRepository as BlockingRepository
    from datatask.engine.api.repositories import MapRepository as MapRepository
    from datatask.engine.api.repositories import MetadataRepository as MetadataRepository
    from datatask.engine.api.repositories import RelatedItemRepository as RelatedItemRepository
    from datatask.engine.api.repositories import Repository as Repository
    from datatask.engine.api.repositories import job_getter as job_getter
    from datatask.engine.api.session import Session as Session
    from datatask.engine.api.streams import AReadStream as AReadStream
    from datatask.engine.api.streams import AReadText as AReadText
    from datatask.engine.api.streams import AWriteStream as AWriteStream
    from datatask.engine.api.streams import AWriteText as AWriteText
    from datatask.engine.api.streams import async_copyfile as async_copyfile
    from datatask.engine.api.streams import async_copyfile_str as async_copyfile_str
    from datatask.engine.api.streams import roundrobin as roundrobin
    from datatask.engine.api.tasks import Task as Task
    from datatask.engine.run_context import identities as identities
    from datatask.schema.errors import AlreadyOpenError as AlreadyOpenError
    from datatask.schema.errors import AlreadyThereError as AlreadyThereError
    from datatask.schema.errors import CallerError as CallerError
    from datatask.schema.errors import ConflictError as ConflictError
    from datatask.schema.errors import DatataskError as DatataskError
    from datatask.schema.errors import FutureLogError as FutureLogError
    from datatask.schema.errors import InternalError as InternalError
    from datatask.schema.errors import InvalidJobError as InvalidJobError
    from datatask.schema.errors import InvalidValueError as InvalidValueError
    from datatask.schema.errors import LeaseHeldError as LeaseHeldError
    from datatask.schema.errors import LeaseLostError as LeaseLostError
    from datatask.schema.errors import LogDamagedError as LogDamagedError
    from datatask.schema.errors import LogError as LogError
    from datatask.schema.errors import NoLogError as NoLogError
    from datatask.schema.errors import (
        NothingCanProgressError as NothingCanProgressError,
    )
    from datatask.schema.errors import NotInstalledError as NotInstalledError
    from datatask.schema.errors import NotOpenError as NotOpenError
    from datatask.schema.errors import NotPossibleError as NotPossibleError
    from datatask.schema.errors import OtherPipelineError as OtherPipelineError
    from datatask.schema.errors import RunOpenError as RunOpenError
    from datatask.schema.errors import StoreError as StoreError
    from datatask.schema.errors import TemporaryError as TemporaryError
    from datatask.schema.errors import TimeLimitError as TimeLimitError
    from datatask.schema.errors import UnknownNameError as UnknownNameError
    from datatask.schema.resources import Resources as Resources
    from datatask.schema.resources import ResourceType as ResourceType
    from datatask.schema.resources import parse_quantity as parse_quantity

__version__: str

_HOME: dict[str, str] = {
    "AbstractProcessManager": "datatask.adapters.execute.base.targets",
    "AggregateAndRepository": "datatask.engine.api.repositories",
    "AggregateOrRepository": "datatask.engine.api.repositories",
    "AReadStream": "datatask.engine.api.streams",
    "AReadText": "datatask.engine.api.streams",
    "ConflictError": "datatask.schema.errors",
    "History": "datatask.adapters.history.history",
    "async_copyfile": "datatask.engine.api.streams",
    "async_copyfile_str": "datatask.engine.api.streams",
    "AWriteStream": "datatask.engine.api.streams",
    "AWriteText": "datatask.engine.api.streams",
    "backup": "datatask.adapters.history.maintenance",
    "BlobRepository": "datatask.engine.api.repositories",
    "BucketRepository": "datatask.adapters.store.bucket_repositories",
    "S3BucketInfo": "datatask.adapters.store.bucket_repositories",
    "S3BucketRepository": "datatask.adapters.store.bucket_repositories",
    "YamlMetadataBucketRepository": "datatask.adapters.store.bucket_repositories",
    "MongoMetadataRepository": "datatask.adapters.store.mongo_repositories",
    "DockerRepository": "datatask.adapters.store.registry_repositories",
    "YamlMetadataS3Repository": "datatask.adapters.store.bucket_repositories",
    "BlockingRepository": "datatask.engine.api.repositories",
    "AlreadyOpenError": "datatask.schema.errors",
    "AlreadyThereError": "datatask.schema.errors",
    "InvalidValueError": "datatask.schema.errors",
    "NoLogError": "datatask.schema.errors",
    "NotInstalledError": "datatask.schema.errors",
    "NotOpenError": "datatask.schema.errors",
    "NotPossibleError": "datatask.schema.errors",
    "OtherPipelineError": "datatask.schema.errors",
    "CallerError": "datatask.schema.errors",
    "cat_data": "datatask.adapters.wiring.verbs",
    "DatataskError": "datatask.schema.errors",
    "delete_data": "datatask.adapters.wiring.verbs",
    "dependants": "datatask.engine.api.declare",
    "DirectoryRepository": "datatask.adapters.store.directories",
    "why": "datatask.adapters.history.history",
    "ExecutorTask": "datatask.adapters.execute.functions.executors",
    "FileRepository": "datatask.adapters.store.files",
    "FileRepositoryBase": "datatask.adapters.store.files",
    "Gathered": "datatask.engine.api.gathered",
    "FutureLogError": "datatask.schema.errors",
    "inject_data": "datatask.adapters.wiring.verbs",
    "InProcessBlobRepository": "datatask.adapters.store.inprocess",
    "InProcessMetadataRepository": "datatask.adapters.store.inprocess",
    "InProcessSyncTask": "datatask.adapters.execute.functions.in_process",
    "InternalError": "datatask.schema.errors",
    "InvalidJobError": "datatask.schema.errors",
    "job_getter": "datatask.engine.api.repositories",
    "KubeFunctionTask": "datatask.adapters.execute.kube.functions",
    "KubeTask": "datatask.adapters.execute.kube.tasks",
    "launch": "datatask.adapters.wiring.verbs",
    "LeaseHeldError": "datatask.schema.errors",
    "LeaseLostError": "datatask.schema.errors",
    "Link": "datatask.engine.api.links",
    "list_data": "datatask.adapters.wiring.verbs",
    "LiveKubeRepository": "datatask.adapters.execute.kube.tasks",
    "LocalLinuxManager": "datatask.adapters.execute.local.manager",
    "LogVerified": "datatask.adapters.history.verify.verify",
    "LogBlobRepository": "datatask.adapters.store.inprocess",
    "LogDamagedError": "datatask.schema.errors",
    "LogError": "datatask.schema.errors",
    "LogMetadataRepository": "datatask.adapters.store.inprocess",
    "main": "datatask.adapters.cli.main",
    "MapRepository": "datatask.engine.api.repositories",
    "MetadataRepository": "datatask.engine.api.repositories",
    "NothingCanProgressError": "datatask.schema.errors",
    "Outcome": "datatask.adapters.wiring.rounds",
    "parse_quantity": "datatask.schema.resources",
    "Pipeline": "datatask.adapters.wiring.pipeline",
    "PodManager": "datatask.adapters.execute.kube.manager",
    "print_status": "datatask.adapters.wiring.verbs",
    "print_trace": "datatask.adapters.wiring.verbs",
    "ProcessTask": "datatask.adapters.execute.base.process_task",
    "RelatedItemRepository": "datatask.engine.api.repositories",
    "replay": "datatask.adapters.history.replay",
    "Replayed": "datatask.adapters.history.replay",
    "Repository": "datatask.engine.api.repositories",
    "Parameter": "datatask.engine.api.parameters",
    "identities": "datatask.engine.run_context",
    "ResourceManager": "datatask.engine.api.policies",
    "Resources": "datatask.schema.resources",
    "ResourceType": "datatask.schema.resources",
    "Retry": "datatask.engine.api.policies",
    "roundrobin": "datatask.engine.api.streams",
    "run": "datatask.adapters.wiring.verbs",
    "RunOpenError": "datatask.schema.errors",
    "Session": "datatask.engine.api.session",
    "shell": "datatask.adapters.wiring.verbs",
    "simulate": "datatask.adapters.sim.simulate",
    "SSHHost": "datatask.adapters.execute.ssh.connections",
    "SSHLinuxManager": "datatask.adapters.execute.ssh.manager",
    "STDOUT": "datatask.adapters.execute.base.machines",
    "Task": "datatask.engine.api.tasks",
    "StoreError": "datatask.schema.errors",
    "TemporaryError": "datatask.schema.errors",
    "TimeLimitError": "datatask.schema.errors",
    "UnknownNameError": "datatask.schema.errors",
    "update": "datatask.adapters.wiring.verbs",
    "verify": "datatask.adapters.history.verify.verify",
    "ViewRepository": "datatask.engine.api.links",
    "YamlMetadataFileRepository": "datatask.adapters.store.yamls",
    "YamlMetadataRepository": "datatask.adapters.store.yamls",
}
"""Public name -> the module that defines it."""

__all__ = ["__version__", *_HOME]  # noqa: PLE0604 - the names are strings


_FORMER = (
    "pipeline",
    "pod_manager",
    "proc_manager",
    "repository",
    "resource_manager",
    "session",
    "task",
    "utils",
)
"""pydatatask's modules. Scripts say `pydatatask.task.STDOUT` or `from pydatatask.task import STDOUT`: each of them
is this module under another name.
"""

_OWN = "write a subclass of {}, as in docs/tutorial.md"
_INNER = "it was internal to pydatatask"
_ABSENT: dict[str, str] = {
    **dict.fromkeys(
        ("S3BucketReader", "S3BucketBinaryWriter"),
        "open a repository: `async with repository.open(job, 'wb') as stream`",
    ),
    "ExecutorLiveRepo": "use the task's own set: task.live",
    "InProcessBlobStream": "open a repository: `async with repository.open(job, 'wb') as stream`",
    **dict.fromkeys(
        ("fuse", "TaskListDir", "TaskDir", "RepoDir", "LinkDir"),
        "use `datatask ls`, `cat`, `inject` and `rm`",
    ),
    "released_version": "use datatask.__version__",
    "build_env": "link the repositories and use their names in the template",
    "render_template": "link the repositories and use their names in the template",
    **dict.fromkeys(
        (
            "RepoHandlingMode",
            "ParanoidAsyncGenerator",
            "FunctionTaskProtocol",
            "SSHLinuxFile",
            "TaskNamespace",
            "get_links",
            "main_inner",
        ),
        _INNER,
    ),
}
"""pydatatask's names that are not here, and what to use. They raise `ImportError`: `from` would hide what another says."""

for _name in (*_FORMER, "main"):
    sys.modules[f"{__name__}.{_name}"] = sys.modules[__name__]


def __getattr__(name: str) -> Any:
    if name in _FORMER:
        return sys.modules[__name__]
    if name in ("simulation", "testing"):
        return import_module(f"{__name__}.{name}")
    if name == "__version__":
        from datatask.schema.version import VERSION

        return VERSION
    if name in _ABSENT:
        raise ImportError(f"pydatatask's {name} is not there in datatask: {_ABSENT[name]}", name=name)
    if name not in _HOME:
        raise AttributeError(f"module 'datatask' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
