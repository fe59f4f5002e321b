"""A model of images and texts in one space, such as CLIP, as a teacher."""

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
    checkpoint_weights,
    load_model,
)
from stillroom.stages.teachers.huggingface.pixels import ImageReader, Images
from stillroom.stages.teachers.huggingface.reading import KNOWN_OF_TOKENS, TokenModel
from stillroom.stages.teachers.huggingface.sources import Source
from stillroom.stages.teachers.huggingface.texts import Texts
from stillroom.stages.teachers.teacher import Answer
from stillroom.stages.teachers.weights import weight_files
from stillroom.storage.errors import SignalError
from stillroom.storage.folder import Ask
from stillroom.storage.signal import Values

_IMAGE, _TEXT = ("image_embeds", "image_features"), ("text_embeds", "text_features")
GIVES = dict.fromkeys((*_IMAGE, *_TEXT, *KNOWN_OF_TOKENS, "logit_scale"), "")


@dataclass(frozen=True)
class ImageTextTeacher:
    """The two towers in a checkpoint's folder, as AutoModel reads them.

    What its signals are taken from:

    - `image_embeds`, `text_embeds` (d,): of length one, as the two are compared
    - `image_features`, `text_features` (d,): the same before that
    - `ids`, `tokens`, `length`: as of EncoderTeacher
    - `logit_scale` (): by which products of the two are multiplied; the same for every row

    That factor is a constant of the model, and also `logit_scale` of the identity, where it costs no
    bytes a row. Logits of images against texts hang on what else is in a batch: a student makes them
    from the embeddings, logit_scale * image_embeds @ text_embeds.T.
    """

    name: str
    """Names the teacher's segments."""
    folder: str | Path
    """The checkpoint; its bytes are part of the identity, where it lies is not."""
    texts: Texts | None = None
    """How texts become tokens; None where no signal reads texts."""
    images: Images = field(default_factory=Images)
    """How images become what the model is given."""
    signals: Mapping[str, str] = field(
        default_factory=lambda: {"image": "image_embeds", "text": "text_embeds"}
    )
    """What each is taken from, by name."""
    encodings: Mapping[str, str] = field(default_factory=dict)
    """Encoding by signal; raw where none is named."""
    image: str = "image"
    """The column of images."""
    text: str = "text"
    """The column of texts."""
    precision: Precision = "float32"
    """In which weights are held and computed with; what is stored is float32."""
    attention: Attention = "sdpa"
    """How attention is computed."""
    device: str = "auto"
    """"auto" takes a GPU where the worker has one. Not part of the identity."""
    threads: int = 1
    """CPU threads inside one worker."""
    tokens_at_once: int = 16_384
    """Of one forward pass over texts, padding included. Not part of the identity."""

    @property
    def inputs(self) -> Sequence[str]:
        """The columns that its signals read."""
        whats = {text.partition(":")[0] for text in self.signals.values()}
        columns = {self.text: {*_TEXT, *KNOWN_OF_TOKENS}, self.image: {*_IMAGE, "logit_scale"}}
        read = [column for column, gives in columns.items() if whats & gives]
        return sorted(read) or [self.image]

    def asks(self) -> Mapping[str, Ask]:
        """Every signal; also `tokens` and `length` where texts may be cut."""
        read = self._sources(self.signals)
        reads_texts = any(source.what in _TEXT for source in read.values())
        if reads_texts and self.texts is None:
            raise SignalError(
                f"teacher {self.name!r} reads texts; say how: texts=Texts(max_tokens=...)"
            )
        cut = reads_texts and self.texts is not None and self.texts.too_long == "cut"
        counted = [self.text] if cut else []
        return sources.asked(self.signals, self.encodings, counted, f"teacher {self.name!r}")

    def identity(self) -> dict[str, Any]:
        """Weights, configuration, tokenizer, image processor, every setting; no path."""
        who = f"teacher {self.name!r}"
        folder = checkpoint_folder(self.folder, who)
        read = self.inputs
        return {
            "kind": "image and text model",
            "adapter": 1,
            **checkpoint_identity(folder, who, ["tokenizers"]),
            **(self.images.identity(folder) if self.image in read else {}),
            **(self.texts.identity(folder) if self.texts and self.text in read else {}),
            "logit_scale": logit_scale(folder),
            "inputs": list(read),
            "precision": self.precision,
            "attention": self.attention,
        }

    def load(self) -> Answer:
        """Load towers, tokenizer and image processor; FormatError where weights are lacking."""
        return _Loaded(self)

    def _sources(self, signals: Mapping[str, str]) -> dict[str, Source]:
        who, read = f"teacher {self.name!r}", {}
        for name, text in signals.items():
            of_text = text in (*_TEXT, *KNOWN_OF_TOKENS)
            column = self.text if of_text else self.image
            read[name] = sources.source_of(text, [column], GIVES, who)
        return read


