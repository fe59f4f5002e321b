"""What each step computes: teach, train, evaluate; and what describes it: teachers, recipes, students.

Nothing here imports torch until a teacher is loaded or a student is built.
"""

from stillroom.stages import recipes
from stillroom.stages.auditing import AuditReport, audit
from stillroom.stages.evaluating import Evaluation, classification
from stillroom.stages.module_teacher import ModuleTeacher
from stillroom.stages.recipe import Head, Recipe, Term, term
from stillroom.stages.repairing import Repaired, repair
from stillroom.stages.rows import ArrayRows, Rows
from stillroom.stages.student import Fit, Record, Student
from stillroom.stages.teacher import FunctionTeacher, Teacher
from stillroom.stages.teaching import plan_teach, teach
from stillroom.stages.training import plan_train, train

__all__ = [
    "ArrayRows",
    "AuditReport",
    "Evaluation",
    "Fit",
    "FunctionTeacher",
    "Head",
    "ModuleTeacher",
    "Recipe",
    "Record",
    "Repaired",
    "Rows",
    "Student",
    "Teacher",
    "Term",
    "audit",
    "classification",
    "plan_teach",
    "plan_train",
    "recipes",
    "repair",
    "teach",
    "term",
    "train",
]
