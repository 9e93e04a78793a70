"""The commands on pretended GPUs: no operation mixes devices, wherever the layers' weights lie."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from hydra.utils import instantiate

from ppf.cli.app import run
from ppf.conf import read_option
from ppf.llm import load
from ppf.pruning.compensation import LeastSquares
from ppf.pruning.sequential import refit_sequentially
from ppf.runtime import DynamicModel
from ppf.server.app import create_app
from ppf.server.scheduler import Scheduler
from tests.articles import write_articles
from tests.checkpoints import CHECKPOINTS, policies, pruner_of, random_model, random_windows
from tests.composing import command_config
from tests.pretended_gpu import pretended_gpus

REAL = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU")
pytestmark = [REAL, pytest.mark.slow]
PLACES = [  # overrides that place the layers' weights; without any, they lie on the GPU
    pytest.param(("model.offload=cpu",), id="offload-cpu"),
    pytest.param(("model.device_map=auto",), id="two-gpus"),
]
TEXT = ("text.window=32", "text.windows={calibration:4,labelling:2,test:2}")
LAYERS = "model.source.config.num_hidden_layers=2"
MODEL = ("model=tiny", LAYERS, "space.channel_multiple=16", "space.query_heads=true", *TEXT)
STATIC = (
    *("search.rounds=2", "search.top_k=2", "search.selection_windows=2", "predictor.windows=2"),
    *("agent.iterations=10", "agent.descents=2", "predictor.steps=2"),
    *("agent.polish.generations=1", "agent.polish.children=8", "predictor.fewest=6"),
)
DYNAMIC = (
    *("mode=dynamic", "agent.episodes=8", "agent.iterations=2", "search.rounds=1"),
    *("search.points=2", "search.stride=1", "search.polish.generations=1", "labels.count=12"),
    *("predictor.members=2", "trainer.max_epochs=1", "predictor.residual_steps=2"),
)
REFIT = "refit_windows=2"
RECOVERY = (
    *("text.training.windows.validation=4", "recovery.batch=4", "recovery.micro_batch=2"),
    *("recovery.tokens=256", "recovery.validate_every=2", "text.window=32"),
)


class Commands:
    """Commands on pretended GPUs, in one folder."""

    def __init__(self, folder: Path, cache: str, place: tuple[str, ...]) -> None:
        self.folder, self.place = folder, place
        self.paths = (f"paths.artefacts={folder}/artefacts", f"paths.cache={cache}")
        self.text = f"text.path={write_articles(folder)}"

    def __call__(self, name: str, *given: str, run_in: str | None = None) -> Path:
        """Runs a command; returns its folder."""
        folder = self.folder / (run_in or name)
        overrides = ["logger=none", *self.paths, f"paths.run={folder}", *given]
        run(name, command_config(name, overrides))
        return folder

    def search(self, *given: str, run_in: str = "search") -> Path:
        return self("search", self.text, *MODEL, *self.place, *given, run_in=run_in)


@pytest.fixture(scope="module", params=PLACES)
def commands(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cache: str
) -> Iterator[Commands]:
    with pretended_gpus(2):
        yield Commands(tmp_path_factory.mktemp("commands"), cache, request.param)


def test_a_policy_is_found_evaluated_pruned_and_recovered(commands: Commands) -> None:
    policy = f"policy={commands.search(*STATIC, REFIT)}/policy.json"
    commands("evaluate", policy, REFIT)
    commands("prune", policy, REFIT, f"out={commands.folder}/pruned")
    tune = "lora" if "offload" in str(commands.place) else "full"
    commands("recover", commands.text, policy, f"tune={tune}", REFIT, *RECOVERY)


def test_a_chain_of_searches_its_recovery_and_its_server(commands: Commands) -> None:
    chain = ("mode=chain", "search.points=2", "ratios=[0.3]", "report_test=true")
    folders = [commands.search(*STATIC, *chain, run_in="chain")]
    if "offload" not in str(commands.place):  # recover.py refuses it
        given = (f"search={folders[0]}", "ratios=[0.3]", f"out={commands.folder}/agent")
        commands("recover", commands.text, *given, *RECOVERY, run_in="recover-chain")
        folders.append(commands.folder / "agent")
    for number, folder in enumerate(folders):
        commands("prune", f"search={folder}", "ratio=0.3", run_in=f"prune-chain-{number}")
        generate(commands, folder)


def generate(commands: Commands, searched: Path) -> None:
    """The server answers at two ratios."""
    model = DynamicModel.from_search(searched, *commands.paths)
    scheduler = Scheduler(model, instantiate(read_option("", "serve").limits))
    app = create_app("tiny", scheduler, hosts=["localhost"], api_key=None)
    with TestClient(app, "http://localhost") as client:
        for ratio in (0.0, 0.3):
            asked = {"model": "tiny", "prompt": "Some text", "max_tokens": 4}
            answer = client.post("/v1/completions", json=asked | {"pruning_ratio": ratio})
            assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("commands", [()], indirect=True, scope="module")
def test_a_search_for_all_ratios_that_trains_an_agent(commands: Commands) -> None:
    commands.search(*DYNAMIC, "ratios=[0.3]", run_in="dynamic")


@pytest.mark.parametrize("name", ["llama-groups-of-3-tied", "gemma3-one-kv-head-tied"])
@pytest.mark.parametrize("place", [{"offload": "cpu"}, {"device_map": "auto"}])
def test_a_model_with_an_empty_layer_is_refitted(
    name: str, place: dict[str, str], tmp_path: Path, cache: str
) -> None:
    made, windows = random_model(CHECKPOINTS[name]), random_windows()
    for part in (made.model, made.tokenizer):
        part.save_pretrained(tmp_path)
    config = read_option("model", "tiny")
    config.update({"path": str(tmp_path), "dtype": "float32", **place})
    with pretended_gpus(2):
        lm = load(config, cache, device=torch.device("cuda", 0))
        pruner = pruner_of(lm, LeastSquares(0.01, 0.01))
        pruner.apply(policies(pruner.space)["a layer empty"])
        refit_sequentially(pruner, windows, windows[:, :1], LeastSquares(0.01, 0.01))
