"""Stand-ins for ``slicer.ScriptedLoadableModule``, ``slicer.i18n`` and ``slicer.packaging``.

Left out: the developer's reload section, translation files (texts come back as they are), installing packages.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import unittest
from pathlib import Path
from types import ModuleType
from typing import Any

import slicer


class ScriptedLoadableModule:
    """A module's name, place and description, put on its parent."""

    def __init__(self, parent: Any) -> None:
        super().__init__()
        import qt

        self.parent, self.moduleName = parent, type(self).__name__
        parent.title, parent.helpText, parent.acknowledgementText = "", "", ""
        parent.categories, parent.dependencies, parent.contributors = [], [], []
        for kind in (".svg", ".png"):
            icon = self.resourcePath(f"Icons/{self.moduleName}{kind}")
            if os.path.isfile(icon):
                parent.icon = qt.QIcon(icon)
                break
        slicer.selfTests[self.moduleName] = self.runTest

    def resourcePath(self, filename: str) -> str:
        return os.path.join(os.path.dirname(self.parent.path), "Resources", filename)

    def getDefaultModuleDocumentationLink(self, docPage: str | None = None) -> str:
        return f'<p>For more information see the <a href="{docPage or ""}">online documentation</a>.</p>'

    def runTest(self, msec: int = 100, **named: Any) -> None:
        import sys

        test = getattr(sys.modules[type(self).__module__], f"{self.moduleName}Test")()
        test.messageDelay = msec
        test.runTest(**named)


class ScriptedLoadableModuleWidget:
    """A module's panel on its parent; without a parent it makes one and sets itself up."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__()
        import qt

        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = False
        self.parent = parent or slicer.qMRMLWidget()
        if not parent:
            self.parent.setLayout(qt.QVBoxLayout())
            self.parent.setMRMLScene(slicer.mrmlScene)
        self.layout = self.parent.layout()
        if not parent:
            self.setup()
            self.parent.show()
        slicer.app.moduleManager().connect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)

    def resourcePath(self, filename: str) -> str:
        return os.path.join(os.path.dirname(slicer.util.modulePath(self.moduleName)), "Resources", filename)

    def setup(self) -> None:
        pass

    def cleanup(self) -> None:
        pass

    def _onModuleAboutToBeUnloaded(self, moduleName: str) -> None:
        if moduleName == self.moduleName:
            self.cleanup()
            slicer.app.moduleManager().disconnect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)


class ScriptedLoadableModuleLogic:
    """What a module does, with its parameter node, of which a scene has one."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__()
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True

    def getParameterNode(self) -> Any:
        if self.isSingletonParameterNode:
            node = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
            if node is not None:
                node.SetAttribute("ModuleName", self.moduleName)  # closing the scene may have taken it
                return node
        else:
            found = self.getAllParameterNodes()
            if found:
                return found[0]
        return slicer.mrmlScene.AddNode(self.createParameterNode())

    def getAllParameterNodes(self) -> list[Any]:
        nodes = slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode")
        return [node for node in nodes if node.GetAttribute("ModuleName") == self.moduleName]

    def createParameterNode(self) -> Any:
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        if self.isSingletonParameterNode:
            node.SetSingletonTag(self.moduleName)
        node.SetAttribute("ModuleName", self.moduleName)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.messageDelay = 0

    def delayDisplay(self, message: str, requestedDelay: int | None = None, msec: int | None = None) -> None:
        slicer.util.delayDisplay(message, 0)

    def runTest(self) -> None:
        pass


def translate(context: str, text: str) -> str:
    return str(slicer.app.translate(context, text))


def tr(text: str) -> str:
    """The text in the user's language; only a text can be translated."""
    if not isinstance(text, str):
        raise TypeError(f"{text!r} is no text to translate")
    return translate("RTDigitalTwin", text)


# Packages


def load_requirements(path: str | Path) -> list[str]:
    """A requirements file's lines that name a package."""
    lines = (line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith(("#", "-"))]


def pip_check(requirements: str | list[str]) -> bool:
    """Whether packages are there, of these versions."""
    listed = requirements.split() if isinstance(requirements, str) else requirements
    return not [each for each in listed if not _is_there(str(each))]


def pip_ensure(requirements: str | list[str], *unused: Any, requester: str | None = None, **named: Any) -> None:
    """Ask to install what is missing. The test host installs nothing: after OK it says so."""
    listed = requirements.split() if isinstance(requirements, str) else requirements
    missing = [str(each) for each in listed if not _is_there(str(each))]
    if not missing:
        return
    words = f"{requester or 'This module'} needs packages that are not installed: {', '.join(missing)}. Install them?"
    if not slicer.util.confirmOkCancelDisplay(words):
        raise RuntimeError("The user declined to install the packages.")
    raise RuntimeError(f"The test host installs no packages: {', '.join(missing)}")


def _is_there(requirement: str) -> bool:
    name, *bounds = re.split(r"\s*(>=|==|<=|<|>|~=|!=|;)", requirement.strip(), maxsplit=1)
    try:
        version = importlib.metadata.version(re.sub(r"\[.*", "", name))
    except importlib.metadata.PackageNotFoundError:
        return False
    if not bounds or bounds[0] == ";":
        return True
    from packaging.specifiers import SpecifierSet

    return version in SpecifierSet("".join(bounds).split(";")[0].replace(" ", ""))


def make_modules() -> dict[str, ModuleType]:
    """The stand-in modules by their names below ``slicer``."""
    offered: dict[str, tuple[Any, ...]] = {
        "ScriptedLoadableModule": (
            ScriptedLoadableModule, ScriptedLoadableModuleWidget, ScriptedLoadableModuleLogic,
            ScriptedLoadableModuleTest,
        ),
        "i18n": (tr, translate),
        "packaging": (load_requirements, pip_check, pip_ensure),
    }  # fmt: skip
    made = {}
    for name, parts in offered.items():
        made[name] = ModuleType(f"slicer.{name}", __doc__)
        for part in parts:
            setattr(made[name], part.__name__, part)
    return made
