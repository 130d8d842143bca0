"""`trm build-capsules` with two workers and with one, and what it takes beyond the encoder alone.

    python -m benchmarks.build --out benchmarks/results/build.json [--text /path/to/sms.tsv] [--rounds 5]

Built-in encoders on real data: the handwritten digits of scikit-learn with eight turned and stretched copies of each
training picture (the quickstart's source; patch-pca), and a file of labelled messages, `label<TAB>text` (tfidf-svd;
left out without --text). A source is made as large as --rows by joining two of its messages at random, so that
starting the workers is a small part. In turn, in whole seconds of a build in a process of its own:

    two, one    workers that encode; needs two idle cores
    none        encoding in the process itself
    encoder     no builder: the contents in memory are fitted on and encoded, in pieces of the builder's size, one thread

The builder also finds duplicates and splits, makes sketches and checksums, writes chunks that a killed build goes on
from, writes the file with its hashes, and measures what expansion is worth; `overhead` is all of that over the encoder
alone, `overhead without the probe` leaves out the last. Ratios of neighbours with 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import describe_machine, publish
from benchmarks.timing import alternate, ratio
from trm_core.config.schema import BuildConfig
from trm_core.data.build import build_capsules
from trm_core.data.build.chunks import _augment, chunk_list
from trm_core.data.build.fitting import _sample
from trm_core.data.build.pipeline import _layouts, _open, choose_augmentation
from trm_core.data.build.plan import make_plan, stream
from trm_core.data.build.records import silent
from trm_core.data.build.splits import TRAIN
from trm_core.data.threads import one_thread
