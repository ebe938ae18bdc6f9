"""The command line: arguments to one library call, and a line that says where the result is.

Exit codes: 0 done, 1 a run failed or a file could not be read or written, 2 bad input, 130 interrupted. A user never
sees a traceback for a mistake.
"""

import argparse
import contextlib
import io
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dreamkit.errors import InputError, RunError, out_of_memory

OUT_OF_MEMORY = (
    "memory ran out. Try a smaller --set batch, a smaller prior or picture, or another --device; a run that was begun "
    "stands at its last checkpoint."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    given = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # the name of a file may be no text, or none that a terminal can show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _plain_warnings():
            given.command(given)
        print(end="", flush=True)
    except InputError as error:
        print(f"dreamkit: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"dreamkit: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read has read enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python's last flush is quiet too
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"dreamkit: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(f"dreamkit: {OUT_OF_MEMORY} ({reason})", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"dreamkit: {stop.args[0] if stop.args else 'interrupted.'}", file=sys.stderr)
        return 130
    return 0


def generate(given: argparse.Namespace) -> None:
    from dreamkit import api

    with _Progress() as progress:
        result = api.generate(
            _prompt(given.prompt),
            system=given.system,
            guidance=given.guidance,
            representation=given.representation,
            prior=given.prior,
            start=given.start,
            keep=given.keep,
            source_prompt=given.source_prompt,
            seed=given.seed,
            steps=given.steps,
            out=given.out,
            device=given.device,
            settings=_settings(given.set),
            watch=progress.watch,
            note=progress.note,
        )
    _report(result)


def resume(given: argparse.Namespace) -> None:
    from dreamkit import api

    with _Progress() as progress:
        result = api.resume(given.run, device=given.device, watch=progress.watch, note=progress.note)
    _report(result)


def export(given: argparse.Namespace) -> None:
    from dreamkit import api

    settings = _settings(given.set)
    if given.formats is not None:
        settings["formats"] = tuple(name.strip() for name in given.formats.split(","))
    if api.is_file(given.run):
        _convert(given, settings)
        return
    if given.out is not None:
        raise InputError(f"--out is for files; those of a run go into its folder, {given.run}")
    with _Progress() as progress:
        result = api.export(given.run, settings=settings, device=given.device, note=progress.note)
    _report(result)


def _convert(given: argparse.Namespace, settings: dict[str, Any]) -> None:
    from dreamkit import api

    if given.out is None:
        raise InputError(f"say where the files made of {given.run} go: --out FOLDER")
    with _Progress() as progress:
        exported = api.convert(given.run, given.out, settings=settings, device=given.device, note=progress.note)
    print(f"{', '.join(str(file) for file in exported.files)}  {exported}")


def render(given: argparse.Namespace) -> None:
    from dreamkit import api

    folder = api.render(given.run, views=given.views, size=given.size, elevation=given.elevation, device=given.device)
    print(f"{given.views} view{'s' * (given.views > 1)} in {folder}")


def evaluate(given: argparse.Namespace) -> None:
    from dreamkit import api
    from dreamkit import evaluate as evaluation

    with _Progress() as progress:
        report, file = api.evaluate(given.run, clip=given.clip, out=given.out, device=given.device, note=progress.note)
    for line in evaluation.lines(report):
        print(line)
    print(f"{file}, {file.with_suffix('.html')}")


def toybox(given: argparse.Namespace) -> None:
    from dreamkit.toybox import gallery

    if given.what == "show":
        print(gallery.write(given.out))
    else:
        for name, text in gallery.words().items():
            print(f"{name:10} {text}")
        if missing := gallery.unknown():
            print(f"not known to the prior that ships: {', '.join(missing)}")


def doctor(given: argparse.Namespace) -> None:
    from dreamkit import doctor

    for name, value in doctor.findings():
        print(f"{name:24} {value}")


def show(given: argparse.Namespace) -> None:
    from dreamkit import doctor

    for kind, entries in doctor.catalogue(given.what).items():
        print(f"{kind}")
        for name, text in entries.items():
            print(f"  {name:16} {text}")


def _report(result: Any) -> None:
    from dreamkit.export import Several

    exported, path = result.exported, result.run.path
    for one in exported.each if isinstance(exported, Several) else (exported,):
        folder = one.files[0].parent
        shown = [folder / name for name in ("preview.png", "turntable.mp4", "preview.html")]
        others = [file.name for file in (*one.files[1:], *shown) if file.exists()]
        print(f"{one.files[0]}  {one}")
        if others:
            print(f"also there: {', '.join(others)}")
    if isinstance(exported, Several):
        print(f"{path / 'preview.png'}  all of them")


def _prompt(words: list[str]) -> str:
    if len(words) > 1:
        raise InputError(f'a prompt of several words goes in quotes: "{" ".join(words)}"')
    return words[0]


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings as one line each, without their place in the code."""

    def plain(message: Warning | str, kind: type[Warning], file: str, number: int, line: str | None = None) -> str:
        return f"dreamkit: warning: {message}\n"

    kept, warnings.formatwarning = warnings.formatwarning, plain  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.formatwarning = kept


def _settings(pairs: list[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InputError(f"--set takes key.path=value; got {pair!r}. For example: --set steps=300")
        settings[key.strip()] = value
    return settings


class _Progress:
    """A bar with the time left and the figures that matter; plain lines where there is no terminal."""

    def __enter__(self) -> "_Progress":
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description:9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task: Any = None
        self.began = time.monotonic()
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def note(self, text: str) -> None:
        """What is being done now."""
        if self.task is not None:
            self.bar.update(self.task, description=text)
        if self.task is None or not self.console.is_terminal:
            self._line(text)

    def watch(self, step: int, steps: int, figures: dict[str, Any]) -> None:
        """One step is done."""
        guide, seconds = figures["guide0"], figures["seconds"]
        parts = "  ".join(f"{name} {1000 * value:.0f}" for name, value in seconds.items())
        text = (
            f"covered {figures['coverage']:.0%}  fog {figures['opacity_entropy']:.2f}  "
            f"gradient {guide['norm']:.1f} at k {guide['k']:.1f}  ms: {parts}"
        )
        if self.task is None:
            self.task = self.bar.add_task("optimise", total=steps, completed=step - 1, figures="")
        self.bar.update(self.task, completed=step, figures=text)
        if not self.console.is_terminal and (step % 50 == 0 or step == steps):
            self._line(f"step {step}/{steps}  {text}")

    def _line(self, text: str) -> None:
        line = f"{time.monotonic() - self.began:6.1f} s  {text}"
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dreamkit",
        description="Text to textured 3D meshes by score distillation.",
        epilog='The first asset: dreamkit generate "a red mug"',
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function)
        return sub

    sub = command("generate", generate, "make an asset from a prompt")
    sub.add_argument("prompt", nargs="+", metavar="PROMPT", help='what to make, in quotes, such as "a red mug"')
    sub.add_argument("--system", help="a system's name or a .py file (default: toybox; with another prior dreamfusion)")
    sub.add_argument(
        "--guidance",
        help="a rule in the place of the system's, such as nfsd; as a rule levels and guidance scale stay the system's",
    )
    sub.add_argument("--representation", help="a representation in the place of the system's, such as nerf")
    sub.add_argument("--prior", help="toybox, a diffusers pipeline folder, or a hub id")
    sub.add_argument(
        "--from",
        dest="start",
        type=Path,
        metavar="RUN|FILE",
        help="begin with the scene of a run, a mesh, or splats; for a system that wants a sketch, a mesh",
    )
    sub.add_argument("--keep", choices=("geometry",), help="leave the shape of a mesh as it is")
    sub.add_argument("--source-prompt", help="for rules that edit: what that scene is (default: its own prompt)")
    sub.add_argument("--seed", type=int, default=0, help="another seed, another asset (default: %(default)s)")
    sub.add_argument("--steps", type=int, help="total steps (default: the system's)")
    sub.add_argument("--out", type=Path, help="the run folder (default: outputs/<prompt>/<time>-<system>-<seed>)")
    _add_device(sub)
    _add_set(sub, "any field of the recipe, such as guides.0.rule.trust.scale=20")
    sub = command("resume", resume, "go on with an interrupted run")
    sub.add_argument("run", type=Path, help="a run folder")
    sub.add_argument("--device", help="auto, cpu, cuda (default: the one the run was begun on)")
    sub = command("export", export, "write a run's files again from its last checkpoint, or a file as other files")
    sub.add_argument("run", type=Path, metavar="RUN|FILE", help="a run folder, or a file of a mesh or of splats")
    sub.add_argument("--formats", help="some of glb,obj,ply,stl,usdz,splat-ply,splat-glb")
    sub.add_argument("--out", type=Path, metavar="FOLDER", help="where files made of a file go")
    _add_device(sub)
    _add_set(sub, "any field of Export, such as splats=5000")
    sub = command("render", render, "pictures of a run's scene from all round")
    sub.add_argument("run", type=Path, help="a run folder")
    sub.add_argument("--views", type=int, default=8, help="how many, evenly round the object (default: %(default)s)")
    sub.add_argument("--size", type=int, default=256, help="pixels along each side (default: %(default)s)")
    sub.add_argument("--elevation", type=float, default=15.0, help="degrees above the horizon (default: 15)")
    _add_device(sub)
    sub = command("eval", evaluate, "numbers for finished runs: as a table, as JSON, as a page")
    sub.add_argument("run", type=Path, nargs="+", help="run folders")
    sub.add_argument("--out", type=Path, help="the JSON file (default: eval.json in the run; for several, in outputs/)")
    sub.add_argument("--clip", type=Path, metavar="MODEL_FOLDER", help="also CLIP score and R-precision by this model")
    _add_device(sub)
    sub = command("toybox", toybox, "the toybox's world: its words, or a page of samples")
    sub.add_argument("what", nargs="?", choices=("words", "show"), default="words", help="words, or a page of samples")
    sub.add_argument("--out", type=Path, default=Path("outputs/toybox.html"), help="the page (default: %(default)s)")
    command("doctor", doctor, "what is installed, and what will be used")
    sub = command("list", show, "what there is to choose from")
    kinds = ("systems", "guidance", "priors", "representations")
    sub.add_argument("what", nargs="?", choices=kinds, help="default: all")
    return parser


def _add_device(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")


def _add_set(sub: argparse.ArgumentParser, text: str) -> None:
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=text)


if __name__ == "__main__":
    sys.exit(main())
