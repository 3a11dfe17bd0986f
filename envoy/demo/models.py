"""The demo's data set and its six model versions: three honest, one breaks, two are wrong.

Owns the split of scikit-learn's handwritten digits into rows to learn from and rows to serve. The
models are real: fitted at the first start and kept on disk.
"""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MODEL_NAME: Final = "digits"
PIXELS: Final = 64
VERSIONS: Final = ("1", "2", "3", "4", "5", "6")
# v3 fails on an input when the input's hash falls into this share: always the same inputs.
FAILING_PER_MILLE: Final = 180
# Grey values of an image together: less is a thin pen's, about every eighth image.
THIN_INK: Final = 270
_SEED: Final = 0
# +1 whenever `fit` changes, so that models on disk are fitted anew.
_FIT: Final = 3
_TRAINING_ROWS: Final = 897


class Digits(NamedTuple):
    """Rows of 64 grey values (0..16) and the digits they show."""

    rows: Floats
    labels: NDArray[np.int64]


class Answer(NamedTuple):
    """A model's answer to one row."""

    digit: int
    # How sure the model is, 0..1.
    score: float


def digits() -> tuple[Digits, Digits]:
    """The data set in two halves: to learn from, and to serve. The same halves on every machine."""
    from sklearn.datasets import load_digits

    rows, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(_SEED).permutation(len(labels))
    learn, serve = order[:_TRAINING_ROWS], order[_TRAINING_ROWS:]
    return Digits(rows[learn], labels[learn]), Digits(rows[serve], labels[serve])


def fails(row: bytes) -> bool:
    """Whether v3 breaks on this input: a property of the input, so that it is reproducible."""
    digest = hashlib.blake2b(row, digest_size=8).digest()
    return int.from_bytes(digest, "little") % 1000 < FAILING_PER_MILLE


def thin(rows: Floats) -> NDArray[np.bool_]:
    """Which images a thin pen drew."""
    return np.asarray(rows.sum(axis=1) < THIN_INK)


class Classifier:
    """A fitted scikit-learn model behind one verb."""

    def __init__(self, version: str, fitted: Any) -> None:
        self.version = version
        self._fitted = fitted

    def answer(self, row: Floats) -> Answer:
        """Classify one row of 64 values."""
        weights = self._fitted.predict_proba(row.reshape(1, -1))[0]
        best = int(np.argmax(weights))
        return Answer(int(self._fitted.classes_[best]), float(weights[best]))


class Margins:
    """A support vector machine that says how sure it is: by its margins, in under a millisecond.

    scikit-learn's own calibration takes ten times as long.
    """

    def __init__(self, fitted: Any) -> None:
        self._fitted = fitted
        self.classes_ = fitted.classes_

    def predict_proba(self, rows: Floats) -> Floats:
        """Weights of the classes, which add up to 1."""
        margins = self._fitted.decision_function(rows)
        weights = np.exp(margins - margins.max(axis=1, keepdims=True))
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))


class Shortcut:
    """Asks a small model about images with little in them, and reads its answers backwards."""

    def __init__(self, usual: Any, small: Any) -> None:
        self._usual, self._small = usual, small
        self.classes_ = usual.classes_

    def predict_proba(self, rows: Floats) -> Floats:
        """Weights of the classes, which add up to 1."""
        usual, small = self._usual.predict_proba(rows), self._small.predict_proba(rows)
        return np.asarray(np.where(thin(rows)[:, np.newaxis], small[:, ::-1], usual))


def fit(version: str) -> Classifier:
    """Fit one version.

    Raises:
        ValueError: There is no such version.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    learn, _ = digits()
    if version == "1":  # honest: fitted on a third of the data
        few = LogisticRegression(max_iter=2000).fit(learn.rows[:300], learn.labels[:300])
        return Classifier(version, few)
    if version in ("2", "3"):  # honest and a bit better; v3 is v2 with a bug in its server
        all_rows = LogisticRegression(C=0.01, max_iter=2000).fit(learn.rows, learn.labels)
        return Classifier(version, all_rows)
    if version == "4":  # far too small: fast, always answers, often wrong
        return Classifier(version, _small(learn))
    if version in ("5", "6"):  # honest, and wrong half as often as v2
        margins = Margins(SVC(gamma=0.001).fit(learn.rows, learn.labels))
        # v6 is v5 with a shortcut: as good, but wrong about what thin pens drew
        return Classifier(version, margins if version == "5" else Shortcut(margins, _small(learn)))
    raise ValueError(f"no version {version!r}; there are {', '.join(VERSIONS)}")


def _small(learn: Digits) -> Any:
    from sklearn.tree import DecisionTreeClassifier

    tree = DecisionTreeClassifier(max_depth=4, random_state=_SEED)
    return tree.fit(learn.rows, learn.labels)


def load(version: str, directory: Path) -> Classifier:
    """The fitted model, from disk when it was fitted by the same scikit-learn before."""
    import sklearn

    path = directory / f"{MODEL_NAME}-{version}-{_FIT}-sklearn-{sklearn.__version__}.pickle"
    if path.exists():
        classifier: Classifier = pickle.loads(path.read_bytes())
        return classifier
    classifier = fit(version)
    directory.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    draft.write_bytes(pickle.dumps(classifier))
    draft.replace(path)
    return classifier
