"""Knowledge distillation (VQDM, section 5): codes stay, everything else learns to give the original UNet's output."""

from sdvq_core.distillation.lessons import Lessons, record_lessons
from sdvq_core.distillation.loss import guided_error, to_device
from sdvq_core.distillation.settings import DistillationSettings
from sdvq_core.distillation.student import Student, decoded_copy
from sdvq_core.distillation.training import TRAINING, Checkpoint, Distilled, distill

__all__ = [
    "TRAINING",
    "Checkpoint",
    "DistillationSettings",
    "Distilled",
    "Lessons",
    "Student",
    "decoded_copy",
    "distill",
    "guided_error",
    "record_lessons",
    "to_device",
]
