"""What each step computes: teach, train, evaluate; and what describes it: teachers, recipes, students.

Nothing here imports torch until a teacher is loaded or a student is built.
"""

from stillroom.stages import recipes
from stillroom.stages.care.auditing import AuditReport, audit
from stillroom.stages.care.repairing import Repaired, repair
from stillroom.stages.data.hf_rows import DatasetRows
from stillroom.stages.data.parquet_rows import ParquetRows
from stillroom.stages.data.rows import ArrayRows, Rows
from stillroom.stages.evaluating import Evaluation, classification
from stillroom.stages.plans.planning import plan_teach
from stillroom.stages.plans.probing import Probe, probe
from stillroom.stages.recipe import Head, Recipe, Term, term
from stillroom.stages.student import Fit, Record, Student
from stillroom.stages.teachers.function import FunctionTeacher
from stillroom.stages.teachers.module import ModuleTeacher
from stillroom.stages.teachers.teacher import Teacher
from stillroom.stages.teaching import teach
from stillroom.stages.training import plan_train, train
from stillroom.stages.views.boxes import Crop, Erase, Flip
from stillroom.stages.views.mixing import Cutmix, Mixup
from stillroom.stages.views.pixels import Colour, Mask, Noise
from stillroom.stages.views.plan import ViewPlan
from stillroom.stages.views.replay import Replay
from stillroom.stages.views.rows import ViewedRows
from stillroom.stages.views.teacher import ViewedTeacher

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
