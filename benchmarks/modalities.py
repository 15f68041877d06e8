"""What text and picture are each worth: the same model trained with both, and with one of them left out.

python -m benchmarks.modalities --config configs/review_sentiment.py
"""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jaxfusion.config import read_config
from jaxfusion.errors import UserError
from jaxfusion.evaluation.report import write_report
from jaxfusion.experiment import train_run
from jaxfusion.files import write_json
from jaxfusion.parallel import use_cpu_cores
from jaxfusion.workdir import EVALUATION

RUNS = {"text and picture": ("image", "text"), "text alone": ("text",), "picture alone": ("image",)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", type=Path, default=Path("configs/review_sentiment.py"), help="a classification config"
    )
    parser.add_argument("--workdir", type=Path, help="where the three runs live (default: runs/ and the config's name)")
    parser.add_argument("--data-dir", default="", help="where prepared data live (default: TFDS's own)")
    args = parser.parse_args()
    workdir = args.workdir or Path("runs") / f"{args.config.stem}_modalities"
    try:
        rows = [(name, _run(args, workdir / "_".join(kinds), kinds)) for name, kinds in RUNS.items()]
    except UserError as error:
        print(f"modalities: {error}", file=sys.stderr)
        return 2
    comparison = {"title": "What each is worth", "columns": ["the model sees", "accuracy", "below both"]}
    best = rows[0][1]
    comparison["rows"] = [[name, f"{accuracy:.3f}", f"{best - accuracy:.3f}"] for name, accuracy in rows]
    both = workdir / "_".join(RUNS["text and picture"])
    record = json.loads((both / EVALUATION).read_text())
    write_json(both / EVALUATION, record | {"comparison": comparison})
    report = write_report(both)
    table = Table(*comparison["columns"])
    for row in comparison["rows"]:
        table.add_row(*row)
    Console().print(table)
    print(f"report: {report}")
    return 0


def _run(args: argparse.Namespace, workdir: Path, modalities: tuple[str, ...]) -> float:
    config = read_config(args.config, {"data.modalities": repr(modalities), "data.data_dir": args.data_dir})
    use_cpu_cores(config.train.batch_size)
    print(f"{workdir}: {' and '.join(modalities)}")
    return train_run(config, workdir)["class_accuracy"]


if __name__ == "__main__":
    sys.exit(main())
