"""Few-shot classification of texts: from a CSV file with labels to labels that it has never seen.

People write to an office what they want, of what, and for when. The label is what and when, of which there are 80
pairs; of what it is about nobody wants to know, but a sentence encoder sees little else. What to look at, a linear map
on top of the encoder learns from tasks of 48 of the labels, in which every wish and every time occurs. The page writes
the CSV file, and prints the accuracy on 5-way 1-shot tasks of labels that were held out, of

    the nearest mean of the frozen encoder's features
    the map, which begins as a multiple of the identity, and a head for the task on it, adapted, before meta-training
    and after it

Then it adapts to labels that no file has. ``metaprox train text --data messages.csv --text-column message
--label-column reason`` meta-learns adapters within the encoder instead, which takes longer.

Needs metaprox[text]. Half a minute: python examples/csv_texts.py
"""

import argparse
import csv
import itertools
import random
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

import metaprox as mp
from metaprox.data import FewShot, split_classes
from metaprox.models import cross_entropy
from metaprox.readers import Texts, read_texts

WANTED = {
    "book": "i would like to book|please reserve|put me down for",
    "cancel": "please cancel|i have to call off|i can not come to",
    "move": "can we put off|i need another date for|please shift",
    "confirm": "i confirm|yes, i will come to|count me in for",
    "ask the price": "how much is|what do i pay for|what is the cost of",
    "ask for length": "how long is|when is the end of|how many minutes are there for",
    "ask for place": "where do i go for|what is the address of|which room is it for",
    "complain": "i was not happy with|i want to complain about|it was a shame about",
    "thank": "thank you for|i am grateful for|it was lovely, the time of",
    "bring someone": "may i bring a friend to|can my son come along to|is there room for two at",
}
TIMES = {
    "morning": "in the morning|before noon|at breakfast time",
    "evening": "in the evening|tonight|after supper",
    "weekend": "at the weekend|on saturday|on sunday",
    "summer": "in summer|in july|in august",
    "winter": "in winter|in january|around christmas",
    "next week": "next week|in seven days|a week from now",
    "yesterday": "yesterday|the day before today|last night",
    "holidays": "in the school holidays|when schools are closed|in the half-term break",
}
THINGS = """the dentist|the violin lesson|the yoga class|the haircut|the car repair|the piano tuning|the eye test
the guided tour|the swimming course|the tax advice|the wine tasting|the dog training|the flu shot|the cooking class
the bank meeting|the house viewing|the photo session|the chess club|the riding lesson|the café table|the choir|the sauna
the job interview|the blood test|the tennis court|the language course|the massage|the boat trip|the theatre tickets"""
THINGS = THINGS.replace("\n", "|").split("|")
OPENINGS = ["hello,", "good day,", "hi there,", "dear team,", "sorry to trouble you,", "this is mr. özdemir,", "", ""]


def write(path: Path, seed: int = 0) -> None:
    """20 messages of each label, in random order, in columns of their own names."""
    draws = random.Random(seed)
    rows = []
    for (wanted, words), (time, times) in itertools.product(WANTED.items(), TIMES.items()):
        for _ in range(20):
            parts = (draws.choice(some) for some in (OPENINGS, words.split("|"), THINGS, times.split("|")))
            rows.append({"message": " ".join(parts).strip(), "reason": f"{wanted}, {time}"})
    draws.shuffle(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["message", "reason"])
        table.writeheader()
        table.writerows(rows)


def nearest_mean(task: mp.Task) -> torch.Tensor:
    """The accuracy of the rule that gives a text the label whose mean of support features is nearest."""
    (inputs, labels), (query, query_labels) = task
    means = torch.stack([inputs[labels == c].mean(0) for c in range(5)])
    return (torch.cdist(query, means).argmin(1) == query_labels).double().mean()


def main(place: Path, meta_steps: int, tasks: int) -> None:
    write(place / "messages.csv")
    messages = read_texts(place / "messages.csv", text="message", label="reason")
    encode = Texts(features=True)  # of MiniLM as it is
    features = encode(messages.items), [messages.names[i] for i in messages.targets]
    labels = split_classes(messages.names)
    train, test = (FewShot(features, ways=5, shots=1, queries=5, classes=labels[split]) for split in ("train", "test"))
    print(f"{len(messages)} texts of {len(messages.names)} labels, {len(labels['train'])} to learn from")
    print("nearest mean of the features ", mp.Statistic.of(torch.stack([nearest_mean(test[i]) for i in range(tasks)])))

    model = torch.nn.Sequential(torch.nn.Linear(384, 384, bias=False), torch.nn.Linear(384, 5))
    torch.nn.init.eye_(model[0].weight)
    model[0].weight.data *= 0.75  # makes features of length 4, for which inner steps of 0.3 suit
    head = mp.Head("1", start="means")  # a task's own, which begins as the rule of the nearest mean
    problem = mp.ProximalProblem.from_module(model, cross_entropy, lam=0.5, adapt="1.*", head=head)
    meta = mp.FOBMAML(mp.GradientDescent(lr=0.3), steps=5, perturb="center", eps=0.1, backend="loop")

    def judged() -> mp.Statistic:
        return mp.evaluate(problem, test.batch, range(tasks), meta.solver, meta.steps).metrics["accuracy"]

    print("before meta-training, adapted", judged())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    for step in range(meta_steps):
        optimizer.zero_grad()
        meta.backward(problem, train.batch(range(4 * step, 4 * step + 4)))
        optimizer.step()
    print("after meta-training, adapted ", judged())

    support = {
        "bring someone, spring": [
            "may i bring a friend to the choir in march?",
            "room for two at the sauna in spring?",
        ],
        "lost something, today": ["i have lost my scarf at the chess club this morning", "did you find my keys today?"],
        "ask for staff, any time": ["are you looking for staff?", "i would like to work as a cook with you"],
    }
    texts = [text for some in support.values() for text in some]
    learner = replace(mp.Learner.of(problem, meta), preprocessing=encode)
    adapted = learner.adapt((texts, [label for label in support for _ in range(2)]))
    for text in (
        "can my mother come along to the wine tasting in may?",
        "is my umbrella still at the dentist since today?",
        "i am a carpenter, do you need one?",
    ):
        print(f"{text}  {adapted.predict([text]).labels[0]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps and tasks")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder), *((30, 50) if quick else (200, 400)))
