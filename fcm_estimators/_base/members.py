"""Members of a model: nets that were each trained without some patients, and their agreement."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import pandas as pd
import torch

from fcm_estimators._base.running import kept_outputs, net_for
from fcm_estimators._cells.rows import SampleCells
from fcm_estimators._checks import listed
from fcm_estimators.nn.reluformer import ScaledModule, SetModule
from fcm_estimators.nn.streaming import streamed_contexts

# The members see this share of a sample's cells as context, and judge at most this share of them;
# but at least so many, so that small samples are judged whole.
_SHARE, _FEWEST_SEEN, _FEWEST_JUDGED = 0.02, 2_000, 3_000
# A cell may belong to a class if any net gives it these log-odds, a probability of 5 %.
_POSSIBLE = -3.0
# Members do not judge cells that have lower log-odds of the positive class in the model itself.
_OUT_OF_QUESTION = -8.0
# A share is uncertain if the possible share exceeds it by 1.5 times the usual factor, or if it is
# more than twice the highest of the members; and if 20 cells or more are possible. Chosen on four
# simulated cohorts of 12 unseen patients each, which no figure in the documentation uses.
_BEYOND_USUAL, _BEYOND_HIGHEST, _FEWEST_EVENTS = 1.5, 2.0, 20
# A held-out share is right if it is wrong by at most this factor.
_RIGHT = 1.5


def usual_excess(
    logits: np.ndarray, predicted: np.ndarray, codes: np.ndarray, sample: np.ndarray
) -> np.ndarray:
    """Ratio of possible to given cells that is usual for held-out samples with a right share.

    Where classes overlap, many cells are possible and the share is right all the same.

    Parameters
    ----------
    logits : ndarray of shape (n, C)
        Labelled cells of held-out patients.
    predicted, codes, sample : ndarray of int of shape (n,)
        Predicted class, true class and sample of each cell.

    Returns
    -------
    ndarray of shape (C,)
        The median over samples, at least 1.
    """
    possible = against_rest(logits) > _POSSIBLE
    found = np.ones(logits.shape[1])
    n_samples = int(sample.max()) + 1
    for c in range(logits.shape[1]):
        given, true, maybe = (
            np.bincount(sample[mask], minlength=n_samples)
            for mask in (predicted == c, codes == c, possible[:, c])
        )
        right = (np.minimum(given, true) >= _FEWEST_EVENTS) & (
            np.maximum(given, true) <= _RIGHT * np.minimum(given, true)
        )
        if right.any():
            found[c] = max(1.0, float(np.median(maybe[right] / given[right])))
    return found


class Agreement:
    """Number of cells that the model and each member give each class, in one sample.

    Only some cells are judged; they stand for the others by their weight. Members judge them in
    the context of some cells, or, if they are no SetModules, of all.

    Parameters
    ----------
    members : sequence of ScaledModule
    cells : SampleCells
    n_classes : int
    positive : int or None
        Code of the positive class. Only cells that may have it are judged then.
    decide : callable
        Codes of cells from logits, as the model decides.
    usual : ndarray of shape (C,)
        From :func:`usual_excess`.
    """

    def __init__(
        self,
        members: Sequence[ScaledModule],
        cells: SampleCells,
        n_classes: int,
        positive: int | None,
        decide: Callable[[np.ndarray], np.ndarray],
        usual: np.ndarray,
    ) -> None:
        self._decide, self._positive, self._usual = decide, positive, usual
        self._n_cells = len(cells.rows)
        n_seen = max(_FEWEST_SEEN, int(_SHARE * self._n_cells))
        some = cells.glance[:: max(1, len(cells.glance) // n_seen)]
        self._judges = [_judge(member, cells, some) for member in members]
        self._counts = np.zeros((1 + len(members), n_classes))
        self._possible = np.zeros(n_classes)
        self._seen = np.zeros(n_classes, dtype=int)

    @torch.no_grad()
    def add(self, start: int, x: torch.Tensor, logits: np.ndarray) -> None:
        """Judge a block of cells.

        Parameters
        ----------
        start : int
            Position of the block in the sample.
        x : Tensor of shape (n, M)
        logits : ndarray of shape (n, C)
            Logits of the model.
        """
        judged = np.arange(len(x))
        if self._positive is not None:
            log_odds = against_rest(logits)[:, self._positive]
            judged = np.flatnonzero(log_odds > _OUT_OF_QUESTION)
        share = max(_SHARE, _FEWEST_JUDGED / self._n_cells)
        step = max(1, round(len(judged) / (share * len(x))))
        judged = judged[::step]
        found = [logits[judged]]
        found += [judge(start, x, judged) for judge in self._judges]
        n_classes = len(self._possible)
        for count, z in zip(self._counts, found, strict=True):
            count += step * np.bincount(self._decide(z), minlength=n_classes)
        possible = np.any([against_rest(z) > _POSSIBLE for z in found], axis=0).sum(0)
        self._possible += step * possible
        self._seen += possible

    def table(self) -> pd.DataFrame:
        """One row per class, as :func:`agreement_table` describes it."""
        share = self._counts / self._n_cells
        model, highest = share[0], share[1:].max(0)
        possible = self._possible / self._n_cells
        limit = _BEYOND_USUAL * self._usual * model
        uncertain = (possible > limit) | (model > _BEYOND_HIGHEST * highest)
        found = {
            "share": model,
            "lowest": share[1:].min(0),
            "highest": highest,
            "possible": possible,
            "uncertain": uncertain & (self._seen >= _FEWEST_EVENTS),
        }
        return pd.DataFrame(found)


def _judge(
    member: ScaledModule, cells: SampleCells, some: np.ndarray
) -> Callable[[int, torch.Tensor, np.ndarray], np.ndarray]:
    """Function of the start of a block, its cells and positions in it: logits of the member."""
    if not isinstance(member, SetModule):
        kept = kept_outputs(member, cells)

        def of_all(start: int, x: torch.Tensor, judged: np.ndarray) -> np.ndarray:
            logits = kept.rows.get(start, start + len(x)).numpy(force=True)
            return np.asarray(logits[judged])

        return of_all
    net = net_for(member, some.dtype)
    seen = torch.from_numpy(np.ascontiguousarray(some)).to(net.input_mean.device)
    contexts = streamed_contexts(net, seen)

    def in_context(start: int, x: torch.Tensor, judged: np.ndarray) -> np.ndarray:
        part = x[torch.from_numpy(judged)].to(net.input_mean)
        return np.asarray(net(part, contexts=contexts).numpy(force=True))

    return in_context


def agreement_table(
    samples: Sequence[Hashable],
    found: Sequence[Agreement],
    classes: Sequence[str],
    positive: int | None,
) -> pd.DataFrame:
    """Agreement of the members on each sample.

    Returns
    -------
    DataFrame
        Columns ``sample``, ``class``, ``share`` (of the model), ``lowest`` and ``highest`` (of
        the members), ``possible`` (share of cells to which any net gives a probability of 5 % or
        more of the class) and ``uncertain``: ``possible`` is more than 1.5 times as far
        above ``share`` as is usual on held-out patients, or ``share`` more than twice
        ``highest``, and 20 or more cells are possible. With a positive class there is only the
        row of this class.
    """
    wanted = list(range(len(classes))) if positive is None else [positive]
    tables = [one.table().iloc[wanted] for one in found]
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "class", [classes[c] for _ in samples for c in wanted])
    table.insert(0, "sample", [str(s) for s in samples for _ in wanted])
    return table


def warn_of_disagreement(table: pd.DataFrame, stacklevel: int) -> None:
    """Warn of samples with an uncertain share."""
    uncertain = table[table["uncertain"]]
    if uncertain.empty:
        return
    found = [
        f"{row['sample']} ({row['share']:.3%} {row['class']}, members {row['lowest']:.3%} to "
        f"{row['highest']:.3%}, possible {row['possible']:.3%})"
        for row in uncertain.to_dict("records")
    ]
    n_samples, n_all = uncertain["sample"].nunique(), table["sample"].nunique()
    warnings.warn(
        f"The members of the model, each trained without some patients, do not agree on {n_samples}"
        f" of {n_all} sample(s): {listed(found, 5)}. Such a patient may be unlike those of the "
        "training, and the share may be wrong by a factor of two or more. Check these samples by "
        "hand.",
        UserWarning,
        stacklevel=stacklevel,
    )


def against_rest(logits: np.ndarray) -> np.ndarray:
    """Log-odds of each class against all others together, shape (n, C)."""
    if logits.shape[1] == 2:
        return np.asarray(logits - logits[:, ::-1])
    z = torch.from_numpy(logits)
    others = [[k for k in range(z.shape[1]) if k != c] for c in range(z.shape[1])]
    rest = torch.stack([torch.logsumexp(z[:, columns], 1) for columns in others], 1)
    return np.asarray((z - rest).numpy())
