"""Keep model libraries off the network and off standard error. Call it before torch and transformers are imported."""

from __future__ import annotations

import logging
import os
import warnings


def hush() -> None:
    """Offline hub, no progress bars, errors only. bitsandbytes warns once a layer, partly through logging."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["BITSANDBYTES_NOWELCOME"] = "1"
    warnings.filterwarnings("ignore", module=r"(torch|transformers|bitsandbytes|accelerate)\b")
    for name in ("transformers", "bitsandbytes", "accelerate", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import transformers  # noqa: PLC0415 - heavy, and only after the environment is set

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
