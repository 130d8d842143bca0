"""YAML that must not be accepted as a config, or that says something other than it seems to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import tiny
import yaml
from bytes_damage import damaged
from judge import Bench

from trm_core.config.schema_keys import leaves, sections

# Must be refused as a key of any section of a config.
REFUSED = (
    'x: !!python/object/apply:os.mkdir ["{marker}"]',
    'seed: !!python/object/apply:os.mkdir ["{marker}"]',
    'x: !!python/object/new:os.mkdir ["{marker}"]',
    "x: !!python/name:os.system",
    "x: !!python/module:os",
    "x: !!binary aGVsbG8=",
    "seed: !!timestamp 2001-01-01",
    "x: !include /etc/passwd",
    "x: &a [*a, *a]",
    "seed: &a 1",
    "seed: *nothing",
    "<<: {{seed: 1}}",
    "seed: 1\n  seed: 2",
    "seed: [" + "[" * 5000 + "]" * 5000 + "]",
    "seed: " + "{{a: " * 3000 + "1" + "}}" * 3000,
    "seed: " + "- " * 5000 + "1",
    "seed: " + "9" * 5000,
    "seed: 1" + "0" * 60,
    "seed: 0x" + "f" * 50,
    "seed: 1e308",
    "seed: .inf",
    "base_lr: .nan",
    "seed: true",
    "seed: yes",
    "seed: null",
    "base_lr: [1, 2]",
    "base_lr: {{a: 1}}",
    'seed: "1"',
    "seed: \x00",
    "seed: \x1b[31m",
    'device: "\\ud800"',
    "? [complex, key]\n  : 1",
    "seed: |\n    1",
    "no such key: 1",
    "\tseed: 1",
    "seed: 'open",
    "... \n--- \nseed: 1",
    "%YAML 9.9",
)
VALUES = (
    *("null", "true", "-1", "0", "1", "2", "0.5", "1e308", "1e-300", "-0.0", "0x10", "1_000", "x", "auto", '""'),
    *("9223372036854775807", "9223372036854775808", "1" + "0" * 40, "[]", "{}", "[1, 2, 3]", "[x, x]", "{a: 1}"),
    *("[[1]]", '"\\0"', '"../../outside/secret"', "/etc/passwd", "/dev/zero", "~", "'" + "A" * 5000 + "'", "٣"),
)

Change = Callable[[Random, Bench, str], tuple[str, bytes, bool]]


def base(capsule_file: Path) -> str:
    changes = {"data": {"path": str(capsule_file)}}
    return yaml.safe_dump({**tiny.BASE, **changes}, sort_keys=False)


def refused_line(random: Random, bench: Bench, text: str) -> tuple[str, bytes, bool]:
    line = random.choice(REFUSED).format(marker=bench.marker)
    changed = text.replace("training:\n", f"training:\n  {line}\n")
    return line[:60], changed.encode("utf-8", "surrogatepass"), True


def billion_laughs(random: Random, bench: Bench, text: str) -> tuple[str, bytes, bool]:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    return "billion laughs", ("\n".join(lines) + "\n" + text).encode(), True


def odd_value(random: Random, bench: Bench, text: str) -> tuple[str, bytes, bool]:
    """One to three keys get a value of another type or size."""
    document = yaml.safe_load(text)
    said = []
    for key in random.sample(list(leaves()), random.randint(1, 3)):
        *parents, name = key.split(".")
        target = document
        for parent in parents:
            target = target.setdefault(parent, {})
        value = random.choice(VALUES)
        target[name] = f"\u2603{value}\u2603"
        said.append(f"{key}: {value[:40]}")
    changed = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=10**6)
    for value in VALUES:
        quoted = yaml.safe_dump(f"\u2603{value}\u2603", allow_unicode=True, width=10**6).removesuffix("\n...\n").strip()
        changed = changed.replace(quoted, value)
    return "; ".join(said), changed.encode(), False


def odd_section(random: Random, bench: Bench, text: str) -> tuple[str, bytes, bool]:
    """A whole section becomes something else, or the file is no longer a mapping."""
    document = yaml.safe_load(text)
    name = random.choice([name for name in sections() if name and "." not in name])
    value = random.choice([5, "x", [1], {"x": {"y": 1}}, {"": 1}, True, 1.5])
    document[name] = value
    whole = random.choice([yaml.safe_dump(document), "5\n", "- 1\n", "''\n", "", "\n\n# nothing\n", "---\n---\n"])
    wrong = isinstance(value, dict) or whole != yaml.safe_dump(document)
    return f"{name}: {value}", whole.encode(), wrong


def damaged_bytes(random: Random, bench: Bench, text: str) -> tuple[str, bytes, bool]:
    what, data = damaged(random, text.encode())
    return what, data, False


def not_text(random: Random, bench: Bench, text: str) -> tuple[str, bytes, bool]:
    data = random.choice(
        [b"\xff\xfe" + text.encode("utf-16-le"), b"\x80abc: 1", random.randbytes(4000), b"a: " + b"A" * 300_000]
    )
    return "not text", data, True


CHANGES: tuple[Change, ...] = (
    *(refused_line, refused_line, refused_line, odd_value, odd_value, odd_value, damaged_bytes, damaged_bytes),
    *(odd_section, billion_laughs, not_text),
)
