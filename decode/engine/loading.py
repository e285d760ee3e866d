"""Models made ready to run: loaded, each with its share of the memory for pages, and what is said of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product

import torch

from trimtab.decode.config import ConfigError, EngineOptions, ModelConfig
from trimtab.decode.engine.memory import give_back, memory_limit
from trimtab.decode.engine.model_instance import ModelInstance
from trimtab.decode.errors import Violation
from trimtab.decode.models.load import LoadedModel, load
from trimtab.decode.models.sources import check_source
from trimtab.decode.request.info import ModelInfo

__all__ = ["describe", "load_models", "partners", "share_ids"]

# A pool that holds less of a model's positions (or of its context, if that is shorter) serves nobody.
_LEAST_POSITIONS = 128
# On a CPU a sequence that fits one page needs no merging of partial results, so pages are as large as memory allows.
_CPU_PAGES = (512, 256, 128, 64)
_GPU_PAGE = 64


def load_models(configs: Mapping[str, ModelConfig], options: EngineOptions) -> dict[str, ModelInstance]:
    """Load all models and share the memory for pages among those of one device: each holds as many tokens.

    Raises:
        UnsupportedModel: a model that can't be served exactly.
        ConfigError: too little memory for pages to be of use.
    """
    for name, config in configs.items():
        check_source(name, config.source)  # before the first takes its seconds
    loaded = {}
    for name, config in configs.items():
        loaded[name] = load(name, config)
        give_back()  # what reading a checkpoint and its tokenizer took
    instances = {}
    for name, model in loaded.items():
        whole = _memory_for_pages(model.device) if options.memory_bytes is None else options.memory_bytes
        share = _share(name, loaded, configs)
        memory = int(whole * share)
        size = options.page_tokens or _page_size(model, memory, options.max_batch_rows)
        most = options.max_batch_rows * -(-model.context // size)
        pages = min(memory // (model.bytes_per_token * size), most)
        least = -(-min(model.context, _LEAST_POSITIONS) // size)
        if pages < least:
            needed = math.ceil(least * size * model.bytes_per_token / share)
            accepted = f"at least {needed}, so that {name!r} has room for {least * size} tokens"
            raise ConfigError(Violation.of("engine.memory_bytes", whole, accepted))
        instances[name] = ModelInstance(model, pages, size, configs[name].template)
    return instances


def _share(name: str, loaded: Mapping[str, LoadedModel], configs: Mapping[str, ModelConfig]) -> float:
    """A model's part of the memory for pages on its device, in (0, 1]."""
    given = configs[name].memory_share
    if given is not None:
        return given
    peers = [n for n, model in loaded.items() if model.device == loaded[name].device]
    left = 1.0 - sum(configs[n].memory_share or 0.0 for n in peers)
    open_ = [n for n in peers if configs[n].memory_share is None]
    return left * loaded[name].bytes_per_token / sum(loaded[n].bytes_per_token for n in open_)


def _memory_for_pages(device: torch.device) -> int:
    """Bytes that all pages on a device may take together: an eighth of a CPU's memory, most of a GPU's free memory.

    On a CPU memory is taken as pages are first used, and kept: what has been read stays known for as long as there is
    room. A laptop of 8 GB then has 1 GB of pages.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * 0.8)
    return memory_limit() // 8


def _page_size(model: LoadedModel, memory: int, rows: int) -> int:
    """Positions per page: on a CPU the largest with which ``rows`` sequences can run side by side."""
    if model.device.type != "cpu":
        return _GPU_PAGE
    fitting = (size for size in _CPU_PAGES if memory // (model.bytes_per_token * size) >= rows)
    return next(fitting, _CPU_PAGES[-1])


def share_ids(models: Mapping[str, ModelInstance]) -> Callable[[str, str], bool]:
    """Have models of one vocabulary use the same ids; returns whether two share theirs, id for id."""
    same = {(a, b): models[a].vocabulary.same_ids(models[b].vocabulary) for a, b in product(models, repeat=2)}
    for _ in models:  # until the narrowest is known to all
        for name, model in models.items():
            model.width = min(other.width for n, other in models.items() if same[name, n])
    return lambda a, b: same[a, b]


def describe(models: Mapping[str, ModelInstance], configs: Mapping[str, ModelConfig]) -> dict[str, ModelInfo]:
    """What is said of loaded models."""
    infos = {}
    for name, instance in models.items():
        model = instance.model
        infos[name] = ModelInfo(
            name=name,
            role=configs[name].role,
            source=configs[name].source,
            architecture=model.architecture,
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(model.device),
            max_context_tokens=instance.context,
            vocab_size=instance.width,
            eos_token_ids=model.vocabulary.eos_token_ids,
            acceptance_head=model.acceptance is not None,
        )
    return partners(infos)


def partners(infos: Mapping[str, ModelInfo]) -> dict[str, ModelInfo]:
    """The same, each with the models that can nudge it and draft for it: what a request may name."""
    found = {}
    for name, info in infos.items():
        others = [o for o in infos.values() if o.name != name and "reward" not in (o.role, info.role)]
        nudging = tuple(o.name for o in others if not o.source or o.source != info.source)
        found[name] = replace(info, nudge_models=nudging, draft_models=tuple(o.name for o in others))
    return found
