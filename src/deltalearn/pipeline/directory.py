"""One run, one directory: who works in it, what it holds, and which stages are done."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from deltalearn.errors import UserError
from deltalearn.pipeline.lock import LOCK, Hold, check_place
from deltalearn.pipeline.manifest import (
    DONE,
    LEFT,
    MANIFEST,
    REOPENED,
    RUNNING,
    AnswersLeft,
    Manifest,
    StageRecord,
)
from deltalearn.pipeline.stage import Say, Stage, silent
from deltalearn.recipe import LoadedRecipe
from deltalearn.recipe.methods import FREE_TO_CHANGE
from deltalearn.util.files import now, write_text
from deltalearn.util.signals import leave_if_asked

RECIPE = "recipe.yaml"
MADE_AGAIN = ("examples",)  # what a start that failed may lose without a loss to anybody
REPLACED = "replaced"  # in a run: what --update took out of the way, by number
CHEAP = ("prompts", "overlap")  # bind no run to its settings: they are as soon done again


class RunDirectory:
    """A locked run directory whose manifest is rewritten after every stage.

    A context manager: it is left unlocked, and a first start that failed before any stage was done
    takes back what it wrote.
    """

    def __init__(
        self,
        path: Path,
        loaded: LoadedRecipe,
        *,
        update: bool = False,
        may_hold: Sequence[str] = (),
        say: Say = silent,
    ) -> None:
        """Create or reopen a run.

        Other settings are written down once a stage works for them, or all is done, so that they
        describe what is there.

        Args:
            path: The directory.
            loaded: The recipe.
            update: Let a run of other settings go on with these.
            may_hold: Names of files that a directory may have before its first run.
            say: Is told of what is taken out of the way.

        Raises:
            UserError: If another process works in it, if it holds something else, a run of another
                name, or, without `update`, one of other settings of which a stage that costs has
                begun.
        """
        self.path = path
        self.done_now = 0  # stages that had to work in this process
        self._update, self._say = update, say
        self._aside: Path | None = None  # where what is replaced goes, once something is
        self._writing = threading.Lock()
        recipe = loaded.values()
        _existing_manifest(path, may_hold)  # says what is there before anything is written
        self._hold = Hold(path, may_read=(path / MANIFEST).is_file())
        try:
            existing = check_directory(path, loaded, update, may_hold)
        except BaseException:
            self._hold.release()
            raise
        self._new = existing is None
        self.manifest = Manifest(loaded.recipe.name, recipe, recipe.get("seeds", []))
        if existing is not None:
            for kept in ("machine", "created", "day", "models", "stages", "answers", "contents"):
                setattr(self.manifest, kept, getattr(existing, kept))
        self.manifest.day = loaded.recipe.day or self.manifest.day
        changed = existing is None or existing.recipe != recipe
        self._unsaid = loaded.resolved_yaml() if changed else None

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._unsaid is not None:
            self.save()
        if kind is not None and self._new and not self.manifest.stages:
            self._take_back()
        self._hold.release()

    def _take_back(self) -> None:
        """Delete what a first start wrote of itself, unless it left more."""
        ours = {MANIFEST, RECIPE, *MADE_AGAIN}
        others = [p for p in self.path.iterdir() if p.name not in ours and p.name[0] != "."]
        if any(map(_holds_files, others)):
            return  # reference scores, answers: the next start goes on with them
        for entry in list(self.path.iterdir()):
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != LOCK:  # still held
                entry.unlink()

    # -- the manifest ------------------------------------------------------------------------

    def save(self) -> None:
        """Write run.json, and recipe.yaml if it is another one."""
        self._must_be_writable("its record changes")
        if self._unsaid is not None:
            write_text(self.path / RECIPE, self._unsaid)
            self._unsaid = None
        self.manifest.write(self.path / MANIFEST)

    def reads(self, contents: Mapping[str, Any]) -> None:
        """Note what is behind the paths that the recipe names, before anything works.

        Args:
            contents: A hash of each file, folder or model, by the key of the recipe that names it.

        Raises:
            UserError: If something else was there when a stage that costs began, and not `update`.
        """
        known = self.manifest.contents
        changed = [f"{k} (content)" for k, now in contents.items() if known.get(k, now) != now]
        if changed and not self._update and self.manifest.stages.keys() - CHEAP:
            raise UserError(_holds_another(self.path, changed))
        self.manifest.contents = {**known, **contents}

    def is_done(self, stage: Stage) -> bool:
        """Tell whether a stage finished for the same inputs and its outputs are still there."""
        record = self.manifest.stages.get(stage.name)
        if record is None or record.key != stage.key or record.state not in (DONE, LEFT):
            return False
        return all((self.path / output).exists() for output in record.outputs)

    def has_done(self, prefix: str) -> bool:
        """Tell whether all stages called so are done, and of the recipe as it is now."""
        stages = self.manifest.stages.items()
        states = {r.state for n, r in stages if n.startswith(prefix)} - {LEFT}
        return self._unsaid is None and states == {DONE}

    def counts(self, stage: str) -> dict[str, Any]:
        """Return the counts that a finished stage left."""
        return self.manifest.stages[stage].counts

    def errors(self) -> int:
        """Count the requests of all models that ended in errors."""
        stages = self.manifest.stages.items()
        return sum(
            r.counts.get("errors", 0)
            for n, r in stages
            if n.startswith("generate/") and r.state != LEFT
        )

    def reopen(self, stage: str) -> None:
        """Let a stage that is done work again: what it left is not there any more."""
        self.manifest.stages[stage] = replace(self.manifest.stages[stage], state=REOPENED)

    def leave_answers(self, stage: str, left: AnswersLeft, before: str) -> None:
        """Note what a generate stage left in the store, whose mark was `before` when it began.

        What came since is not another stage's: theirs are as they left them.
        """
        with self._writing:
            answers = self.manifest.answers
            for name, other in answers.items():
                if other.mark == before:
                    answers[name] = replace(other, mark=left.mark)
            answers[stage] = left

    def leave_others(self, stages: Collection[str]) -> None:
        """Keep stages that the recipe no longer has for the day when it has them again."""
        known = self.manifest.stages
        left = [n for n, r in known.items() if n not in stages and r.state == DONE]
        for name in left:
            known[name] = replace(known[name], state=LEFT)
            if name.startswith("tune/"):
                place = self.path / Path(known[name].outputs[0]).parent
                self._say(f"{place}: of an arm or seed that the recipe no longer has; it is kept")
        if left:
            self.save()

    def forget(self, prefix: str) -> None:
        """Drop the records of all stages called so."""
        known = self.manifest.stages
        if stale := [name for name in known if name.startswith(prefix)]:
            for name in stale:
                del known[name]
            self.save()

    # -- stages ------------------------------------------------------------------------------

    def run(self, stage: Stage, *, over: bool = True) -> bool:
        """Have a stage work unless it is done for its inputs, and record it.

        What its work for other inputs left is taken out of the way once it is prepared, not before:
        what cost something is moved into the folder `replaced`. Several stages may run at the same
        time, in threads.

        Args:
            stage: The stage.
            over: Let it take the place of what is costly.

        Returns:
            True if it had to work.

        Raises:
            UserError: If something costly is of other inputs, and not `over`.
        """
        if self.is_done(stage):
            record = self.manifest.stages[stage.name]
            if record.state == LEFT:  # the recipe has it again
                self.manifest.stages[stage.name] = replace(record, state=DONE)
                self.save()
            return False
        before = self.manifest.stages.get(stage.name)
        other = before if before is not None and before.key != stage.key else None
        lost = set(stage.costly) & set(stage.scratch)
        if other is not None and not over and self._any(lost):
            raise UserError(_holds_another(self.path, stage.changed(other)))
        self._must_be_writable(f"{stage.name} is not done")
        stage.prepare()
        with self._writing:
            if other is not None:
                self._make_way(stage, other)
            self.manifest.stages[stage.name] = StageRecord(RUNNING, stage.key, stage.parts)
            self.save()
        start = time.monotonic()
        try:
            counts = stage.work()
        except BaseException:
            self._give_up(stage)
            raise
        with self._writing:
            self.done_now += 1
            self.manifest.stages[stage.name] = replace(
                self.manifest.stages[stage.name],
                state=DONE,
                outputs=stage.outputs,
                finished=now(),
                seconds=round(time.monotonic() - start, 2),
                counts=counts,
            )
            self.save()
        leave_if_asked(f"{stage.name} is done; stopped")
        return True

    def _give_up(self, stage: Stage) -> None:
        """Leave no record of a start that left nothing that cost.

        Such a record would make mending a mistake in the settings look like another run.
        """
        if self._any(stage.costly):
            return
        with self._writing:
            self._delete(stage.scratch)
            self.manifest.stages.pop(stage.name, None)
            with suppress(OSError):  # of a full disk, say: the first error is the one to tell
                self.save()

    def _must_be_writable(self, why: str) -> None:
        if self._hold.to_read:
            raise UserError(
                f"{self.path}: a run that can only be read here, and {why}; copy it to where it "
                "can be written, or choose another --out"
            )

    def _make_way(self, stage: Stage, before: StageRecord) -> None:
        """Take what a stage left for other inputs out of the way; keep what cost something."""
        if self._any({*stage.costly} & {*stage.scratch} | {*stage.copied}):
            if self._aside is None:
                self._aside = _next_number(self.path / REPLACED)
            for path in [*stage.scratch, *stage.copied]:
                if (self.path / path).exists():
                    _keep_aside(self.path / path, self._aside / path, copy=path in stage.copied)
            changed = ", ".join(stage.changed(before))
            self._say(f"{stage.name}: again on other {changed}; what was there: {self._aside}")
        self._delete(stage.scratch)

    def _any(self, paths: Iterable[str]) -> bool:
        return any((self.path / path).exists() for path in paths)

    def _delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            place = self.path / path
            if place.is_dir():
                shutil.rmtree(place, ignore_errors=True)
            else:
                place.unlink(missing_ok=True)


def check_directory(
    path: Path, loaded: LoadedRecipe, update: bool, may_hold: Sequence[str] = ()
) -> Manifest | None:
    """Make sure that a run may work in a directory; return what run.json says, if there is one.

    Args:
        path: The directory.
        loaded: The recipe.
        update: As in `RunDirectory`.
        may_hold: Likewise.

    Raises:
        UserError: If it may not.
    """
    existing = _existing_manifest(path, may_hold)
    if existing is None:
        check_place(path)
    else:
        _check_same(path, existing, loaded, update)
    return existing


def _existing_manifest(path: Path, may_hold: Sequence[str]) -> Manifest | None:
    if not path.is_dir():
        return None
    if (path / MANIFEST).is_file():
        return Manifest.read(path / MANIFEST)
    harmless = {*may_hold, *MADE_AGAIN}
    if any(e.name not in harmless and not e.name.startswith(".") for e in path.iterdir()):
        raise UserError(
            f"{path}: not empty and not a run of deltalearn (no {MANIFEST}); choose another --out"
        )
    return None


def _keep_aside(place: Path, target: Path, *, copy: bool) -> None:
    """Move a file or folder, or copy it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        place.rename(target)
    elif place.is_dir():
        shutil.copytree(place, target)
    else:
        shutil.copy2(place, target)


