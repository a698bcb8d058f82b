"""Sets of jobs with a value each: what all repositories can do, those derived from others, and opaque ones.

Repositories whose values live somewhere (in the process, in files, in the log, in buckets) are adapters and
build on `StoredRepository`; nothing in this folder touches the world.
"""

from datatask.engine.api.repositories.derived import (
    AggregateAndRepository,
    AggregateOrRepository,
    BlockingRepository,
    RelatedItemRepository,
    job_getter,
)
from datatask.engine.api.repositories.listing import ListedStore, told_invalid
from datatask.engine.api.repositories.repository import (
    BlobRepository,
    DerivedLeaf,
    MapRepository,
    MetadataRepository,
    Repository,
    all_leaves,
)
from datatask.engine.api.repositories.stored import StoredBlobRepository, StoredRepository

__all__ = [
    "AggregateAndRepository",
    "AggregateOrRepository",
    "BlobRepository",
    "BlockingRepository",
    "DerivedLeaf",
    "ListedStore",
    "MapRepository",
    "MetadataRepository",
    "RelatedItemRepository",
    "Repository",
    "StoredBlobRepository",
    "StoredRepository",
    "all_leaves",
    "job_getter",
    "told_invalid",
]
