"""An image model as a teacher: logits, hidden states, attention and pooled vectors of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.stages.data.rows import Batch
from stillroom.stages.teachers.huggingface import running, sources
from stillroom.stages.teachers.huggingface.checkpoint import (
    Attention,
    Precision,
    checkpoint_folder,
    checkpoint_identity,
    load_model,
)
from stillroom.stages.teachers.huggingface.pixels import ImageReader, Images
from stillroom.stages.teachers.huggingface.sources import Source
from stillroom.stages.teachers.teacher import Answer
from stillroom.storage.folder import Ask
from stillroom.storage.signal import Values

GIVES = {**running.LAYERS, **running.POOLED, "logits": ""}


@dataclass(frozen=True)
class VisionTeacher:
    """The image model in a checkpoint's folder (config.json, weights, preprocessor_config.json).

    What its signals are taken from:

    - `logits` (classes,): of a classifier
    - `hidden:k`, `hidden:all`, `last`: the states of all patches, as the model gives them; `last` is
      behind its final norm
    - `attention:k` (heads, patches, patches): inside block k, from 1
    - `mean`, `cls`, `pooler` (d,): the mean of `last` over everything in it, its first, or what the
      checkpoint's pooler makes of it; `cls:unit` has length one
    """

    name: str
    """Names the teacher's segments."""
    folder: str | Path
    """The checkpoint; its bytes are part of the identity, where it lies is not."""
    images: Images = field(default_factory=Images)
    """How images become what the model is given."""
    signals: Mapping[str, str] = field(default_factory=lambda: {"logits": "logits"})
    """What each is taken from, by name."""
    encodings: Mapping[str, str] = field(default_factory=dict)
    """Encoding by signal; raw where none is named."""
    inputs: Sequence[str] = ("image",)
    """The column of images."""
    precision: Precision = "float32"
    """In which weights are held and computed with; what is stored is float32."""
    attention: Attention = "sdpa"
    """How attention is computed: eager wherever a signal reads it; some models know no other."""
    device: str = "auto"
    """"auto" takes a GPU where the worker has one. Not part of the identity."""
    threads: int = 1
    """CPU threads inside one worker."""

    def asks(self) -> Mapping[str, Ask]:
        """Every signal."""
        self._sources()
        return sources.asked(self.signals, self.encodings, [], f"teacher {self.name!r}")

    def identity(self) -> dict[str, Any]:
        """Weights, configuration, the image processor's settings and ours; no path."""
        who = f"teacher {self.name!r}"
        folder = checkpoint_folder(self.folder, who)
        return {
            "kind": "image model",
            "adapter": 1,
            **checkpoint_identity(folder, who),
            **self.images.identity(folder),
            "inputs": list(self.inputs),
            "precision": self.precision,
            "attention": self._attention(),
        }

    def load(self) -> Answer:
        """Load the model; FormatError where the checkpoint lacks weights, as those of a classifier."""
        return _Loaded(self)

    def _sources(self) -> dict[str, Source]:
        return sources.sources_of(self.signals, self.inputs, GIVES, f"teacher {self.name!r}")

    def _attention(self) -> Attention:
        return sources.attention_for(self._sources().values(), self.attention)


class _Loaded:
    """A model and what prepares its images."""

    def __init__(self, teacher: VisionTeacher) -> None:
        self._teacher, self._who = teacher, f"teacher {teacher.name!r}"
        self._sources = teacher._sources()
        folder = checkpoint_folder(teacher.folder, self._who)
        read = {source.what for source in self._sources.values()}
        self._model = load_model(
            *(folder, "AutoModelForImageClassification" if "logits" in read else "AutoModel"),
            self._who,
            precision=teacher.precision,
            attention=teacher._attention(),
            device=teacher.device,
            unread=() if "pooler" in read else ("pooler.",),
        )
        self._reader = ImageReader(teacher.images, folder, self._who)

    def __call__(self, batch: Batch) -> dict[str, Values]:
        import torch

        found: dict[str, Values] = {}
        with running.inference(self._teacher.threads):
            for column in dict.fromkeys(source.column for source in self._sources.values()):
                pixels = torch.as_tensor(self._reader.read(column, batch[column]))
                pixels = pixels.to(self._model.device, self._model.dtype)
                mine = {n: s for n, s in self._sources.items() if s.column == column}
                whole, base = running.run(
                    self._model, pixel_values=pixels, **running.wanted(mine.values())
                )
                for name, source in mine.items():
                    found[name] = running.array_of(self._taken(whole, base, source))
        return found

    def _taken(self, whole: Any, base: Any, source: Source) -> Any:
        if source.what == "logits":
            return whole.logits
        if source.what == "attention":
            return running.attention(base, source, self._who)
        if source.what in running.POOLED:
            return running.pooled(base, source, None, self._who)
        return running.states(base, source, self._who)