def _next_number(folder: Path) -> Path:
    """The first folder below `folder`, called by a number, that is not there yet."""
    places = (folder / str(number) for number in itertools.count(1))
    return next(place for place in places if not place.exists())


def _holds_another(path: Path, changed: Iterable[str]) -> str:
    return (
        f"{path}: holds a run on other {', '.join(changed)}. Pass --update to do again what "
        f"depends on that (what was trained or scored is kept in {path / REPLACED}), or choose "
        "another --out."
    )


def _check_same(path: Path, existing: Manifest, loaded: LoadedRecipe, update: bool) -> None:
    if not existing.stages.keys() - CHEAP:
        return  # nothing is here yet that other settings could not make again
    old, new = existing.recipe, loaded.values()
    if old["name"] != new["name"]:
        raise UserError(
            f"{path}: holds the run of another recipe ({old['name']!r}, this one is "
            f"{new['name']!r}); choose another --out"
        )
    sections = ["tune", *(f"arms.{arm}.tune" for arm in loaded.recipe.arms)]
    free = {f"{section}.{key}" for section in sections for key in FREE_TO_CHANGE}
    changed = sorted(set(_differences(old, new)) - free)
    if changed and not update:
        raise UserError(
            f"{path}: holds a run with other settings ({', '.join(changed)}). Pass --update to "
            "run again what depends on them (answers and their scores are kept), or choose "
            "another --out."
        )


def _differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in {**old, **new}:
            dotted = f"{prefix}.{key}" if prefix else key
            found += _differences(old.get(key), new.get(key), dotted)
        return found
    return [] if old == new else [prefix]


def _holds_files(place: Path) -> bool:
    return place.is_file() or any(entry.is_file() for entry in place.rglob("*"))
