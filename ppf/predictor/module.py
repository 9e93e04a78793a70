"""The LightningModule of all predictors that Lightning trains."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
import torch.nn.functional as F  # noqa: N812
from hydra.utils import get_class
from jaxtyping import Float, Int
from lightning import LightningModule
from pydantic import Field
from torch import Tensor

from ppf.labels.table import CATASTROPHIC
from ppf.predictor.datamodule import Batch
from ppf.predictor.encoders import Encoder
from ppf.predictor.ensemble import Ensemble
from ppf.predictor.protocol import Prediction
from ppf.predictor.residual import GaussianProcess, Posterior
from ppf.predictor.scores import HeldOut, interval_factor, scores
from ppf.pruning import SiteFeatures
from ppf.ranges import Natural, NonNegative, Positive, Several


@dataclass(kw_only=True)
class Design:
    """What a learned predictor is made of.

    Args:
        encoder: `_target_`, an `Encoder`, and its arguments.
        network: `_target_`, a `Network`, and its arguments.
        optimizer: `_target_`, a torch optimizer, and its arguments.
        residual_steps: optimizer steps of the Gaussian process on the ensemble's residuals; 0:
            there is no such process.
        members: networks in the ensemble, and folds; each is trained without one fold.
        weight_decay: precision of the Gaussian prior on all parameters, relative to one mean loss.
            The prior's mean is zero.
        huber: transformed error above which the loss is linear.
    """

    encoder: dict[str, Any]
    network: dict[str, Any]
    optimizer: dict[str, Any]
    residual_steps: Natural
    members: Annotated[Several, Field(le=64)]
    weight_decay: NonNegative
    huber: Positive


class PredictorModule(LightningModule):
    """An ensemble of networks over encoded policies; it predicts without the language model.

    The excess of a policy is its log-perplexity minus that of the dense model. Networks predict
    the transformed excess, asinh(excess / knee), under a Huber loss. The transform is about linear
    below the knee of 1 nat per token, and about logarithmic above. Catastrophic policies are
    censored: their prediction only has to be as high as the limit. The prediction is the members'
    mean, transformed back to nats per token, so it is exact for the dense policy.

    Each member leaves out one fold of the training rows. Validation and calibration use
    out-of-fold predictions: the mean of the members that have not been trained on a row. After
    training, `correct` and `calibrate` are called, in this order.

    Args:
        features: of the sites.
        dense_nll: log-perplexity of the dense model on the labelling text, nats per token.
        design: networks, optimizer and loss.
    """

    noise: Float[Tensor, ""]
    widening: Float[Tensor, ""]
    dense: Int[Tensor, "1 sites"]

    def __init__(self, features: SiteFeatures, dense_nll: float, design: Design) -> None:
        super().__init__()
        self.dense_nll, self.optimizer = dense_nll, design.optimizer
        self.weight_decay, self.huber = design.weight_decay, design.huber
        space, steps = features.space, design.residual_steps
        self.encoder: Encoder = _build(design.encoder, space, features)
        self.ensemble = Ensemble(partial(_build, design.network, self.encoder), design.members)
        self.residual = GaussianProcess(space, steps=steps, huber=self.huber) if steps else None
        self.register_buffer("dense", space.dense[None])
        self.register_buffer("noise", torch.tensor(0.0))
        self.register_buffer("widening", torch.tensor(1.0))

    def forward(self, kept: Int[Tensor, "batch sites"]) -> Float[Tensor, "members batch"]:
        """Each member's prediction of the transformed excess."""
        return self._corrected(kept, self.encoder)[0]

    @torch.no_grad()
    def predict(self, kept: Int[Tensor, "batch sites"]) -> Prediction:
        """Log-perplexity in nats per token, with its calibrated standard deviation."""
        answers, variance = self._corrected(kept, self.encoder)
        if variance is None:
            variance = self._jackknife_variance(answers)
        return self._in_nats(answers.mean(0), variance, self.widening)

    @torch.no_grad()
    def correct(self, batch: Batch) -> Posterior | None:
        """Fits the Gaussian process, if there is one, to the members' residuals on these rows.

        Returns its out-of-fold prediction of each row's residual.
        """
        if self.residual is None:
            return None
        answers = self._members(batch.kept, self.encoder)
        residuals = self._error(answers, self._transformed(batch.nll).expand_as(answers))
        return self.residual.fit(self._single_cuts(), batch.kept, residuals, batch.weights.T)

    def relaxed(self, kept: Float[Tensor, "batch sites"]) -> Float[Tensor, " batch"]:
        """The mean of `predict`, also for widths between whole units; differentiable in `kept`."""
        mean = self._corrected(kept, self.encoder.relaxed)[0].mean(0).clamp(max=_LARGEST)
        return self.dense_nll + _KNEE * torch.sinh(mean)

    @torch.no_grad()
    def calibrate(self, batch: Batch, posterior: Posterior | None = None) -> Prediction:
        """Scales the standard deviation so that 90 % intervals cover 90 % of these rows.

        Rows are predicted out of fold, so training rows can be used. Catastrophic rows do not
        count, unless all rows are.

        Args:
            batch: the rows.
            posterior: the result of `correct`. Without a Gaussian process, the variance is the
                jackknife's, and the noise is fitted here.

        Returns:
            The out-of-fold predictions. The factor of a row's interval comes from the other folds.

        Source: cross-conformal prediction (arXiv 1208.0806), CV+ (arXiv 1905.02928).
        """
        answers = self._members(batch.kept, self.encoder)
        mean, target = self._out_of_fold_mean(answers, batch), self._transformed(batch.nll)
        usual = (target < _LIMIT) | (target >= _LIMIT).all()
        if posterior is None:
            error = (mean - target)[usual].abs()
            self.noise.copy_((_MAD * error.median()).clamp(min=_SMALLEST))
            variance = self._jackknife_variance(answers)
        else:
            mean, variance = mean + posterior.mean, posterior.variance
        relative = (mean - target).abs() / variance.clamp(min=_SMALLEST**2).sqrt()
        fold = batch.weights.argmin(1)

        def factor(rows: Tensor) -> Tensor:
            counted = rows & usual
            return interval_factor(relative[counted if counted.any() else rows])

        self.widening.copy_(factor(torch.ones_like(usual)))
        others = torch.stack([factor(fold != member) for member in fold.unique()])
        return self._in_nats(mean, variance, others[fold.unique(return_inverse=True)[1]])

    def training_step(self, batch: Batch) -> Tensor:
        answers = self(batch.kept)
        losses = self._loss(answers, self._transformed(batch.nll).expand_as(answers))
        fit = (losses * batch.weights.T).mean(1).sum()
        prior = sum(parameter.square().sum() for parameter in self.ensemble.stacked)
        self.log(
            "train/loss", fit / len(answers), on_step=False, on_epoch=True, batch_size=len(losses.T)
        )
        return fit + self.weight_decay / 2 * prior

    def validation_step(self, batch: Batch) -> None:
        answers = self(batch.kept)
        mean = self._out_of_fold_mean(answers, batch)
        loss = self._loss(mean, self._transformed(batch.nll)).mean()
        prediction = self._in_nats(mean, self._jackknife_variance(answers), self.widening)
        rows = HeldOut(*prediction, batch.nll, batch.ratio, torch.arange(len(batch.nll)))
        found: dict[str, Tensor | float] = {"loss": loss, **scores(rows, self.dense_nll)}
        logged = {f"validation/{name}": value for name, value in found.items()}
        self.log_dict(logged, batch_size=len(batch.nll))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        found: torch.optim.Optimizer = _build(self.optimizer, self.ensemble.parameters())
        return found

    def _corrected(
        self, kept: Tensor, encode: Callable[[Tensor], Tensor]
    ) -> tuple[Float[Tensor, "members batch"], Float[Tensor, " batch"] | None]:
        """Members' predictions plus the Gaussian process's mean, and the process's variance.

        Without a fitted process the predictions are the members' own, and the variance is None.
        """
        answers = self._members(kept, encode)
        if self.residual is None or not self.residual.fitted:
            return answers, None
        mean, variance = self.residual(kept)
        return answers + mean, variance

    def _members(
        self, kept: Tensor, encode: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "members batch"]:
        """Each member's own prediction, minus its prediction for the dense policy."""
        answers = self.ensemble(encode(torch.cat([self.dense.to(kept), kept])))
        return answers[:, 1:] - answers[:, :1]

    def _error(self, answer: Tensor, target: Tensor) -> Tensor:
        """Target minus prediction; zero where both are catastrophic."""
        capped = torch.where(target < _LIMIT, answer, answer.clamp(max=_LIMIT))
        return target.clamp(max=_LIMIT) - capped

    def _out_of_fold_mean(
        self, answers: Float[Tensor, "members batch"], batch: Batch
    ) -> Float[Tensor, " batch"]:
        """Mean prediction of the members that have not been trained on the row."""
        out_of_fold = (batch.weights.T == 0).to(answers)
        return (answers * out_of_fold).sum(0) / out_of_fold.sum(0)

    def _jackknife_variance(
        self, answers: Float[Tensor, "members batch"]
    ) -> Float[Tensor, " batch"]:
        """The jackknife's variance of the members' mean, plus the noise variance."""
        return (len(answers) - 1) * answers.var(0, correction=0) + self.noise**2

    def _in_nats(
        self, mean: Float[Tensor, " batch"], variance: Tensor, widening: Tensor
    ) -> Prediction:
        mean = mean.clamp(max=_LARGEST)
        std = variance.clamp(min=_SMALLEST**2).sqrt()
        return Prediction(
            self.dense_nll + _KNEE * torch.sinh(mean), widening * std * _KNEE * torch.cosh(mean)
        )

    def _single_cuts(self) -> Float[Tensor, "sites levels"]:
        """Mean prediction of keeping k units at one site and all units elsewhere, [site, k]."""
        sites, levels = self.dense.shape[1], int(self.dense.max()) + 1
        kept = self.dense.repeat(sites * levels, 1).view(sites, levels, sites)
        site = torch.arange(sites, device=self.device)
        kept[site, :, site] = torch.arange(levels, device=self.device).minimum(self.dense.T)
        return self._members(kept.flatten(0, 1), self.encoder).mean(0).view(sites, levels)

    def _transformed(self, nll: Tensor) -> Tensor:
        return torch.asinh((nll - self.dense_nll) / _KNEE)

    def _loss(self, answer: Tensor, target: Tensor) -> Tensor:
        """Huber loss divided by `huber`; zero where prediction and target are both catastrophic."""
        error = self._error(answer, target)
        no_error = torch.zeros_like(error)
        return F.huber_loss(error, no_error, reduction="none", delta=self.huber) / self.huber


def _build(config: Mapping[str, Any], *inputs: Any) -> Any:
    """Instantiates `_target_`."""
    arguments = dict(config)
    return get_class(arguments.pop("_target_"))(*inputs, **arguments)


_KNEE = 1.0  # nats per token
_LIMIT = math.asinh(CATASTROPHIC / _KNEE)  # transformed excess of catastrophic policies
_LARGEST = 5.0  # transformed excess; keeps sinh finite
_SMALLEST = 1e-6  # transformed error; keeps intervals wider than zero where a fit is exact
_MAD = 1.4826  # standard deviation over median absolute error of a Gaussian
