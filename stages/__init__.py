"""What each step computes: teach, train, evaluate; and what describes it: teachers, recipes, students.

Nothing here imports torch until a teacher is loaded or a student is built.
"""

from stillroom.stages import measures, recipes
from stillroom.stages.care.auditing import AuditReport, audit
from stillroom.stages.care.repairing import Repaired, repair
from stillroom.stages.data.hf_rows import DatasetRows
from stillroom.stages.data.image_rows import ImageFolderRows
from stillroom.stages.data.images import Decode
from stillroom.stages.data.numpy_rows import NumpyRows
from stillroom.stages.data.parquet_rows import ParquetRows
from stillroom.stages.data.ray_rows import from_ray_dataset
from stillroom.stages.data.rows import ArrayRows, Rows
from stillroom.stages.data.signal_columns import SignalColumns, with_signals
from stillroom.stages.data.tar_rows import TarRows
from stillroom.stages.data.torch_rows import TorchRows
from stillroom.stages.data.zarr_rows import ZarrRows
from stillroom.stages.deriving import methods as derivations
from stillroom.stages.deriving.caring import derived_as_taught
from stillroom.stages.deriving.derivation import RowWise, Summary
from stillroom.stages.deriving.deriving import derive, derive_signals, derived
from stillroom.stages.deriving.planning import DerivePlan, plan_derive, plan_derive_signals
from stillroom.stages.differing import (
    Differing,
    differing_rows,
    distance_apart,
    kl_apart,
    teacher_measured,
)
from stillroom.stages.evaluating import Evaluation, classification
from stillroom.stages.exporting.described import ExportError
from stillroom.stages.exporting.exporting import Exported, export_student
from stillroom.stages.exporting.opening import load_student
from stillroom.stages.feeding.opening import loader
from stillroom.stages.fit import Fit
from stillroom.stages.halving import Halving, Stopped, halve, plan_halve
from stillroom.stages.needs import Needs
from stillroom.stages.parts import Answer, Controller, Head
from stillroom.stages.plans.planning import plan_teach
from stillroom.stages.plans.probing import Probe, probe
from stillroom.stages.recipe import Recipe
from stillroom.stages.rounds import Round, RoundsPlan, plan_rounds, train_rounds
from stillroom.stages.student import Record, Student
from stillroom.stages.teachers.adversarial import AdversarialTeacher
from stillroom.stages.teachers.function import FunctionTeacher
from stillroom.stages.teachers.huggingface.agreement import (
    require_same_tokenizer,
    require_tokenizer_of,
)
from stillroom.stages.teachers.huggingface.cut_rows import cut_rows
from stillroom.stages.teachers.huggingface.encoder import EncoderTeacher
from stillroom.stages.teachers.huggingface.image_text import ImageTextTeacher
from stillroom.stages.teachers.huggingface.language import LanguageTeacher
from stillroom.stages.teachers.huggingface.pixels import Images
from stillroom.stages.teachers.huggingface.rows import as_attention
from stillroom.stages.teachers.huggingface.texts import Texts
from stillroom.stages.teachers.huggingface.vision import VisionTeacher
from stillroom.stages.teachers.module import ModuleTeacher
from stillroom.stages.teachers.onnx import OnnxTeacher
from stillroom.stages.teachers.ratings import long_ratings, summed_ratings, wide_ratings
from stillroom.stages.teachers.routed import RoutedTeacher
from stillroom.stages.teachers.table import TableTeacher
from stillroom.stages.teachers.teacher import Teacher
from stillroom.stages.teachers.timm import timm_teacher
from stillroom.stages.teachers.vllm import VllmEngineTeacher, VllmTeacher
from stillroom.stages.teaching import Assignment, teach, teach_all
from stillroom.stages.term import Term, term
from stillroom.stages.training import plan_train, train
from stillroom.stages.views.boxes import Crop, Erase, Flip
from stillroom.stages.views.mixing import Cutmix, Mixup
from stillroom.stages.views.pixels import Colour, Mask, Noise
from stillroom.stages.views.plan import ViewPlan
from stillroom.stages.views.replay import Replay
from stillroom.stages.views.rows import ViewedRows
from stillroom.stages.views.teacher import ViewedTeacher

__all__ = [
    "AdversarialTeacher",
    "Answer",
    "ArrayRows",
    "Assignment",
    "AuditReport",
    "Colour",
    "Controller",
    "Crop",
    "Cutmix",
    "DatasetRows",
    "Decode",
    "DerivePlan",
    "Differing",
    "EncoderTeacher",
    "Erase",
    "Evaluation",
    "ExportError",
    "Exported",
    "Fit",
    "Flip",
    "FunctionTeacher",
    "Halving",
    "Head",
    "ImageFolderRows",
    "ImageTextTeacher",
    "Images",
    "LanguageTeacher",
    "Mask",
    "Mixup",
    "ModuleTeacher",
    "Needs",
    "Noise",
    "NumpyRows",
    "OnnxTeacher",
    "ParquetRows",
    "Probe",
    "Recipe",
    "Record",
    "Repaired",
    "Replay",
    "Round",
    "RoundsPlan",
    "RoutedTeacher",
    "RowWise",
    "Rows",
    "SignalColumns",
    "Stopped",
    "Student",
    "Summary",
    "TableTeacher",
    "TarRows",
    "Teacher",
    "Term",
    "Texts",
    "TorchRows",
    "ViewPlan",
    "ViewedRows",
    "ViewedTeacher",
    "VisionTeacher",
    "VllmEngineTeacher",
    "VllmTeacher",
    "ZarrRows",
    "as_attention",
    "audit",
    "classification",
    "cut_rows",
    "derivations",
    "derive",
    "derive_signals",
    "derived",
    "derived_as_taught",
    "differing_rows",
    "distance_apart",
    "export_student",
    "from_ray_dataset",
    "halve",
    "kl_apart",
    "load_student",
    "loader",
    "long_ratings",
    "measures",
    "plan_derive",
    "plan_derive_signals",
    "plan_halve",
    "plan_rounds",
    "plan_teach",
    "plan_train",
    "probe",
    "recipes",
    "repair",
    "require_same_tokenizer",
    "require_tokenizer_of",
    "summed_ratings",
    "teach",
    "teach_all",
    "teacher_measured",
    "term",
    "timm_teacher",
    "train",
    "train_rounds",
    "wide_ratings",
    "with_signals",
]
