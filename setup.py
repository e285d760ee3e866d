"""Packaging: the top-level folders are installed as parts of the namespace ``trimtab``; there is no trimtab/ folder.

Top-level packages named ``kernels`` or ``server`` would collide with others in a user's environment, so the
distribution owns nothing but ``trimtab``. ``kernels/`` has no ``__init__.py`` on purpose: transformers probes for a
package of that name, and run from here it would import ours.
"""

from pathlib import Path

from setuptools import setup

FOLDERS = {
    "trimtab": "decode/main",  # nothing but __main__.py: it stays a namespace
    "trimtab.decode": "decode",
    "trimtab.kernels": "kernels",
    "trimtab.server": "server",
    "trimtab.v1": "server/proto/trimtab/v1",
    "trimtab.bench": "bench",
}

# Every folder with Python files, by name: a test compares this list with the tree.
PACKAGES = [
    *FOLDERS,
    "trimtab.bench.decode",
    "trimtab.bench.kernels",
    "trimtab.bench.nudging",
    "trimtab.bench.public",
    "trimtab.bench.reproduce",
    "trimtab.bench.searches",
    "trimtab.bench.speculation",
    "trimtab.bench.training",
    "trimtab.decode.display",
    "trimtab.decode.engine",
    "trimtab.decode.methods",
    "trimtab.decode.methods.draws",
    "trimtab.decode.methods.policies",
    "trimtab.decode.methods.searches",
    "trimtab.decode.models",
    "trimtab.decode.request",
    "trimtab.decode.rewards",
    "trimtab.decode.text",
    "trimtab.kernels.cpu",
    "trimtab.kernels.triton",
    "trimtab.server.cli",
    "trimtab.server.rpc",
    "trimtab.server.wire",
]

# What parts need beside the library itself; ``trimtab.decode.errors.MissingExtra`` names one of these.
EXTRAS = {
    # ``trimtab serve`` and ``demo``, ``trimtab generate --server`` and the clients. The generated code is made with
    # grpcio-tools 1.75.1 (protobuf 6.31.1), and newer runtimes accept it.
    "server": [
        "grpcio>=1.75.1",
        "grpcio-status>=1.75.1",
        "grpcio-health-checking>=1.75.1",
        "grpcio-reflection>=1.75.1",
        "googleapis-common-protos>=1.65",
        "protobuf>=6.31.1,<8",
    ],
    # The bundled models: transformers reads their GGUF files with these two. Once converted, nothing needs them.
    "models": ["gguf>=0.17", "accelerate>=1.1"],
    "bench": ["matplotlib"],
    # What some types of rewards import: json, readability, profanity, bleu, language, and fitting "logistic".
    "rewards": [
        "alt-profanity-check>=1.6",
        "jsonschema>=4.18",
        "langdetect",
        "sacrebleu>=2.4",
        "scikit-learn>=1.4",
        "textstat>=0.7.6,<0.7.9",  # later ones fetch their dictionary over the network when they are used
    ],
    # What votes of extract="math" compare answers with.
    "math": ["math-verify[antlr4_13_2]>=0.9,<0.10"],
}

setup(
    name="trimtab",
    version="0.1.0",
    description="Align a large language model while it decodes, without training it.",
    long_description=Path("README.md").read_text(encoding="utf-8") if Path("README.md").exists() else "",
    long_description_content_type="text/markdown",
    author="The trimtab authors",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=PACKAGES,
    package_dir=FOLDERS,
    package_data={
        "trimtab.decode": ["py.typed", "models/drafts/*/*"],
        "trimtab.kernels": ["py.typed"],
        "trimtab.server": ["py.typed"],
        "trimtab.bench": ["py.typed", "public/rows.json"],
        "trimtab.v1": ["py.typed", "*.proto", "*.pyi"],
    },
    install_requires=[
        "torch>=2.11",
        "transformers>=5.17,<6",
        "numpy>=1.26",
        "tokenizers",
        "safetensors",
        "jinja2",
        "filelock",
        "regex",
        "tqdm",
    ],
    extras_require={
        **EXTRAS,
        "all": sorted({requirement for extra in EXTRAS.values() for requirement in extra}),
        # On a GPU, torch brings the Triton it was built with; this extra is for the interpreter on a CPU.
        "triton": ['triton; platform_system == "Linux"'],
        # What IFEval's checkers import; they are files of lm-eval, to be had without its own needs (pip --no-deps).
        # What `trimtab bench data` reads the Hugging Face hub with.
        "data": ["datasets>=4"],
        "eval": ["immutabledict", "langdetect", "nltk>=3.9.1"],
        "dev": [
            "hypothesis",
            "mypy>=1.18",
            "packaging",
            "pandas>=2.2",
            "pdoc>=16",
            "pytest>=8.3",
            "pytest-xdist>=3.8",
            "ruff>=0.14",
            "setuptools>=77",
            "types-grpcio",
            "types-grpcio-health-checking",
            "types-grpcio-reflection",
            "types-grpcio-status",
            "types-protobuf",
            "wheel",
        ],
    },
    entry_points={
        "console_scripts": ["trimtab = trimtab.decode.commands:main"],
        "trimtab.commands": [
            "methods = trimtab.decode.listing:register",
            "models = trimtab.decode.models.commands:register",
            "server = trimtab.server.cli.commands:register",
            "bench = trimtab.bench.commands:register",
        ],
        # What votes are counted by is added under "trimtab.extractors"; see trimtab.decode.methods.searches.extractors.
        # Types of rewards: factories, called with the options of a table [rewards.NAME].
        "trimtab.rewards": [
            "bleu = trimtab.decode.rewards.overlap:bleu",
            "calibrated = trimtab.decode.rewards.calibration:calibrated",
            "case = trimtab.decode.rewards.constraints:case",
            "certainty = trimtab.decode.rewards.likelihood:certainty",
            "classifier = trimtab.decode.rewards.classifier:classifier",
            "constraints = trimtab.decode.rewards.constraints:constraints",
            "implicit = trimtab.decode.rewards.likelihood:implicit",
            "json = trimtab.decode.rewards.constraints:json_format",
            "judge = trimtab.decode.rewards.judge:judge",
            "keywords = trimtab.decode.rewards.constraints:keywords",
            "length = trimtab.decode.rewards.constraints:length",
            "likelihood = trimtab.decode.rewards.likelihood:likelihood",
            "logistic = trimtab.decode.rewards.logistic:logistic",
            "pairwise_judge = trimtab.decode.rewards.judge:pairwise_judge",
            "profanity = trimtab.decode.rewards.wording:profanity",
            "profile = trimtab.decode.rewards.profile:profile",
            "python = trimtab.decode.rewards.functions:python",
            "readability = trimtab.decode.rewards.wording:readability",
            "regex = trimtab.decode.rewards.constraints:regex",
            "similarity = trimtab.decode.rewards.similarity:similarity",
        ],
    },
)