def logit_scale(folder: Path) -> float | None:
    """exp of the weight `logit_scale`, read from its file alone; None where the model has none."""
    import torch
    from safetensors import safe_open

    for file in weight_files(checkpoint_weights(folder)):
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as held:
                if "logit_scale" in held.keys():  # noqa: SIM118 (it is no mapping)
                    return float(held.get_tensor("logit_scale").float().exp())
        else:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            if "logit_scale" in state:
                return float(state["logit_scale"].float().exp())
    return None


class _Loaded:
    """Both towers."""

    def __init__(self, teacher: ImageTextTeacher) -> None:
        self._teacher, self._who = teacher, f"teacher {teacher.name!r}"
        asked = {name: ask.source for name, ask in teacher.asks().items()}
        self._sources = teacher._sources(asked)
        folder = checkpoint_folder(teacher.folder, self._who)
        self._model = load_model(
            *(folder, "AutoModel", self._who),
            precision=teacher.precision,
            attention=teacher.attention,
            device=teacher.device,
        )
        whats = {source.what for source in self._sources.values()}
        self._images = ImageReader(teacher.images, folder, self._who) if whats & {*_IMAGE} else None
        self._texts = None
        if teacher.texts and whats & {*_TEXT, *KNOWN_OF_TOKENS}:
            self._texts = TokenModel(self._model, teacher.texts, folder, self._who)

    def __call__(self, batch: Batch) -> dict[str, Values]:
        import numpy as np

        found: dict[str, Values] = {}
        rows = len(next(iter(batch.values())))
        with running.inference(self._teacher.threads):
            if self._texts is not None:
                found |= self._of_texts(self._texts, batch[self._teacher.text])
            if self._images is not None:
                found |= self._of_images(self._images, batch[self._teacher.image])
            for name, source in self._sources.items():
                if source.what == "logit_scale":
                    scale = self._model.logit_scale.float().exp()
                    found[name] = np.full(rows, float(scale), np.float32)
        return {name: found[name] for name in self._sources}

    def _of_texts(self, read: TokenModel, texts: Any) -> dict[str, Values]:
        mine = {n: s for n, s in self._sources.items() if s.what in (*_TEXT, *KNOWN_OF_TOKENS)}
        tokens = read.reader.read(self._teacher.text, texts)
        found = read.collected(tokens, mine)
        for group in read.passes(tokens, mine, self._teacher.tokens_at_once):
            made = self._model.get_text_features(**group.inputs)
            for name, source in mine.items():
                if source.what in _TEXT:
                    found.stack(name, group.rows, _embedding(made, source))
        return found.values()

    def _of_images(self, reader: ImageReader, images: Any) -> dict[str, Values]:
        import torch

        pixels = torch.as_tensor(reader.read(self._teacher.image, images))
        pixels = pixels.to(self._model.device, self._model.dtype)
        made = self._model.get_image_features(pixel_values=pixels)
        mine = {n: s for n, s in self._sources.items() if s.what in _IMAGE}
        return {name: _embedding(made, source) for name, source in mine.items()}


def _embedding(made: Any, source: Source) -> Any:
    made = made.float()
    return running.array_of(running.unit(made) if source.what.endswith("_embeds") else made)
