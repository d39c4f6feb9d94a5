"""Where a run's artifacts are: in its local folder, and for a run whose root is an address, in object storage too.

Stages work in the local folder. With an address, what is finished is published to the store, which is then what counts:
an artifact that is there is not made again, on whichever machine the run goes on, and one that is used is fetched. The
registry, one SQLite file, lives in the local folder and is copied to the store by who changes it.
"""

import errno
from collections.abc import Callable, Collection, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from lifecycle.core.artifact import MANIFEST, Artifact, ArtifactError, Draft, open_artifact
from lifecycle.core.config import ConfigError
from lifecycle.core.distributed import is_writer
from lifecycle.core.file_hashes import FileHashes
from lifecycle.core.lease import RETRY_S, InUse, Lease, LeaseError, locked
from lifecycle.core.periodic import repeated
from lifecycle.core.progress import Progress, Silent
from lifecycle.core.published import PublishedArtifacts, lacking
from lifecycle.core.shared_folder import is_apart
from lifecycle.core.store import Store, StoreError
from lifecycle.ops.registry import Version
from lifecycle.ops.registry_copy import RegistryCopy
from lifecycle.stages.config import RunConfig
from lifecycle.stages.stage import Stage

REGISTRY = "registry"  # in the store, the folder of the registry's lease
REGISTRY_LOCK = ".registry.lock"  # in the local folder
REGISTRY_WAIT_S = 90.0  # for another change, which takes seconds
LOCK_WAIT_S = 2.0  # for another process of this machine that takes what it has read
# What file systems say that hold no new folders.
_NO_FOLDERS = (errno.ENOENT, errno.EINVAL, errno.ENODEV, errno.ENOSYS, errno.EOPNOTSUPP)
FOLLOW_S = 30.0  # how often a server asks the store for a moved alias


class Artifacts(Protocol):
    """The artifacts of a run."""

    def finished(self, path: Path) -> Artifact | None:
        """The finished artifact of this local folder, which need not be there; raises nothing for a damaged one."""
        ...

    def fetch(self, artifact: Artifact, names: Collection[str] | None = None) -> None:
        """Makes sure that a finished artifact's files, all or those with these names, are in its local folder."""
        ...

    def publish(self, artifact: Artifact) -> None:
        """Makes sure that a finished artifact outlives this machine."""
        ...

    def making(self, stage: Stage, draft: Draft) -> AbstractContextManager[dict[str, Any]]:
        """Around a stage's work: what it needs of an earlier session, and what must outlive this one; yields further
        arguments of its function."""
        ...


class LocalArtifacts:
    """Those in the run's folder."""

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress

    def finished(self, path: Path) -> Artifact | None:
        """The artifact; a damaged one counts as missing, with a note."""
        try:
            return open_artifact(path)
        except ArtifactError as error:
            if self._progress is not None and (path / MANIFEST).is_file():
                self._progress.note(f"{error}: making it again")
            return None

    def fetch(self, artifact: Artifact, names: Collection[str] | None = None) -> None:
        """Nothing to do."""

    def publish(self, artifact: Artifact) -> None:
        """Nothing to do."""

    def making(self, stage: Stage, draft: Draft) -> AbstractContextManager[dict[str, Any]]:
        """Nothing to do."""
        return nullcontext({})


