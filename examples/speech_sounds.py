"""Asterisk's telephone prompts as bands of sound, and Resemblyzer's speaker encoder."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lessons import Lesson, held_out, package_file, shuffled
from numpy.typing import NDArray

from stillroom.stages.data.rows import ArrayRows
from stillroom.stages.teachers.module import ModuleTeacher
from stillroom.storage.errors import MissingPackageError

if TYPE_CHECKING:
    from torch import Tensor, nn

SOUNDS = Path("/usr/share/asterisk/sounds")
"""Where Debian's packages asterisk-core-sounds-*-gsm put their files."""
VOICES = {
    "en": "en_US_f_Allison",
    "fr": "fr_CA_f_June",
    "it": "it_IT_m_Carlo",
    "es": "es_MX_f_Allison",
    "ru": "ru_RU_f_IvrvoiceRU",
}
KNOWN = 3
"""Voices that students train on, the first of VOICES. The others are new to them; a voice is also a
language, and two of the folders carry the same speaker's name."""
RATE, FRAMES, HOP, BANDS = 8000, 160, 80, 40
"""Samples a second, frames of a clip (1.6 s), samples from one to the next, bands of a frame."""


@cache
def lesson(folder: Path, *, sounds: str, clips: int) -> Lesson:
    """`bands` (160, 40) float32, `voice`, `told`: 1 for one clip in twenty.

    Prompts held out are the same in every language, and new voices are held out whole.
    """
    keys, bands, voices = [], [], []
    for voice, (language, name) in enumerate(VOICES.items()):
        files = shuffled(read_prompts(Path(sounds), name, language), lambda prompt: prompt[0])
        for prompt, wave in files[:clips]:
            keys.append(f"{language}/{prompt}")
            bands.append(mel(wave))
            voices.append(voice)
    told = np.array([zlib.crc32(key.encode()) // 5 % 20 == 0 for key in keys], np.int64)
    rows = ArrayRows(keys, bands=np.stack(bands), voice=np.array(voices), told=told)
    split = held_out(keys, [key.partition("/")[2] for key in keys])
    new = {key for key, voice in zip(keys, voices, strict=True) if voice >= KNOWN}
    test = set(split["test"]) | new
    splits = {
        "train": [key for key in keys if key not in test],
        "test": [key for key in keys if key in test],
    }
    return Lesson(rows, encoder(), splits)


def read_prompts(
    sounds: Path, voice: str, language: str
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """(name, wave) of each prompt of at least 1.2 s."""
    try:
        audio: Any = importlib.import_module("soundfile")
    except ImportError:
        raise MissingPackageError("soundfile is not installed: pip install soundfile") from None
    files = sorted((sounds / voice).rglob("*.gsm"))
    if not files:
        raise MissingPackageError(
            f"no .gsm files in {sounds / voice}: apt-get install asterisk-core-sounds-{language}-gsm, "
            "or name the folder of sounds with --data"
        )
    for file in files:
        how = {"format": "RAW", "subtype": "GSM610", "samplerate": RATE, "channels": 1}
        wave, _ = audio.read(file, **how)
        if len(wave) >= 1.2 * RATE:
            yield file.relative_to(sounds / voice).as_posix(), wave


def mel(wave: NDArray[np.float64]) -> NDArray[np.float32]:
    """(160, 40): energies of the first 1.6 s in frames of 25 ms, in bands of the mel scale.

    As librosa would give them to Resemblyzer for a wave at 16 kHz that is silent above 4 kHz: with
    twice the samples energies are four times as high. Volume is set to -30 dBFS; its voice activity
    detection is left out.
    """
    wave = wave[: FRAMES * HOP]
    wave = wave / (np.sqrt(np.square(wave).mean()) + 1e-6) * 10 ** (-30 / 20)
    wave = np.pad(wave, (100, FRAMES * HOP + 100 - len(wave)))
    frames = np.lib.stride_tricks.sliding_window_view(wave, 200)[::HOP][:FRAMES]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(200) / 200)
    energy = 4 * np.abs(np.fft.rfft(frames * window)) ** 2
    return (energy @ filters()).astype(np.float32)


@cache
def filters() -> NDArray[np.float64]:
    """(101, 40): triangles of area one on Slaney's mel scale from 0 to 8 kHz, over bins of 40 Hz.

    Linear below 1 kHz (15 mel), then 27 mel for every factor of 6.4 (Slaney 1998, Auditory Toolbox).
    """
    top = 15 + 27 * np.log(8) / np.log(6.4)
    mels = np.linspace(0, top, BANDS + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** (np.maximum(mels - 15, 0) / 27))
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    bins = np.arange(101)[:, None] * 40.0
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    triangles = np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)
    return np.asarray(triangles, np.float64)


def encoder() -> ModuleTeacher:
    """256 numbers of length one that say who speaks."""
    return ModuleTeacher(
        "resemblyzer",
        voice_encoder,
        inputs=("bands",),
        layers={"vector": ""},
        encodings={"vector": "float16"},
    )


def voice_encoder() -> nn.Module:
    """Three LSTM layers, the last state through one linear layer, ReLU, unit length (Wan et al. 2018,
    arXiv:1710.10467), with the weights of Resemblyzer's wheel."""
    import torch
    from torch import nn

    class Encoder(nn.Module):
        """Its parts carry the names that they have in the weights file."""

        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(BANDS, 256, 3, batch_first=True)
            self.linear = nn.Linear(256, 256)

        def forward(self, bands: Tensor) -> Tensor:
            last = self.lstm(bands)[1][0][-1]
            return nn.functional.normalize(self.linear(last).relu(), dim=-1)

    install = "pip install --no-deps resemblyzer==0.1.4"
    file = package_file("resemblyzer", "pretrained.pt", install)
    state = torch.load(file, map_location="cpu", weights_only=True)["model_state"]
    built = Encoder()
    built.load_state_dict({name: state[name] for name in built.state_dict()})
    return built
