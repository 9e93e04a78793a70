"""ppf-serve: serves one model at any ratio, with an OpenAI-style API and a web page."""

from collections.abc import Sequence

from lightning import Fabric
from omegaconf import DictConfig

from ppf.cli.app import command
from ppf.errors import PPFError
from ppf.progress import say
from ppf.runtime import DynamicModel
from ppf.runtime.search_folder import check_search


def _check(cfg: DictConfig, overrides: Sequence[str]) -> None:
    if isinstance(cfg.api_key, int):
        raise PPFError(
            f"api_key={cfg.api_key} was read as a number, which may differ from the text: give"
            " 'api_key=\"TEXT\"' with both kinds of quotes, or set the variable PPF_API_KEY."
        )
    check_search(cfg)


@command(_check, one_process=True)
def main(cfg: DictConfig, fabric: Fabric) -> None:
    """Serves the search in `cfg.search` until it is stopped."""
    try:
        from ppf.server.app import create_app
        from ppf.server.process import allowed_hosts, bind, is_loopback, listen, serve
        from ppf.server.prompts import read_template
        from ppf.server.scheduler import Limits, Scheduler
    except ModuleNotFoundError as error:
        raise PPFError(
            f"serve needs the package {error.name}: run `pip install 'ppf-llm[serve]'`."
        ) from error
    key = cfg.api_key or None
    host = f"[{cfg.host}]" if ":" in cfg.host else cfg.host
    with bind(cfg.host, cfg.port) as bound:
        if key is None and not is_loopback(bound):
            say(f"Warning: host={cfg.host} lets other machines use the model: give api_key=KEY.")
        template = read_template(cfg.chat_template)
        scheduler = Scheduler(DynamicModel.from_config(cfg, fabric), Limits(**cfg.limits))
        app = create_app(
            cfg.name or scheduler.model.name,
            scheduler,
            hosts=allowed_hosts(host, bound),
            api_key=key,
            template=template,
        )
        listen(bound)
        say(f"Serving {cfg.search} on http://{host}:{bound.getsockname()[1]} (Ctrl+C stops it).")
        serve(app, scheduler, bound, cfg.log_level)
