"""A finished job's metrics as the CSV file that OpenAI calls its result file. Pure: events in, bytes out."""

import csv
import io
from collections.abc import Iterable, Mapping

# OpenAI's five columns first, under OpenAI's names; ours behind them, under the names of the metrics.
COLUMNS = {
    "step": "step",
    "train_loss": "train_loss",
    "train_accuracy": "train_mean_token_accuracy",
    "valid_loss": "valid_loss",
    "valid_mean_token_accuracy": "valid_mean_token_accuracy",
    "full_valid_loss": "full_valid_loss",
    "full_valid_mean_token_accuracy": "full_valid_mean_token_accuracy",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "tokens_per_s": "tokens_per_s",
    "gpu_mem_bytes": "gpu_mem_bytes",
    "valid_exact_match": "valid_exact_match",
    "valid_accuracy": "valid_accuracy",
    "valid_macro_f1": "valid_macro_f1",
    "train_reward_margin": "train_reward_margin",
    "train_reward_accuracy": "train_reward_accuracy",
    "valid_reward_margin": "valid_reward_margin",
    "valid_reward_accuracy": "valid_reward_accuracy",
}


def results_csv(metrics: Iterable[Mapping[str, object]]) -> bytes:
    """One row a step, in order. metrics: the data of metrics events, oldest first; the last said of a step stands."""
    steps: dict[int, dict[str, object]] = {}
    for said in metrics:
        known = {name: value for name, value in said.items() if value is not None}
        steps.setdefault(int(str(said["step"])), {}).update(known)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    rows.writerows([steps[step].get(metric, "") for metric in COLUMNS.values()] for step in sorted(steps))
    return text.getvalue().encode()
