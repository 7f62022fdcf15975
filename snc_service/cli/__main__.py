"""``python -m snc_service.cli``: the same as ``snc``."""

import sys

from snc_service.cli.main import main

sys.exit(main())
