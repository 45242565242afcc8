"""The module's panels, one class a file, and what they share: choices, logic, background task, layout."""
