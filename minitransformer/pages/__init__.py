"""Pages: the mask explorer, and the attention of a model, each one self-contained HTML file."""

from minitransformer.pages.explorer import explorer
from minitransformer.pages.viewer import attention_page

__all__ = ["attention_page", "explorer"]
