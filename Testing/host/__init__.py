"""A stand-in Slicer application to test the module in: a contract test under stand-ins, not a run in desktop Slicer.

Real here are the scene, the logics, the displayable managers and ``slicer.util`` (from the slicer-core wheels), Qt's
widgets (PySide6, without a screen) and the module itself. Stand-ins, written after the documented behaviour of desktop
Slicer 5.12, are PythonQt's way of reaching Qt (``qt``), the widgets of ``ctk`` and qMRML that the module uses,
``slicer.ScriptedLoadableModule``, ``slicer.parameterNodeWrapper``, ``slicer.i18n``, ``slicer.packaging`` and the
application with its layout manager. What passes here can still fail in desktop Slicer where a stand-in is wrong;
docs of each file say what it leaves out. ``RTDT_SLICER_PYTHON`` names a folder with Slicer's own pure-Python files
(``Base/Python`` of its sources, or ``bin/Python`` of an installation) to be used in place of the Python stand-ins.

>>> from Testing.host.session import slicer_application
>>> with slicer_application() as host:
...     module = host.load_module()
...     module.ui.loadSampleButton.click()
"""
