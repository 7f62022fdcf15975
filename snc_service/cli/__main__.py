"""The entry point of ``python -m snc_service.cli``, equal to ``snc``."""

import sys

from snc_service.cli.main import main

sys.exit(main())
