"""The one LightningModule behind every predictor."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from hydra.utils import get_class
from jaxtyping import Float, Int
from lightning import LightningModule
from torch import Tensor

from ppf.errors import PPFError
from ppf.predictor.datamodule import Batch
from ppf.predictor.encoders import Encoder, Facts
from ppf.predictor.ensemble import Ensemble
from ppf.predictor.network import Network
from ppf.predictor.protocol import Prediction
from ppf.predictor.residual import Correction, GaussianProcess
from ppf.predictor.scores import NOMINAL, Scores
from ppf.records import check
from ppf.records.predictor import Predictor
from ppf.space import Space


class PredictorModule(LightningModule):
    """An ensemble of networks over encoded policies; it needs neither the model nor the bank.

    Networks are fitted to asinh(excess / knee), excess being log-perplexity above the dense
    model's, under a Huber loss that counts catastrophic policies as censored. The prediction is the
    members' mean there, taken back to nats per token, so the dense policy is always predicted
    exactly. Each member leaves out one fold of the training rows, so that validation and
    calibration use all of them, each as predicted by members that have not seen it. Training is
    followed by `correct`, `calibrate` and `condition`, in closed form. All arguments are plain, so
    that checkpoints load with `weights_only=True`.

    Args:
        space: as its `describe` gives it.
        facts: of the sites, as `Facts.plain` gives them.
        dense_nll: log-perplexity of the dense model on the labelling text, nats per token.
        encoder: `_target_`, an Encoder, and its arguments.
        network: `_target_`, a Network, and its arguments.
        residual: arguments of the Gaussian process on what the members leave over, or None.
        optimizer: `_target_`, a torch optimizer, and its arguments.
        members: of the ensemble.
        weight_decay: precision of the Gaussian prior on all parameters, as a share of one mean
            loss; its centre is zero, or where `start_from` began.
        knee: nats of excess from which on the scale is logarithmic.
        huber: transformed error from which on the loss is linear.
        catastrophic: nats of excess that tell no more: above them, a prediction may be anything
            above.
        bands: ascending edges of the ratio bands of the scores.
    """

    noise: Float[Tensor, ""]
    widening: Float[Tensor, ""]
    dense: Int[Tensor, "1 sites"]

    def __init__(
        self,
        *,
        space: dict[str, Any],
        facts: dict[str, Any],
        dense_nll: float,
        encoder: dict[str, Any],
        network: dict[str, Any],
        residual: dict[str, Any] | None,
        optimizer: dict[str, Any],
        members: int,
        weight_decay: float,
        knee: float,
        huber: float,
        catastrophic: float,
        bands: list[float],
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.dense_nll, self.optimizer = dense_nll, optimizer
        self.weight_decay, self.knee, self.huber = weight_decay, knee, huber
        self.limit = math.asinh(catastrophic / knee)
        sites = Space.restore(space)
        self.encoder = _build(encoder, Encoder, sites, Facts.restore(facts))
        self.ensemble = Ensemble(partial(_build, network, Network, self.encoder), members)
        self.residual = GaussianProcess(sites, **residual, huber=huber) if residual else None
        self.register_buffer("dense", sites.dense[None])
        self.register_buffer("noise", torch.tensor(0.0))
        self.register_buffer("widening", torch.tensor(1.0))
        self.centre: list[Tensor] = [torch.zeros(()) for _ in self.ensemble.stacked]
        self.scores = Scores(bands, dense_nll)

    def forward(self, kept: Int[Tensor, "batch sites"]) -> Float[Tensor, "members batch"]:
        """Every member's transformed excess."""
        return self._answers(kept, self.encoder)[0]

    @torch.no_grad()
    def predict(self, kept: Int[Tensor, "batch sites"]) -> Prediction:
        """Log-perplexity in nats per token, with the standard deviation that `calibrate` set."""
        answers, variance = self._answers(kept, self.encoder)
        if variance is None:
            variance = self._jackknife(answers)
        return self._in_nats(answers.mean(0), variance)

    def start_from(self, other: "PredictorModule") -> None:
        """Takes another predictor's weights, to start from and as the prior's centre.

        The same goes for the settings of its Gaussian process.

        Raises:
            PPFError: it is another network, or of another space.
        """
        mine, theirs = self.ensemble.stacked, other.ensemble.stacked
        shapes = [[p.shape[1:] for p in parameters] for parameters in (mine, theirs)]
        same = all(self.hparams[name] == other.hparams[name] for name in ("network", "residual"))
        if shapes[0] != shapes[1] or not same:
            raise PPFError(
                "the predictor of predictor.init_from has another network or space: give one that"
                " was trained with this predictor= and space=."
            )
        if self.residual is not None and other.residual is not None:
            self.residual.centre = other.residual.settings
        for parameter, start in zip(mine, theirs, strict=True):
            member = torch.arange(len(parameter)) % len(start)
            parameter.data.copy_(start.detach()[member])
        self.centre = [parameter.detach().clone() for parameter in mine]

    @torch.no_grad()
    def correct(self, batch: Batch) -> Correction | None:
        """Fits the Gaussian process to what the members leave over on these rows, if there is one.

        Returns what it would tell of each row, had it not seen the row's fold.
        """
        if self.residual is None:
            return None
        effects = self._effects()
        return self.residual.fit(effects, batch.kept, self._left(batch), batch.weights.T)

    @torch.no_grad()
    def condition(self, batch: Batch) -> None:
        """Lets the Gaussian process, if there is one, go by these rows, its settings unchanged."""
        if self.residual is not None:
            weights = batch.weights.amax(1)
            self.residual.condition(batch.kept, self._left(batch).mean(0), weights)

    def relaxed(self, kept: Float[Tensor, "batch sites"]) -> Float[Tensor, " batch"]:
        """`predict`'s mean for widths between whole units too, differentiable in `kept`."""
        mean = self._answers(kept, self.encoder.relaxed)[0].mean(0).clamp(max=_LARGEST)
        return self.dense_nll + self.knee * torch.sinh(mean)

    @torch.no_grad()
    def calibrate(self, batch: Batch, unseen: Correction | None = None) -> None:
        """Fits one factor on the standard deviation: a 90 % interval holds on these rows.

        Each row is judged by the members that have not seen it, so training rows serve.

        Args:
            unseen: as `correct` gives it; None: the variance is the jackknife's, for which the
                noise is fitted too.

        Source: cross-conformal prediction (arXiv 1208.0806), CV+ (arXiv 1905.02928).
        """
        answers = self._members(batch.kept, self.encoder)
        error = self._unseen(answers, batch) - self._target(batch.nll)
        if unseen is None:
            self.noise.copy_((_MAD * error.abs().median()).clamp(min=_SMALLEST))
            variance = self._jackknife(answers)
        else:
            error, variance = error + unseen.mean, unseen.variance
        relative = error.abs() / variance.clamp(min=_SMALLEST**2).sqrt()
        count = len(relative)
        rank = min(count, -(-9 * (count + 1) // 10))
        self.widening.copy_(relative.sort().values[rank - 1] / NOMINAL)

    def training_step(self, batch: Batch) -> Tensor:
        answers = self(batch.kept)
        losses = self._loss(answers, self._target(batch.nll).expand_as(answers))
        fit = (losses * batch.weights.T).mean(1).sum()
        prior = sum(
            (p - centre.to(p)).square().sum()
            for p, centre in zip(self.ensemble.stacked, self.centre, strict=True)
        )
        self.log(
            "train/loss", fit / len(answers), on_step=False, on_epoch=True, batch_size=len(losses.T)
        )
        return fit + self.weight_decay / 2 * prior

    def validation_step(self, batch: Batch) -> None:
        answers = self(batch.kept)
        mean = self._unseen(answers, batch)
        loss = self._loss(mean, self._target(batch.nll)).mean()
        self.log("validation/loss", loss, batch_size=len(batch.nll))
        prediction = self._in_nats(mean, self._jackknife(answers))
        self.scores.update(prediction, batch.nll, batch.ratio)

    def test_step(self, batch: Batch) -> None:
        self.scores.update(self.predict(batch.kept), batch.nll, batch.ratio)

    def on_validation_epoch_end(self) -> None:
        self._log_scores("validation")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return _build(self.optimizer, torch.optim.Optimizer, self.parameters())

    def _answers(
        self, kept: Tensor, encode: Callable[[Tensor], Tensor]
    ) -> tuple[Float[Tensor, "members batch"], Float[Tensor, " batch"] | None]:
        """Members' corrected answers, and the process's variance, if there is one."""
        answers = self._members(kept, encode)
        if self.residual is None or not self.residual.fitted:
            return answers, None
        mean, variance = self.residual(kept)
        return answers + mean, variance

    def _members(
        self, kept: Tensor, encode: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "members batch"]:
        """Members' own answers above those for the dense policy."""
        answers = self.ensemble(encode(torch.cat([self.dense.to(kept), kept])))
        return answers[:, 1:] - answers[:, :1]

    def _left(self, batch: Batch) -> Float[Tensor, "members batch"]:
        """What the members' own answers leave over; nothing where both are catastrophic."""
        answers = self._members(batch.kept, self.encoder)
        target = self._target(batch.nll).clamp(max=self.limit).expand_as(answers)
        return target - torch.where(target < self.limit, answers, answers.clamp(max=self.limit))

    def _unseen(
        self, answers: Float[Tensor, "members batch"], batch: Batch
    ) -> Float[Tensor, " batch"]:
        """The mean of the members that have not been trained on each row."""
        counted = (batch.weights.T == 0).to(answers)
        return (answers * counted).sum(0) / counted.sum(0)

    def _jackknife(self, answers: Float[Tensor, "members batch"]) -> Float[Tensor, " batch"]:
        """The jackknife's variance of the mean, with the noise."""
        return (len(answers) - 1) * answers.var(0, correction=0) + self.noise**2

    def _in_nats(self, mean: Float[Tensor, " batch"], variance: Tensor) -> Prediction:
        mean = mean.clamp(max=_LARGEST)
        std = variance.clamp(min=_SMALLEST**2).sqrt()
        return Prediction(
            self.dense_nll + self.knee * torch.sinh(mean),
            self.widening * std * self.knee * torch.cosh(mean),
        )

    def _effects(self) -> Float[Tensor, "sites levels"]:
        """The members' mean for every cut of a single site, [site, kept]."""
        sites, levels = self.dense.shape[1], int(self.dense.max()) + 1
        kept = self.dense.repeat(sites * levels, 1).view(sites, levels, sites)
        site = torch.arange(sites, device=self.device)
        kept[site, :, site] = torch.arange(levels, device=self.device).minimum(self.dense.T)
        return self._members(kept.flatten(0, 1), self.encoder).mean(0).view(sites, levels)

    def _target(self, nll: Tensor) -> Tensor:
        return torch.asinh((nll - self.dense_nll) / self.knee)

    def _loss(self, answer: Tensor, target: Tensor) -> Tensor:
        """Huber's, in units of its knee; a catastrophic policy only has to be predicted as one."""
        capped = torch.where(target > self.limit, answer.clamp(max=self.limit), answer)
        target = target.clamp(max=self.limit)
        return F.huber_loss(capped, target, reduction="none", delta=self.huber) / self.huber

    def _log_scores(self, part: str) -> None:
        self.log_dict({f"{part}/{name}": score for name, score in self.scores.compute().items()})
        self.scores.reset()


def load_predictor(path: Path | str, config: Mapping[str, Any] | None = None) -> PredictorModule:
    """A predictor from its checkpoint, ready to predict, on the CPU.

    The checkpoint may come from a stranger. It holds plain values and tensors only, and names no
    classes but those of the packaged configs and of `config`.

    Args:
        config: the run's `predictor`, as plain values.

    Raises:
        PPFError: there is no such file, or it is no predictor.
    """
    remedy = "train it again with `python train.py`"
    parts = [part for part in (config or {}).values() if isinstance(part, dict)]
    trusted = [part["_target_"] for part in parts if "_target_" in part]
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        parameters = check(checkpoint["hyper_parameters"], Predictor, path, remedy, trusted)
        module = PredictorModule(**parameters)
        module.load_state_dict(checkpoint["state_dict"])
    except PPFError:
        raise
    except FileNotFoundError as error:
        raise PPFError(
            f"there is no predictor at {path}: train one with `python train.py`."
        ) from error
    except Exception as error:  # what a damaged pickle raises is not told
        raise PPFError(f"{path} is not a predictor of this version: {remedy}.") from error
    return module.eval()


def _build(config: Mapping[str, Any], base: type, *inputs: Any) -> Any:
    """Instantiates `_target_`, a subclass of `base`."""
    arguments = dict(config)
    made = get_class(arguments.pop("_target_"))
    if not issubclass(made, base):
        raise PPFError(f"{made.__name__} is no {base.__name__}: correct the predictor's config.")
    return made(*inputs, **arguments)


_LARGEST = 5.0  # transformed excess; sinh stays finite
_SMALLEST = 1e-6  # transformed error; keeps the interval open where a fit is exact
_MAD = 1.4826  # median absolute error to standard deviation, for Gaussian errors
