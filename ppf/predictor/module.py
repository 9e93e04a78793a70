"""The LightningModule of all predictors that Lightning trains."""

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

from ppf.commands import invocation
from ppf.errors import PPFError
from ppf.predictor.datamodule import Batch
from ppf.predictor.encoders import Encoder
from ppf.predictor.ensemble import Ensemble
from ppf.predictor.network import Network
from ppf.predictor.protocol import Prediction
from ppf.predictor.residual import GaussianProcess, Posterior
from ppf.predictor.scores import HeldOut, interval_factor, scores
from ppf.pruning import SiteFeatures
from ppf.records import check
from ppf.records.predictor import PredictorRecord
from ppf.space import Space


class PredictorModule(LightningModule):
    """An ensemble of networks over encoded policies; it predicts without the language model.

    The excess of a policy is its log-perplexity minus that of the dense model. Networks predict
    the transformed excess, asinh(excess / knee), under a Huber loss. Catastrophic policies are
    censored: their prediction only has to be as high as the limit. The prediction is the members'
    mean, transformed back to nats per token, so it is exact for the dense policy.

    Each member leaves out one fold of the training rows. Validation and calibration use
    out-of-fold predictions: the mean of the members that have not been trained on a row. After
    training, `correct` and `calibrate` are called, in this order.

    All arguments are plain values, so that checkpoints load with `weights_only=True`.

    Args:
        space: what `Space.describe` returns.
        features: what `SiteFeatures.plain` returns.
        dense_nll: log-perplexity of the dense model on the labelling text, nats per token.
        encoder: `_target_`, an Encoder, and its arguments.
        network: `_target_`, a Network, and its arguments.
        residual: arguments of the Gaussian process on the members' residuals; None for no process.
        optimizer: `_target_`, a torch optimizer, and its arguments.
        members: number of networks in the ensemble.
        weight_decay: precision of the Gaussian prior on all parameters, relative to one mean loss.
            The prior's mean is zero, or the parameters of the predictor given to `start_from`.
        knee: excess in nats per token above which the transformed scale is about logarithmic.
        huber: transformed error above which the loss is linear.
        catastrophic: excess in nats per token above which policies are censored.
        bands: ascending edges of the ratio bands of the scores.
    """

    noise: Float[Tensor, ""]
    widening: Float[Tensor, ""]
    dense: Int[Tensor, "1 sites"]

    def __init__(
        self,
        *,
        space: dict[str, Any],
        features: dict[str, Any],
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
        self.largest = max(_LARGEST, self.limit + 1)
        sites = Space.restore(space)
        self.encoder = _build(encoder, Encoder, sites, SiteFeatures.restore(sites, features))
        self.ensemble = Ensemble(partial(_build, network, Network, self.encoder), members)
        self.residual = GaussianProcess(sites, **residual, huber=huber) if residual else None
        self.register_buffer("dense", sites.dense[None])
        self.register_buffer("noise", torch.tensor(0.0))
        self.register_buffer("widening", torch.tensor(1.0))
        self.centre: list[Tensor] = [torch.zeros(()) for _ in self.ensemble.stacked]
        self.bands = bands
        self._validated: list[tuple[Tensor, ...]] = []

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

    def check_same(self, predictor: Mapping[str, Any]) -> None:
        """Raises PPFError if a predictor of this config cannot start from this one."""
        if any(self.hparams[name] != predictor[name] for name in _SAME):
            raise _other()

    def start_from(self, other: "PredictorModule") -> None:
        """Starts from another predictor's parameters, and centres the prior on them.

        The same holds for the hyper-parameters of the Gaussian process.

        Raises:
            PPFError: the other predictor has another encoder, network, process or space.
        """
        mine, theirs = self.ensemble.stacked, other.ensemble.stacked
        shapes = [[p.shape[1:] for p in parameters] for parameters in (mine, theirs)]
        if shapes[0] != shapes[1]:
            raise _other()
        other.check_same(self.hparams)
        if self.residual is not None and other.residual is not None:
            self.residual.prior_centre = dict(other.residual.named_parameters())
        for parameter, start in zip(mine, theirs, strict=True):
            member = torch.arange(len(parameter)) % len(start)
            parameter.data.copy_(start.detach()[member])
        self.centre = [parameter.detach().clone() for parameter in mine]

    @torch.no_grad()
    def correct(self, batch: Batch) -> Posterior | None:
        """Fits the Gaussian process, if there is one, to the members' residuals on these rows.

        Returns its out-of-fold prediction of each row's residual.
        """
        if self.residual is None:
            return None
        residuals, weights = self._residuals(batch), batch.weights.T
        return self.residual.fit(self._single_cuts(), batch.kept, residuals, weights)

    def relaxed(self, kept: Float[Tensor, "batch sites"]) -> Float[Tensor, " batch"]:
        """The mean of `predict`, also for widths between whole units; differentiable in `kept`."""
        mean = self._corrected(kept, self.encoder.relaxed)[0].mean(0).clamp(max=self.largest)
        return self.dense_nll + self.knee * torch.sinh(mean)

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
        usual = (target < self.limit) | (target >= self.limit).all()
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
        mean = self._out_of_fold_mean(answers, batch)
        loss = self._loss(mean, self._transformed(batch.nll)).mean()
        self.log("validation/loss", loss, batch_size=len(batch.nll))
        prediction = self._in_nats(mean, self._jackknife_variance(answers), self.widening)
        self._validated.append((*prediction, batch.nll, batch.ratio))

    def on_validation_epoch_end(self) -> None:
        mean, std, nll, ratio = (torch.cat(x) for x in zip(*self._validated, strict=True))
        self._validated.clear()
        rows = HeldOut(mean, std, nll, ratio, torch.arange(len(nll)))
        found = scores(rows, self.bands, self.dense_nll)
        self.log_dict({f"validation/{name}": score for name, score in found.items()})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return _build(self.optimizer, torch.optim.Optimizer, self.ensemble.parameters())

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

    def _residuals(self, batch: Batch) -> Float[Tensor, "members batch"]:
        """Errors of each member's predictions."""
        answers = self._members(batch.kept, self.encoder)
        return self._error(answers, self._transformed(batch.nll).expand_as(answers))

    def _error(self, answer: Tensor, target: Tensor) -> Tensor:
        """Target minus prediction; zero where both are catastrophic."""
        capped = torch.where(target < self.limit, answer, answer.clamp(max=self.limit))
        return target.clamp(max=self.limit) - capped

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
        mean = mean.clamp(max=self.largest)
        std = variance.clamp(min=_SMALLEST**2).sqrt()
        return Prediction(
            self.dense_nll + self.knee * torch.sinh(mean),
            widening * std * self.knee * torch.cosh(mean),
        )

    def _single_cuts(self) -> Float[Tensor, "sites levels"]:
        """Mean prediction of keeping k units at one site and all units elsewhere, [site, k]."""
        sites, levels = self.dense.shape[1], int(self.dense.max()) + 1
        kept = self.dense.repeat(sites * levels, 1).view(sites, levels, sites)
        site = torch.arange(sites, device=self.device)
        kept[site, :, site] = torch.arange(levels, device=self.device).minimum(self.dense.T)
        return self._members(kept.flatten(0, 1), self.encoder).mean(0).view(sites, levels)

    def _transformed(self, nll: Tensor) -> Tensor:
        return torch.asinh((nll - self.dense_nll) / self.knee)

    def _loss(self, answer: Tensor, target: Tensor) -> Tensor:
        """Huber loss divided by `huber`; zero where prediction and target are both catastrophic."""
        error = self._error(answer, target)
        no_error = torch.zeros_like(error)
        return F.huber_loss(error, no_error, reduction="none", delta=self.huber) / self.huber


def load_predictor(path: Path | str, config: Mapping[str, Any] | None = None) -> PredictorModule:
    """Loads a predictor from its checkpoint onto the CPU, in evaluation mode.

    The checkpoint may come from a stranger. It holds plain values and tensors only, and names no
    classes but those of the packaged configs and of `config`.

    Args:
        config: the run's `predictor`, as plain values.

    Raises:
        PPFError: the file does not exist, or it is not a predictor of this version.
    """
    remedy = f"train it again with `{invocation('train')}`"
    parts = [part for part in (config or {}).values() if isinstance(part, dict)]
    trusted = [part["_target_"] for part in parts if "_target_" in part]
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        parameters = check(checkpoint["hyper_parameters"], PredictorRecord, path, remedy, trusted)
        module = PredictorModule(**parameters)
        module.load_state_dict(checkpoint["state_dict"])
    except PPFError:
        raise
    except FileNotFoundError as error:
        raise PPFError(
            f"there is no predictor at {path}: train one with `{invocation('train')}`."
        ) from error
    except Exception as error:  # torch.load documents none for damaged files
        raise PPFError(f"{path} is not a predictor of this version: {remedy}.") from error
    return module.eval()


def _other() -> PPFError:
    return PPFError(
        "the predictor of predictor.init_from has another encoder, network or space: give one"
        " that was trained with this predictor= and space=."
    )


def _build(config: Mapping[str, Any], base: type, *inputs: Any) -> Any:
    """Instantiates `_target_`, a subclass of `base`."""
    arguments = dict(config)
    made = get_class(arguments.pop("_target_"))
    if not issubclass(made, base):
        raise PPFError(
            f"{made.__name__} is not a subclass of {base.__name__}: correct the predictor's config."
        )
    return made(*inputs, **arguments)


_SAME = ("encoder", "network", "residual")
_LARGEST = 5.0  # transformed excess; keeps sinh finite, unless the catastrophic limit is higher
_SMALLEST = 1e-6  # transformed error; keeps intervals wider than zero where a fit is exact
_MAD = 1.4826  # standard deviation over median absolute error of a Gaussian
