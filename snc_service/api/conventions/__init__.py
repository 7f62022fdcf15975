"""What all routes share: answers, cursors, parameters, versions."""
