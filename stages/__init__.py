"""What each step computes: teach, train, evaluate; and what describes it: teachers, recipes, students.

Nothing here imports torch until a teacher is loaded or a student is built.
"""

from stillroom.stages import recipes
from stillroom.stages.auditing import AuditReport, audit
from stillroom.stages.evaluating import Evaluation, classification
from stillroom.stages.hf_rows import DatasetRows
from stillroom.stages.module_teacher import ModuleTeacher
from stillroom.stages.parquet_rows import ParquetRows
from stillroom.stages.planning import plan_teach
from stillroom.stages.probing import Probe, probe
from stillroom.stages.recipe import Head, Recipe, Term, term
from stillroom.stages.repairing import Repaired, repair
from stillroom.stages.rows import ArrayRows, Rows
from stillroom.stages.student import Fit, Record, Student
from stillroom.stages.teacher import FunctionTeacher, Teacher
from stillroom.stages.teaching import teach
from stillroom.stages.training import plan_train, train
from stillroom.stages.view_boxes import Crop, Erase, Flip
from stillroom.stages.view_mixing import Cutmix, Mixup
from stillroom.stages.view_pixels import Colour, Mask, Noise
from stillroom.stages.view_plan import ViewPlan
from stillroom.stages.view_replay import Replay
from stillroom.stages.viewed_teacher import ViewedTeacher
from stillroom.stages.views import ViewedRows

__all__ = [
    "ArrayRows",
    "AuditReport",
    "Colour",
    "Crop",
    "Cutmix",
    "DatasetRows",
    "Erase",
    "Evaluation",
    "Fit",
    "Flip",
    "FunctionTeacher",
    "Head",
    "Mask",
    "Mixup",
    "ModuleTeacher",
    "Noise",
    "ParquetRows",
    "Probe",
    "Recipe",
    "Record",
    "Repaired",
    "Replay",
    "Rows",
    "Student",
    "Teacher",
    "Term",
    "ViewPlan",
    "ViewedRows",
    "ViewedTeacher",
    "audit",
    "classification",
    "plan_teach",
    "plan_train",
    "probe",
    "recipes",
    "repair",
    "teach",
    "term",
    "train",
]
