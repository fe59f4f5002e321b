"""What can be derived, one file for a family; what these compute counts by source in identities."""

from stillroom.stages.deriving.methods.answers import (
    agreement,
    assigned,
    calibrated,
    ensemble,
    pooled,
    projected,
)
from stillroom.stages.deriving.methods.class_answers import class_answers
from stillroom.stages.deriving.methods.kmeans import kmeans, minibatch_kmeans
from stillroom.stages.deriving.methods.moments import class_means, class_moments, moments
from stillroom.stages.deriving.methods.neighbours import neighbours
from stillroom.stages.deriving.methods.pca import class_pca, pca
from stillroom.stages.deriving.methods.quantiles import quantiles
from stillroom.stages.deriving.methods.temperature import temperature

__all__ = [
    "agreement",
    "assigned",
    "calibrated",
    "class_answers",
    "class_means",
    "class_moments",
    "class_pca",
    "ensemble",
    "kmeans",
    "minibatch_kmeans",
    "moments",
    "neighbours",
    "pca",
    "pooled",
    "projected",
    "quantiles",
    "temperature",
]
