"""The parts that all routes share: answers, cursors, parameters, versions."""
