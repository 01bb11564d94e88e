"""What the commands do with a workspace, as methods of `Workspace`: `Workspace("bot").gate()` is `gorp gate bot`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from gorp.workspace.ask import Answerer
    from gorp.workspace.config import RunConfig
    from gorp.workspace.run import RunResult


class Verbs:
    """The commands as methods. Each takes the keyword arguments of the function that it names and returns its result.

    The functions are imported when they are called, so that a workspace can be read without torch.
    """

    root: Path

    def train(self, config: "RunConfig | Path", **options: Any) -> "RunResult":
        """Train the pending tasks of a configuration or its YAML; see `gorp.workspace.run.run_sequence`."""
        from gorp.workspace.config import RunConfig, load_config
        from gorp.workspace.run import run_sequence

        settings = config if isinstance(config, RunConfig) else load_config(Path(config))
        return run_sequence(settings, self.root, **options)

    def status(self, **options: Any) -> dict[str, Any]:
        """Return the state of the workspace; see `gorp.workspace.status.status`."""
        from gorp.workspace.status import status

        return status(self.root, **options)

    def gate(self, **options: Any) -> dict[str, Any]:
        """Compare two versions on the tasks of the older one; see `gorp.workspace.gate.gate`."""
        from gorp.workspace.gate import gate

        return gate(self.root, **options)

    def diff(self, old: str | None = None, new: str | None = None, **options: Any) -> dict[str, Any]:
        """Return what differs between two versions; see `gorp.workspace.diff.diff`."""
        from gorp.workspace.diff import diff

        return diff(self.root, old, new, **options)

    def promote(self, **options: Any) -> dict[str, Any]:
        """Make a later version the current one, if the gate accepts it; see `gorp.workspace.promote.promote`."""
        from gorp.workspace.promote import promote

        return promote(self.root, **options)

    def rollback(self, **options: Any) -> dict[str, Any]:
        """Make an earlier version the current one, if it answers as it did; see `gorp.workspace.rollback.rollback`."""
        from gorp.workspace.rollback import rollback

        return rollback(self.root, **options)

    def ask(self, **options: Any) -> "Answerer":
        """Load a version, to be called with questions; see `gorp.workspace.ask.Answerer.load`."""
        from gorp.workspace.ask import Answerer

        return Answerer.load(self.root, **options)

    def gc(self, **options: Any) -> dict[str, Any]:
        """Remove what the workspace no longer needs; see `gorp.workspace.gc.collect`."""
        from gorp.workspace.gc import collect

        return collect(self.root, **options)

    def report(self, path: Path | str) -> None:
        """Write a self-contained HTML page about the workspace to `path`; see `gorp.workspace.page`."""
        from gorp.report import write_page
        from gorp.workspace.overview import overview
        from gorp.workspace.page import workspace_page

        write_page(workspace_page(overview(self.root), self.root.resolve().name), Path(path))
