"""The target `monai`: its app's task, of MONAI Label's own unmodified class. Its server's app class stands in."""

from monailabel.interfaces.tasks import infer_v2

from tests.serve.test_monai_app import test_its_app_answers_as_segment_volume

__all__ = ["infer_v2", "test_its_app_answers_as_segment_volume"]
