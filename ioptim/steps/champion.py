"""Bring the champion of a target into the run, as a baseline."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from ioptim.champions import damage
from ioptim.core.artifact import Format, ModelArtifact, open_artifact
from ioptim.core.step import Context, Level, Note, Outcome, Step, Written
from ioptim.errors import StepError


class Champion(Step):
    """The model that `ioptim promote` made the champion of this recipe and target, copied into the store and sealed as it was.

    Inserted by the plan where a gate names the baseline `champion`; a recipe cannot write it. Its model has the digest it was promoted
    with, which is what the keys of later steps hold.
    """

    step: Literal["champion"] = "champion"
    accepts = frozenset[Format]()
    inserted_only = True
    per_target = True  # a note tells whether it was compiled on this hardware, so the hardware is part of its key
    not_in_key = Step.not_in_key | {"folder"}

    run_id: str = Field(description="the run that made it")
    made_by: str = Field(description="the node of that run")
    promoted: str = Field(description="when it was made the champion (UTC)")
    overridden: tuple[str, ...] = Field((), description="why that run is no pass, where it was promoted with --force all the same")
    hardware: str = Field(description="fingerprint of the machine it was compiled on")
    digest: str = Field(description="of the sealed model")
    folder: str = Field(description="where the sealed model is")

    def run(self, model: ModelArtifact | None, ctx: Context) -> Outcome:
        """`model` is None: nothing comes before it.

        Raises:
            StepError: the model is gone or has changed since it was promoted.
        """
        ctx.progress(0.0, "reading the champion")
        out = ctx.out / "model"
        try:
            shutil.copytree(self.folder, out)
        except OSError as error:
            text = f"the champion in {self.folder} cannot be copied: {error}. If another was promoted meanwhile, run again"
            raise StepError(text) from error
        if wrong := damage(out, self.digest):
            raise StepError(f"the champion in {self.folder} is damaged: {wrong}. Promote a run again: ioptim promote RUN")
        sealed = open_artifact(out)
        written = Written(
            format=sealed.format,
            entry=sealed.entry,
            inputs=sealed.inputs,
            outputs=sealed.outputs,
            assets=sealed.assets,
            facts=sealed.facts,
        )
        return Outcome(written=written, notes=tuple(self._notes(ctx)))

    def _notes(self, ctx: Context) -> Iterator[Note]:
        yield Note(text=f"the champion is {self.made_by} of run {self.run_id}, promoted {self.promoted}")
        if self.overridden:
            yield Note(text=f"it was promoted with --force, though {'; '.join(self.overridden)}", level=Level.WARNING)
        here = ctx.hardware.fingerprint
        if self.hardware != here:
            text = f"it was compiled on other hardware ({self.hardware}; here {here}) and may be slower here than one compiled here"
            yield Note(text=f"{text}, or refuse to open", level=Level.WARNING)
