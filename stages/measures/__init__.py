"""Measures: what students answer on held-out rows as numbers, for `Evaluation(measure=...)`.

They are torchmetrics' (extra `metrics`) over all rows at once, detection pycocotools' (extra `detection`).
Names of tensors are settings: `partial(measures.tagging, tags="row.pos", length="row.words")`. Numbers are
Python floats, so that records, reports and `stillroom students --best` take them.
"""

from stillroom.stages.measures.classes import classes
from stillroom.stages.measures.detection import detection
from stillroom.stages.measures.images import segmentation
from stillroom.stages.measures.nearness import retrieval
from stillroom.stages.measures.tokens import language, tagging

__all__ = ["classes", "detection", "language", "retrieval", "segmentation", "tagging"]
