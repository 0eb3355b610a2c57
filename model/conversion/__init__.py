"""Published checkpoints in and out: `import_checkpoint` makes an export of one, `export_checkpoint` gives it back."""

from .exporting import export_checkpoint
from .importing import Progress, import_checkpoint
from .sources import FAMILIES

__all__ = ["FAMILIES", "Progress", "export_checkpoint", "import_checkpoint"]
