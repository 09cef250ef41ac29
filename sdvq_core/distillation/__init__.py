"""Knowledge distillation (VQDM, section 5): codes stay, everything else learns to give the original UNet's output."""

from sdvq_core.distillation.lessons import Lessons, record_lessons
from sdvq_core.distillation.student import Student
from sdvq_core.distillation.training import DistillationSettings, Distilled, distill, guided_error, to_device

__all__ = [
    "DistillationSettings",
    "Distilled",
    "Lessons",
    "Student",
    "distill",
    "guided_error",
    "record_lessons",
    "to_device",
]