class StoredArtifacts:
    """Those in a store, and the local copies of some. Without a lease nothing is written to the store."""

    def __init__(
        self, store: Store, progress: Progress, lease: Lease | None = None,
        changing: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:  # fmt: skip
        self._progress, self._lease, self._changing = progress, lease, changing
        self._published = PublishedArtifacts(store) if lease is None else PublishedArtifacts(store, lease.require)

    def finished(self, path: Path) -> Artifact | None:
        """The artifact of the store; one that is only here, finished but not published, is published."""
        manifest = self._published.manifest(path.name)
        if manifest is not None:
            return Artifact(path, manifest)
        local = LocalArtifacts(self._progress).finished(path)
        if local is not None and self._lease is not None:
            self.publish(local)
        return local

    def fetch(self, artifact: Artifact, names: Collection[str] | None = None) -> None:
        """Fetches the files unless they are here: an artifact with the same manifest, or these files as it has them."""
        local, files = LocalArtifacts().finished(artifact.path), artifact.manifest.files
        if local is not None and local.manifest == artifact.manifest:
            return
        wanted = files.keys() if names is None else names
        if names is None or (names and lacking(artifact, names, FileHashes(artifact.path.parent))):
            which = "" if len(wanted) == len(files) else f"{len(wanted)} of {len(files)} files of "
            self._progress.note(f"fetching {which}{artifact.path.name} from {self._published.store.url}")
            self._published.fetch(artifact, wanted)

    def publish(self, artifact: Artifact) -> None:
        """Copies the artifact to the store."""
        self._published.publish(artifact)

    @contextmanager
    def making(self, stage: Stage, draft: Draft) -> Generator[dict[str, Any]]:
        """A training stage goes on from the newest checkpoint of the store, and its own are copied there, or if hosts
        share no folder, saved there; registering changes the registry."""
        if stage.kind == "register":
            with self._changing():
                yield {}
            return
        if stage.kind != "train":
            yield {}
            return
        from lifecycle.training.checkpoints.destination import Destination  # imports JAX
        from lifecycle.training.checkpoints.mirror import Mirror
        from lifecycle.training.checkpoints.stored import fetch_kept
        from lifecycle.training.job import CHECKPOINTS

        below = self._published.store.below(draft.final_path.name)
        if is_apart():
            to = Destination(below, self._published.require)
            yield {"to": to}
            if is_writer():
                fetch_kept(to, draft.path / CHECKPOINTS, self._progress)
            return
        mirror = Mirror(below, draft.path, CHECKPOINTS, self._progress, self._published.require)
        mirror.restore()
        with mirror.running():
            yield {}


def readable(config: RunConfig) -> Artifacts:
    """The artifacts of a run, for who only reads them."""
    return LocalArtifacts() if config.store_url is None else StoredArtifacts(Store(config.store_url), Silent())


def _make_folder(config: RunConfig) -> None:
    """Makes the run's folder; raises `ConfigError` where there can be none, as in `/proc`, which says of each new name
    that it does not exist. What else may be wrong with a folder, as the right to write, says what to do itself."""
    try:
        config.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno not in _NO_FOLDERS:
            raise
        raise ConfigError(
            f"{config.folder}: no folder can be made there ({error.strerror}); choose another place with root=FOLDER"
        ) from None


@contextmanager
def owned(config: RunConfig, progress: Progress, takes_over: bool = True) -> Generator[Artifacts]:
    """The run's artifacts, this process being the only one that makes them; raises `InUse` naming the owner, also if
    its lease has expired, unless this process `takes_over`."""
    _make_folder(config)
    with locked(config.folder):
        if config.store_url is None:
            yield LocalArtifacts(progress)
            return
        lease = Lease(Store(config.store_url, retry_s=RETRY_S), progress, takes_over=takes_over)
        with lease.holding():
            read_registry(config)
            if RegistryCopy(Store(config.store_url), config.registry_path).is_changed:
                with changing_registry(config, progress):  # a change that was killed before it was written back
                    pass
            yield StoredArtifacts(Store(config.store_url), progress, lease, lambda: changing_registry(config, progress))


@contextmanager
def changing_registry(config: RunConfig, progress: Progress) -> Generator[None]:
    """Around a change of the registry. With a store it needs the registry's own lease, which a run holds only while it
    registers; without, SQLite is enough. Raises `LeaseError`, no `InUse`: the run may be nobody's."""
    if config.store_url is None:
        yield
        return
    _make_folder(config)
    lease = Lease(Store(config.store_url, retry_s=RETRY_S).below(REGISTRY), progress, wait_s=REGISTRY_WAIT_S)
    copy = RegistryCopy(Store(config.store_url), config.registry_path, lease.require)
    with ExitStack() as held:
        try:
            held.enter_context(lease.holding())
            held.enter_context(locked(config.folder, REGISTRY_LOCK, LOCK_WAIT_S))
        except InUse as error:
            raise LeaseError(f"{error.owner}, which changes the registry; try again later") from None
        copy.pull()
        try:
            yield
        except BaseException:
            _push_if_possible(copy, progress)
            raise
        copy.push()


def _push_if_possible(copy: RegistryCopy, progress: Progress) -> None:
    """Where an error is on its way, which is the one to report."""
    try:
        copy.push()
    except (StoreError, LeaseError) as error:
        progress.note(f"the registry is written to the store by the next change or run: {error}")


def read_registry(config: RunConfig) -> None:
    """Brings the local registry of a run with a store up to date, unless a process of this machine is changing it."""
    if config.store_url is None:
        return
    _make_folder(config)
    copy = RegistryCopy(Store(config.store_url), config.registry_path)
    read = copy.read()  # before the lock: it takes minutes if the store is away
    try:
        with locked(config.folder, REGISTRY_LOCK, LOCK_WAIT_S):
            copy.take(read)
    except LeaseError:
        return


def fetch_version(config: RunConfig, version: Version) -> None:
    """Makes sure that the bundle of a registered version is in its local folder, if a run with a store made it."""
    if version.path.parent == config.folder.resolve():
        readable(config).fetch(Artifact(version.path, version.manifest))


def following_registry(config: RunConfig, tell: Callable[[str], None]) -> AbstractContextManager[None]:
    """Brings the local registry of a run with a store up to date every half minute while the block runs."""
    if config.store_url is None:
        return nullcontext()
    told = ""

    def follow() -> None:
        nonlocal told
        try:
            read_registry(config)
            told = ""
        except StoreError as error:
            if str(error) != told:
                tell(f"the registry is as it was: {error}")
            told = str(error)

    return repeated(follow, FOLLOW_S, "registry")
