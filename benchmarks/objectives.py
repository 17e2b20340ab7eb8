"""Which subnetworks to train at each step: uniform, weighted, or the sandwich, at equal processor time on CIFAR-10.

    python benchmarks/objectives.py --minutes 4 --work /tmp/objectives

The best mean over the subnetworks is the default of `ElasticClassification`. Seed 0.
"""

from __future__ import annotations

import torch

from anyvit.data import open_data
from anyvit.data.preprocessing import Preprocessing
from anyvit.models import create_model
from anyvit.training.objectives import ElasticClassification
from interleaved import write_result
from training_runs import Runs, arguments

MODEL, RECIPE = "hydravit_small_patch4_32", "scratch-small"
CHOICES = {
    "uniform": ElasticClassification("uniform"),
    "weighted": ElasticClassification("weighted"),
    "sandwich": ElasticClassification("sandwich"),
}


def main() -> None:
    asked = arguments(__doc__).parse_args()
    torch.set_num_threads(asked.threads)  # comparisons may share a machine, a core each
    runs = Runs(open_data(asked.data), RECIPE, Preprocessing(32), asked.work)
    result = {"data": "CIFAR-10", "model": MODEL, "recipe": RECIPE, "seed": 0}
    result |= {"minutes_of_processor_time": asked.minutes, "choices": {}}
    for name, objective in CHOICES.items():
        torch.manual_seed(0)
        model = create_model(MODEL, num_classes=10)
        training, figures = runs.train(name, model, objective, asked.minutes * 60)
        accuracy = runs.accuracies(training.model, model.elastic_heads)
        mean = sum(accuracy.values()) / len(accuracy)
        result["choices"][name] = {"mean": mean, "test_accuracy_by_heads": accuracy, **figures}
        print(f"{name}: mean {mean:.1%}, by heads {accuracy}", flush=True)
    write_result("objectives", result)


if __name__ == "__main__":
    main()
