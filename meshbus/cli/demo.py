"""`meshbus demo`: the main job on one machine, told step by step."""

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

    from meshbus.local.traffic import Traffic

PAUSE_S = 3.0


class _Plain:
    """Tells the story in lines."""

    def __init__(self) -> None:
        self._number = 0

    def title(self, text: str) -> None:
        self._number += 1
        print(f"{self._number}. {text}", flush=True)

    def say(self, text: str) -> None:
        print(f"   {text}", flush=True)

    def pause(self) -> None:
        """Nobody watches."""

    def watch(self, traffic: "Traffic | None") -> None:
        """Counts are for a terminal."""


class _Terminal:
    """Tells the story on a terminal, with a live count of requests by version below it."""

    COLOURS = {"v1": "white", "v2": "bright_black", "v3": "red"}  # noqa: RUF012

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console()
        self._live: Live | None = None
        self._traffic: Traffic | None = None
        self._number = 0

    def title(self, text: str) -> None:
        self._number += 1
        self._console.print(f"\n[bold]{self._number}. {text}[/bold]")

    def say(self, text: str) -> None:
        self._console.print(f"   {text}", highlight=False, markup=False)

    def pause(self) -> None:
        """Let the counts be seen."""
        time.sleep(PAUSE_S)

    def watch(self, traffic: "Traffic | None") -> None:
        """Show the counts of this traffic until told otherwise."""
        from rich.live import Live

        self._traffic = traffic
        if traffic is None:
            if self._live is not None:
                self._live.stop()
                self._live = None
        elif self._live is None:
            self._live = Live(
                get_renderable=self._counts,
                console=self._console,
                refresh_per_second=8,
                transient=True,
            )
            self._live.start()

    def _counts(self) -> "Text":
        from rich.text import Text

        traffic = self._traffic
        counts: Counter[str] = traffic.versions if traffic is not None else Counter()
        text = Text("   pages by version of reviews   ", style="dim")
        for version, count in sorted(counts.items()):
            text.append(f" {version} ", style=f"bold {self.COLOURS.get(version, 'white')}")
            text.append(str(count))
        if traffic is not None and traffic.problems:
            text.append(f"  failed {len(traffic.problems)}", style="bold red")
        return text


def demo(
    check: Annotated[
        bool, typer.Option("--check", help="No terminal: verify every step, end, exit 0 or 1.")
    ] = False,
    capture: Annotated[
        str, typer.Option("--capture", help="proxy (any user) or netns (root).")
    ] = "",
    home: Annotated[
        Path | None,
        typer.Option("--home", help="Directory of the mesh. Default: ~/.meshbus/demo."),
    ] = None,
) -> None:
    """Run Bookinfo behind real Envoys, and watch traffic shift, fail, be encrypted and limited.

    Then the mesh stays up, until Ctrl-C.
    """
    if check and home is None:
        with tempfile.TemporaryDirectory(prefix="meshbus-demo-") as folder:
            status = _run(Path(folder) / "home", capture, check=True)
    else:
        status = _run(home or Path("~/.meshbus/demo"), capture, check=check)
    raise typer.Exit(status)


def _run(path: Path, capture: str, *, check: bool) -> int:
    from meshbus.local import demo as story
    from meshbus.local.api import MeshApi
    from meshbus.local.home import Home, HomeError
    from meshbus.local.manifests import load
    from meshbus.local.progress import Progress
    from meshbus.local.up import (
        addresses_of,
        end_politely,
        end_undisturbed,
        start,
        wait_while_running,
    )

    home = Home(path)
    stage = _Terminal() if sys.stdout.isatty() and not check else _Plain()
    end_politely()
    result = 0
    try:
        with Progress() as progress:
            started = start(home, load([story.sample_path()]), capture, progress)
        story.reset(home)
        try:
            story.run_story(home, started.status, stage)
        finally:
            stage.watch(None)
        if check:
            print("every step did what it promised")
        else:
            with MeshApi(home) as api:
                lines = addresses_of(home, started.status, api.url)
            port = started.status.forwards[story.GATEWAY]
            print(f"\nBookinfo    http://localhost:{port}/productpage")
            print("\n".join(lines), flush=True)
            print("Ctrl-C ends the mesh.", file=sys.stderr)
            wait_while_running(home)
    except (HomeError, story.StepError) as error:
        print(f"meshbus demo: {error}", file=sys.stderr)
        print(f"logs are in {home.logs}", file=sys.stderr)
        result = 1
    except KeyboardInterrupt:
        print("ending the mesh", file=sys.stderr)
    finally:
        end_undisturbed(home)
    return result
