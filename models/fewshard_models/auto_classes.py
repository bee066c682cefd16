"""Registers our architectures with transformers' Auto classes once somebody imports those.

`import fewshard_models` stays light: it loads neither torch nor transformers. After it,
`AutoModelForSequenceClassification.from_pretrained(directory)` loads our checkpoints all the same.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

AUTO_MODELS = "transformers.models.auto.modeling_auto"
_PACKAGES = ("fewshard_models.text", "fewshard_models.image")


def register_when_imported() -> None:
    """Register now where the Auto classes are loaded already, else right after they are."""
    if AUTO_MODELS in sys.modules:
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def register_only_by_import() -> None:
    """Leave it to `fewshard_models.text` and `.image`: for processes that load a tokenizer and no network.

    transformers' tokenizers import the Auto classes, and our networks take 200 MB with what they need.
    """
    for finder in [each for each in sys.meta_path if isinstance(each, _Finder)]:
        sys.meta_path.remove(finder)


def _register() -> None:
    for package in _PACKAGES:
        import_module(package)


class _Finder(MetaPathFinder):
    """Lets the usual finders find the module, and adds the registration to its loader."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != AUTO_MODELS:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Runs the module by its own loader, then registers."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _register()
