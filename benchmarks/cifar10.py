"""One elastic training against three separate ones in the same total time, on CIFAR-10: HydraViT's claim.

    python benchmarks/cifar10.py elastic  --minutes 30 --work /tmp/cifar10     # one training, every subnetwork
    python benchmarks/cifar10.py separate --minutes 30 --work /tmp/cifar10     # three sizes, a third of the time each

Both may run at once: `--minutes` is processor time. Accuracy is that on the 5,000 test images, seed 0.
"""

from __future__ import annotations

import torch

from anyvit.data import open_data
from anyvit.data.preprocessing import Preprocessing
from anyvit.models import create_model
from anyvit.training.objectives import Classification, objective_for
from interleaved import write_result
from training_runs import Runs, arguments

MODEL, RECIPE = "hydravit_small_patch4_32", "scratch-small"
SEPARATE = (2, 4, 6)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("arm", choices=("elastic", "separate"))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)  # two arms share the machine, a core each
    runs = Runs(open_data(asked.data), RECIPE, Preprocessing(32), asked.work)
    torch.manual_seed(0)
    model = create_model(MODEL, num_classes=10)
    seconds = asked.minutes * 60
    accuracy, trainings = {}, {}
    if asked.arm == "elastic":
        training, trainings["elastic"] = runs.train("elastic", model, objective_for(model, seed=0), seconds)
        accuracy = runs.accuracies(training.model, model.elastic_heads)
    else:
        for heads in SEPARATE:
            name = f"separate{heads}"
            training, trainings[name] = runs.train(name, model.extract(heads), Classification(), seconds / 3)
            accuracy[str(heads)] = runs.accuracies(training.model, (None,))["None"]
    result = {
        "data": "CIFAR-10: 42,500 images to train on, 5,000 to test",
        "model": MODEL,
        "recipe": RECIPE,
        "seed": 0,
        "minutes_of_processor_time": asked.minutes,
        "test_accuracy_by_heads": accuracy,
        "trainings": trainings,
    }
    write_result(f"cifar10-{asked.arm}", result)
    print(accuracy)


if __name__ == "__main__":
    main()
