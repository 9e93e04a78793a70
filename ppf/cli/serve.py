"""ppf-serve: one resident model at any ratio, behind an OpenAI-style interface and a page."""

from pathlib import Path

from lightning import Fabric
from omegaconf import DictConfig

from ppf.cli.app import command
from ppf.errors import PPFError
from ppf.progress import say
from ppf.runtime import DynamicModel


@command("serve", one_process=True)
def main(cfg: DictConfig, fabric: Fabric) -> None:
    """Serves the search in `cfg.search` until it is stopped."""
    try:
        import uvicorn

        from ppf.server.app import create_app
    except ModuleNotFoundError as error:
        raise PPFError(
            f"serve.py needs the package {error.name}: run `pip install 'ppf-llm[serve]'`."
        ) from error
    model = DynamicModel.from_config(cfg, fabric)
    app = create_app(model, cfg.name or Path(str(model.lm.model.name_or_path)).name)
    say(f"Serving {cfg.search} on http://{cfg.host}:{cfg.port} (Ctrl+C stops it).")
    uvicorn.run(app, host=cfg.host, port=cfg.port, log_level=cfg.log_level)


if __name__ == "__main__":
    main()
